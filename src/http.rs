//! HTTP: the listener, the WebSocket handshake, the history, the dashboard, the operations port. Errors are `application/problem+json` (RFC 9457).

pub mod admission;
pub mod connections;
pub mod dashboard;
pub mod handshake;
pub mod history;
pub mod listener;
pub mod operations;
pub mod origin;
pub mod problem;
pub mod websocket;

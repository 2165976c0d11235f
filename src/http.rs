//! HTTP: the listener, the WebSocket handshake, the history, the operations port. Errors are `application/problem+json` (RFC 9457).

pub mod admission;
pub mod handshake;
pub mod history;
pub mod listener;
pub mod operations;
pub mod problem;
pub mod websocket;

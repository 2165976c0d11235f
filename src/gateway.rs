//! The gateway: subscribers connect over WebSocket or plain HTTP, receive the notifications of their feeds, and
//! send acks and marks.
//!
//! A request comes in through [`websocket`], which checks [`rates`], [`admission`], [`origin`] and
//! [`auth`], and becomes a [`session`]. The session reads pages through [`replay`], moves [`cursors`] and
//! writes [`marks`]. [`streams`] opens sessions without a WebSocket. [`presence`] knows which devices have a session. [`history`],
//! [`feed_presence`], [`events`] and [`dashboard`] serve plain HTTP, and [`feed_paths`] has the paths of feeds.

pub mod admission;
pub mod auth;
pub mod cursors;
pub mod dashboard;
pub mod events;
pub mod feed_paths;
pub mod feed_presence;
pub mod handshake;
pub mod history;
pub mod marks;
pub mod origin;
pub mod presence;
pub mod rates;
pub mod refusal;
pub mod replay;
pub mod session;
pub mod streams;
pub mod websocket;

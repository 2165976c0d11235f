//! A session: one connection of a subscriber, which reads its feeds with a cursor.
//!
//! [`task`] is its loop. [`state`] decides, without I/O, which frames to send and which pages to
//! read. [`socket`] reads and writes the frames that [`framing`] encodes for a WebSocket, and
//! [`response`] for HTTP. [`closing`] ends the connection. [`lateness`] times missing acks.

pub mod closing;
pub mod framing;
pub mod lateness;
pub mod response;
pub mod socket;
pub mod state;
pub mod task;

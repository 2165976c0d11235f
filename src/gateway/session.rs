//! One WebSocket connection of a subscriber: a reader of its feeds with a cursor.
//!
//! [`state`] decides what to send next and is pure; [`task`] moves frames and hints in and out of it, [`socket`] moves bytes as
//! [`framing`] has them, [`goodbye`] ends a connection, and [`late`] times a client that does not acknowledge.

pub mod framing;
pub mod goodbye;
pub mod late;
pub mod socket;
pub mod state;
pub mod task;

//! One WebSocket connection of a subscriber: a reader of its feeds with a cursor.
//!
//! [`state`] decides what to send next and is pure; [`task`] moves bytes and hints in and out of it.

pub mod state;
pub mod task;

//! The terms that all other modules use: names and numbers, events, notifications, marks, and the
//! protocol. Pure types and parsing without I/O.

pub mod event;
pub mod feed;
pub mod frame_text;
pub mod mark;
pub mod notification;
pub mod page;
pub mod protocol;
pub mod receipt;
pub mod trace_context;

//! The outputs of a session, which its task performs in order.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::model::feed::{Feed, Seq, Version};
use crate::model::frame_text::FrameText;
use crate::model::mark::Mark;
use crate::model::notification::Notification;
use crate::model::protocol::{Close, DeviceState};
use crate::model::trace_context::TraceContext;

/// An output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Send(Frame),
    /// Do something that needs no socket.
    Perform(Effect),
    /// Close the session. It is the last output.
    Close(Close),
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A notification.
    Notification(Arc<Notification>),
    /// Another text frame.
    Text(FrameText),
    /// A WebSocket ping.
    Ping,
}

/// An output that needs no socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read a page and pass it to `Session::on_page`. The session reads one page at a time.
    Read {
        /// The feed.
        feed: Feed,
        /// The last number sent or skipped.
        after: Seq,
        /// Number of notifications that the window has room for.
        wanted: usize,
        /// The last version sent, if later marks are missing.
        states_after: Option<Version>,
    },
    /// Read the cursors after a wait, and pass them to `Session::on_cursors`. It replaces an earlier wait.
    ReadCursors {
        /// The wait.
        after: Duration,
    },
    /// Store that the subscriber has everything up to `seq`.
    Ack {
        /// The feed.
        feed: Feed,
        /// The highest number acknowledged.
        seq: Seq,
    },
    /// Measure a notification that the client acknowledged.
    Acknowledged(Sent),
    /// Store a mark and pass the replies to `Session::on_replies`.
    Mark {
        /// The feed.
        feed: Feed,
        /// The mark.
        mark: Mark,
    },
    /// Store the state of the device with its presence.
    DeviceState(DeviceState),
    /// Have the epoch renewed, because the database has less than it had in this epoch.
    Doubt,
    /// Check the token of an `auth` frame and pass the result to `Session::on_verified`.
    Verify {
        /// The JWT.
        token: String,
    },
}

/// The reason why the token of an `auth` frame is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unverified {
    /// The old token stays valid. The text is for the client.
    Refused(String),
    /// The token is refused, and so were too many others of the address.
    TooMany {
        /// Wait that the client is asked for.
        retry_after_ms: u64,
    },
}

/// A notification that was sent and is not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub(super) seq: Seq,
    /// The time of the event.
    pub time: Option<OffsetDateTime>,
    /// The span of its delivery, if it is traced.
    pub trace: Option<TraceContext>,
}

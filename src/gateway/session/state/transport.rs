//! The transports of a session. Over HTTP, the acks of the client come by requests, perhaps at another replica. So the
//! session reads its cursors while notifications wait for an ack. Pure.

use std::time::{Duration, Instant};

use super::output::{Effect, Output};
use super::{Close, Session};
use crate::model::feed::Seq;

/// First wait for an ack, before the cursors are read. Each read without an ack doubles it.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// Longest wait, so that a client that acks nothing costs few reads.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait if the window is full, because the client waits for the session.
const WAIT_MAX_IF_FULL: Duration = Duration::from_secs(1);

/// The connection of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket: frames of the client arrive in the session.
    WebSocket,
    /// A response that ends with the session.
    Stream,
    /// A response that ends after the first news, or at this time.
    Poll {
        /// The time of a response without news.
        until: Instant,
    },
}

/// The reads of the cursors of a session.
#[derive(Debug)]
pub(super) struct CursorReads {
    wait: Duration,
    is_reading: bool,
}

impl CursorReads {
    pub(super) fn new() -> Self {
        Self {
            wait: WAIT_MIN,
            is_reading: false,
        }
    }
}

impl Session {
    /// The cursors of all feeds, in the order of their starts. None if they could not be read.
    pub fn on_cursors(&mut self, acked: &[Seq]) {
        let before = self.outstanding;
        for (index, acked) in acked.iter().enumerate().take(self.readers.len()) {
            self.release(index, *acked);
        }
        self.cursor_reads.is_reading = false;
        self.cursor_reads.wait = match self.outstanding < before {
            true => WAIT_MIN,
            false => self.cursor_reads.wait * 2,
        };
        self.advance();
    }

    /// Reads the cursors later, if notifications wait for an ack that does not arrive here.
    pub(super) fn read_cursors(&mut self) {
        let longest = match self.is_window_full() {
            true => WAIT_MAX_IF_FULL,
            false => WAIT_MAX,
        };
        let reads = &mut self.cursor_reads;
        // If the window is full now, a long wait begins again as a short one.
        let is_due = !reads.is_reading || reads.wait > longest;
        if self.rules.transport == Transport::Stream && self.outstanding > 0 && is_due {
            reads.wait = reads.wait.min(longest);
            reads.is_reading = true;
            let after = reads.wait;
            self.outputs
                .push(Output::Perform(Effect::ReadCursors { after }));
        }
    }

    /// Ends a poll that has news.
    pub(super) fn end_poll(&mut self) {
        if self.has_news && self.poll_until().is_some() {
            self.close(Close::Answered);
        }
    }

    /// The time at which a poll ends without news. A page that is being read may have some.
    pub(super) fn poll_ends_at(&self) -> Option<Instant> {
        self.poll_until().filter(|_| !self.is_reading)
    }

    fn poll_until(&self) -> Option<Instant> {
        match self.rules.transport {
            Transport::Poll { until } => Some(until),
            Transport::WebSocket | Transport::Stream => None,
        }
    }
}

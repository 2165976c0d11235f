//! The inputs of a session that its client sends: frames and control frames.

use std::time::Instant;

use super::allowance::FRAMES_PER_AUTH;
use super::output::{Effect, Output};
use super::{Session, UNKNOWN_FEED};
use crate::model::feed::Seq;
use crate::model::mark::{Mark, Targets};
use crate::model::protocol::{ClientFrame, Close, ErrorCode, ServerFrame};

/// Most numbers in a `read` or `handle`: as many as a window has by default. They fit into a frame of
/// 16 KiB.
pub(super) const SEQS_PER_FRAME_MAX: usize = 256;
/// Most marks of a session that wait for the database.
pub(super) const MARKS_WAITING_MAX: usize = 64;
/// Wait that a client is asked for if it sent too many frames, in milliseconds.
const TOO_MANY_FRAMES_RETRY_MS: u64 = 5_000;

impl Session {
    /// A frame of the client.
    pub fn on_frame(&mut self, frame: ClientFrame, now: Instant) {
        let counts_as = match frame {
            ClientFrame::Auth { .. } => FRAMES_PER_AUTH,
            _ => 1,
        };
        if !self.admit_frames(counts_as, now) {
            return;
        }
        match frame {
            ClientFrame::Ack { feed, seq } => self.on_ack(&feed, seq),
            ClientFrame::Read {
                feed,
                seqs: Some(seqs),
                through: None,
            } => self.on_mark(&feed, seqs.len(), Mark::Read(Targets::Seqs(seqs))),
            ClientFrame::Read {
                feed,
                seqs: None,
                through: Some(through),
            } => {
                let through = Seq::new(through).unwrap_or_default();
                self.on_mark(&feed, 1, Mark::Read(Targets::Through(through)));
            }
            // A read needs either `seqs` or `through`.
            ClientFrame::Read { .. } => return self.close(Close::NotTheProtocol),
            ClientFrame::Handle { feed, seqs } => {
                self.on_mark(&feed, seqs.len(), Mark::Handled(seqs))
            }
            ClientFrame::Auth { token } => {
                self.outputs.push(Output::Perform(Effect::Verify { token }))
            }
            ClientFrame::DeviceState(state) => self
                .outputs
                .push(Output::Perform(Effect::DeviceState(state))),
            ClientFrame::Ping => self.send_frame(&ServerFrame::Pong),
            ClientFrame::Unknown => {
                self.send_error(
                    None,
                    ErrorCode::UnknownType,
                    "this server does not know that frame type",
                );
            }
        }
        self.advance();
    }

    /// A WebSocket ping, pong or fragment of the client.
    pub fn on_control(&mut self, now: Instant) {
        self.admit_frames(1, now);
    }

    fn on_ack(&mut self, feed: &str, seq: i64) {
        let Some(index) = self
            .readers
            .iter()
            .position(|reader| reader.feed.as_str() == feed)
        else {
            return self.send_error(Some(feed), ErrorCode::UnknownFeed, UNKNOWN_FEED);
        };
        let reader = &self.readers[index];
        let Some(seq) = Seq::new(seq).filter(|seq| *seq < reader.next) else {
            return self.send_error(
                Some(feed),
                ErrorCode::AckNotSent,
                "this session did not send that seq: ack only numbers that it sent",
            );
        };
        let is_new = seq > reader.acked;
        let feed = reader.feed.clone();
        self.release(index, seq);
        if is_new {
            self.outputs
                .push(Output::Perform(Effect::Ack { feed, seq }));
        }
    }

    fn on_mark(&mut self, feed: &str, numbers: usize, mark: Mark) {
        let Some(reader) = self
            .readers
            .iter()
            .find(|reader| reader.feed.as_str() == feed)
        else {
            return self.send_error(Some(feed), ErrorCode::UnknownFeed, UNKNOWN_FEED);
        };
        let refused = if reader.shared {
            Some((
                ErrorCode::ReadOnly,
                "everyone reads this feed: to mark for everyone, use a token with the claim broadcast",
            ))
        } else if numbers > SEQS_PER_FRAME_MAX {
            Some((
                ErrorCode::TooManySeqs,
                "a frame may name at most 256 numbers: send several frames",
            ))
        } else if self.marks_waiting >= MARKS_WAITING_MAX {
            Some((
                ErrorCode::Busy,
                "too many marks of this session wait: wait for replies, then send it again",
            ))
        } else {
            None
        };
        match refused {
            Some((code, message)) => self.send_error(Some(feed), code, message),
            None => {
                self.marks_waiting += 1;
                let feed = reader.feed.clone();
                self.outputs
                    .push(Output::Perform(Effect::Mark { feed, mark }));
            }
        }
    }

    /// Counts frames of the client. Closes the session if there were too many.
    fn admit_frames(&mut self, frames: u32, now: Instant) -> bool {
        self.heard_at = now;
        if !self.frames_allowed.take(frames, now) {
            self.close(Close::TooManyFrames {
                retry_after_ms: TOO_MANY_FRAMES_RETRY_MS,
            });
        }
        !self.is_closed()
    }
}

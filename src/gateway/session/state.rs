//! The state machine of a session. It has no I/O, no clock and no randomness.
//!
//! Inputs are hints, pages, frames of the client and the time. Outputs are frames to send, pages to
//! read, acks and marks to store, and at last a close. For each feed the session knows the next
//! number that it owes its client. If a hint has that number, the session sends it. If not, there
//! is a gap, and the session reads a page. So live delivery, replay and recovery are one path, and
//! the session keeps nothing that Postgres does not have.

mod allowance;
mod frames;
mod output;
mod reader;
mod start;
#[cfg(test)]
mod tests;
mod transport;

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use self::allowance::FrameAllowance;
pub use self::output::{Effect, Frame, Output, Sent, Unverified};
use self::reader::FeedReader;
pub use self::start::{KeptByClient, KeptNumber, Start};
use self::transport::CursorReads;
pub use self::transport::Transport;
use crate::model::feed::{Epoch, Feed, Newest, Seq};
use crate::model::frame_text::FrameText;
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::model::page::{Entry, Page};
use crate::model::protocol::{Close, ErrorCode, ServerFrame, SkipReason};
use crate::model::trace_context::TraceContext;

/// Heartbeats without a frame of the client, not even a pong, after which its session is closed.
const SILENT_HEARTBEATS_MAX: u32 = 3;

const UNKNOWN_FEED: &str = "this session does not read that feed";

/// Settings of a session.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Most notifications that are sent and not acknowledged.
    pub window: usize,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// The connection.
    pub transport: Transport,
}

/// The times at which a session ends in any case.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The expiry of the token, with the leeway of its check.
    pub token: Instant,
    /// The greatest age of the session, if it has one.
    pub age: Option<Instant>,
    /// Wait that the client is asked for if the epoch changes, in milliseconds. It differs between
    /// sessions.
    pub epoch_retry_ms: u64,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    rules: Rules,
    epoch: Epoch,
    readers: Vec<FeedReader>,
    /// Notifications of all feeds that are sent and not acknowledged.
    outstanding: usize,
    /// Marks of the client that have no reply yet.
    marks_waiting: usize,
    is_reading: bool,
    cursor_reads: CursorReads,
    /// Whether a notification, a skip or a mark was sent.
    has_news: bool,
    /// The index of the reader that is served first the next time, so that no feed waits for ever.
    turn: usize,
    frames_allowed: FrameAllowance,
    heartbeat_at: Instant,
    heard_at: Instant,
    ends: Ends,
    outputs: Vec<Output>,
}

impl Session {
    /// Begins a session. Its first outputs read pages of the feeds that are behind.
    pub fn new(rules: Rules, epoch: Epoch, starts: Vec<Start>, ends: Ends, now: Instant) -> Self {
        let mut session = Self {
            rules,
            epoch,
            readers: starts.into_iter().map(FeedReader::new).collect(),
            outstanding: 0,
            marks_waiting: 0,
            is_reading: false,
            cursor_reads: CursorReads::new(),
            has_news: false,
            turn: 0,
            frames_allowed: FrameAllowance::new(rules.window, now),
            heartbeat_at: now + rules.heartbeat,
            heard_at: now,
            ends,
            outputs: Vec::new(),
        };
        session.advance();
        session
    }

    /// Takes the outputs that are due, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        self.end_poll();
        std::mem::take(&mut self.outputs)
    }

    /// The time at which [`Session::on_tick`] is due.
    pub fn deadline(&self) -> Instant {
        let ends = [self.silent_at(), self.ends.age, self.poll_ends_at()];
        let soonest = self.heartbeat_at.min(self.ends.token);
        ends.into_iter().flatten().fold(soonest, Instant::min)
    }

    /// Number of marks of the client that have no reply yet.
    pub fn marks_waiting(&self) -> usize {
        self.marks_waiting
    }

    /// Number of notifications that wait for the client's ack.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether the client must acknowledge before it gets more notifications.
    pub fn is_window_full(&self) -> bool {
        !self.has_room()
    }

    /// Hints: notifications that were stored. Those of other feeds are ignored.
    pub fn on_hints(&mut self, hints: Vec<Arc<Notification>>, wall: OffsetDateTime) {
        for notification in hints {
            if let Some(reader) = self.reader_of(&notification.feed) {
                reader.keep(notification);
            }
            self.send_kept(wall);
        }
        self.advance();
    }

    /// The newest numbers of a feed, from a hint without the frames, from a round or from the sweep.
    pub fn on_newest(&mut self, feed: &Feed, newest: Newest) {
        if let Some(reader) = self.reader_of(feed) {
            reader.raise_newest(newest);
        }
        self.advance();
    }

    /// Marks that were stored. The next version is sent as it is; after a gap, marks are read.
    pub fn on_states(&mut self, states: &[Arc<StateFrame>]) {
        for state in states {
            let reader = self.reader_of(&state.feed);
            if reader.is_some_and(|reader| reader.take_state(state)) {
                self.send_news(state.frame.clone());
            }
        }
        self.advance();
    }

    /// Replies to marks of this client, one list for each mark.
    pub fn on_replies(&mut self, replies: Vec<Vec<FrameText>>) {
        self.marks_waiting = self.marks_waiting.saturating_sub(replies.len());
        replies
            .into_iter()
            .flatten()
            .for_each(|reply| self.send_text(reply));
    }

    /// The page that was read. Notifications that the window has no room for are dropped, and read
    /// again after acks.
    pub fn on_page(&mut self, page: &Page, wall: OffsetDateTime) {
        self.is_reading = false;
        if page.epoch.as_ref() != Some(&self.epoch) {
            return self.end_epoch();
        }
        let Some(index) = self
            .readers
            .iter()
            .position(|reader| reader.feed == page.feed)
        else {
            return self.advance();
        };
        if page.last < page.after || self.readers[index].is_ahead_of(page) {
            // The database has less than this session sent: it was restored. The feed of a canary
            // is deleted on purpose, so that is no reason to doubt the database.
            if !page.feed.is_of_a_canary() {
                self.outputs.push(Output::Perform(Effect::Doubt));
            }
            return self.end_epoch();
        }
        let reader = &mut self.readers[index];
        let states = reader.take_states(page);
        if page.entries.is_empty() {
            reader.lower_last(page.last);
        } else {
            reader.last = reader.last.max(page.last);
        }
        self.send_entries(index, page, wall);
        for state in states {
            self.send_news(state.frame.clone());
        }
        self.send_kept(wall);
        self.advance();
    }

    /// A traced notification was sent; `trace` is the span of its delivery.
    pub fn on_traced(&mut self, sent: &Notification, trace: TraceContext) {
        let reader = self.reader_of(&sent.feed);
        if let Some(sent) = reader.and_then(|reader| reader.unacked(sent.seq)) {
            sent.trace = Some(trace);
        }
    }

    /// The result of an `auth` frame: the new end of the token, or the reason of its refusal.
    pub fn on_verified(&mut self, verdict: Result<Instant, Unverified>) {
        match verdict {
            Ok(token) => self.ends.token = token,
            Err(Unverified::Refused(message)) => {
                self.send_error(None, ErrorCode::TokenRefused, &message);
            }
            Err(Unverified::TooMany { retry_after_ms }) => {
                self.close(Close::TooManyRequests { retry_after_ms });
            }
        }
    }

    /// The time, at [`Session::deadline`] or later.
    pub fn on_tick(&mut self, now: Instant) {
        if now >= self.ends.token {
            return self.close(Close::TokenExpired);
        }
        let is_over = |end: Option<Instant>| end.is_some_and(|end| now >= end);
        if is_over(self.silent_at()) {
            return self.close(Close::Silent);
        }
        if is_over(self.ends.age) {
            return self.close(Close::TooOld);
        }
        if is_over(self.poll_ends_at()) {
            return self.close(Close::Answered);
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.rules.heartbeat;
            let sent = self
                .readers
                .iter()
                .map(|reader| (&reader.feed, reader.next.previous()))
                .collect();
            let heartbeat = ServerFrame::Heartbeat { sent }.to_json();
            self.send_text(heartbeat.into());
            self.outputs.push(Output::Send(Frame::Ping));
        }
    }

    /// The present epoch.
    pub fn on_epoch(&mut self, epoch: &Epoch) {
        if self.epoch != *epoch {
            self.end_epoch();
        }
    }

    /// The replica drains.
    pub fn on_drain(&mut self, retry_after_ms: u64) {
        self.send_frame(&ServerFrame::Goaway { retry_after_ms });
        self.close(Close::GoingAway { retry_after_ms });
    }

    /// Sends `caught_up` for each feed that has caught up, and reads a page if one is missing and
    /// none is being read.
    fn advance(&mut self) {
        let free = self.rules.window.saturating_sub(self.outstanding);
        for offset in 0..self.readers.len() {
            let index = (self.turn + offset) % self.readers.len();
            let reader = &mut self.readers[index];
            if let Some(seq) = reader.take_caught_up() {
                let caught_up = ServerFrame::CaughtUp {
                    feed: &reader.feed,
                    seq,
                }
                .to_json();
                self.outputs
                    .push(Output::Send(Frame::Text(caught_up.into())));
            }
            let (wanted, states_after) = (reader.wanted(free), reader.states_wanted());
            let is_answered =
                self.has_news && matches!(self.rules.transport, Transport::Poll { .. });
            if !self.is_reading && !is_answered && (wanted > 0 || states_after.is_some()) {
                self.is_reading = true;
                self.turn = index + 1;
                reader.begin_read();
                self.outputs.push(Output::Perform(Effect::Read {
                    feed: reader.feed.clone(),
                    after: reader.next.previous(),
                    wanted,
                    states_after,
                }));
            }
        }
        self.read_cursors();
    }

    /// Sends the entries of a page, as far as the window has room and none is outdated.
    fn send_entries(&mut self, index: usize, page: &Page, wall: OffsetDateTime) {
        for entry in &page.entries {
            let next = self.readers[index].next;
            match entry {
                _ if entry.through() < next => {}
                Entry::Skipped {
                    from,
                    through,
                    reason,
                } if *from <= next => self.skip(index, *through, *reason),
                Entry::Notification(notification)
                    if notification.seq == next
                        && self.has_room()
                        && !self.readers[index].is_outdated(notification.seq, page) =>
                {
                    self.send(index, notification, wall);
                }
                _ => break,
            }
        }
    }

    /// Sends the hints that were kept and are next. If the window is full, drops the rest, because
    /// Postgres has them.
    fn send_kept(&mut self, wall: OffsetDateTime) {
        for index in 0..self.readers.len() {
            while self.has_room() {
                let Some(notification) = self.readers[index].take_kept() else {
                    break;
                };
                self.send(index, &notification, wall);
            }
            if !self.has_room() {
                self.readers[index].drop_kept();
            }
        }
    }

    fn reader_of(&mut self, feed: &Feed) -> Option<&mut FeedReader> {
        self.readers.iter_mut().find(|reader| reader.feed == *feed)
    }

    fn has_room(&self) -> bool {
        self.outstanding < self.rules.window
    }

    fn send(&mut self, index: usize, notification: &Arc<Notification>, wall: OffsetDateTime) {
        if notification.is_expired(wall) {
            return self.skip(index, notification.seq, SkipReason::Expired);
        }
        self.readers[index].push_sent(notification);
        self.outstanding += 1;
        self.frames_allowed.add_notification();
        self.has_news = true;
        let frame = Frame::Notification(notification.clone());
        self.outputs.push(Output::Send(frame));
    }

    fn skip(&mut self, index: usize, through: Seq, reason: SkipReason) {
        let reader = &mut self.readers[index];
        let skipped = ServerFrame::Skipped {
            feed: &reader.feed,
            from: reader.next,
            through,
            reason,
        }
        .to_json();
        reader.next = through.next();
        self.send_news(skipped.into());
    }

    /// Takes the notifications up to `seq` out of the window.
    fn release(&mut self, index: usize, seq: Seq) {
        let reader = &mut self.readers[index];
        reader.acked = reader.acked.max(seq);
        let acknowledged = reader.release(seq);
        self.outstanding -= acknowledged.len();
        let effects = acknowledged.into_iter().map(Effect::Acknowledged);
        self.outputs.extend(effects.map(Output::Perform));
    }

    /// The client of a response sends nothing, so only a WebSocket can be silent.
    fn silent_at(&self) -> Option<Instant> {
        let heard = self.heard_at + self.rules.heartbeat * SILENT_HEARTBEATS_MAX;
        (self.rules.transport == Transport::WebSocket).then_some(heard)
    }

    fn send_news(&mut self, text: FrameText) {
        self.has_news = true;
        self.send_text(text);
    }

    fn send_frame(&mut self, frame: &ServerFrame<'_>) {
        self.send_text(frame.to_json().into());
    }

    fn send_text(&mut self, text: FrameText) {
        self.outputs.push(Output::Send(Frame::Text(text)));
    }

    fn send_error(&mut self, feed: Option<&str>, code: ErrorCode, message: &str) {
        self.send_frame(&ServerFrame::Error {
            code,
            message,
            feed,
        });
    }

    fn close(&mut self, close: Close) {
        if !self.is_closed() {
            self.outputs.push(Output::Close(close));
        }
    }

    /// Closes the session, because its numbers belong to an earlier epoch.
    fn end_epoch(&mut self) {
        self.close(Close::EpochChanged {
            retry_after_ms: self.ends.epoch_retry_ms,
        });
    }

    fn is_closed(&self) -> bool {
        matches!(self.outputs.last(), Some(Output::Close(_)))
    }
}

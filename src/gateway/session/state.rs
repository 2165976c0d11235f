//! What a session sends next: a state machine without I/O, clock or randomness.
//!
//! In come hints, pages, client frames and the time; out come frames to send, pages to read, acks to record, and at last a
//! close. For each feed it knows the next number it owes the client. A hint whose number is the next one is sent as it is;
//! anything else is a gap, which is closed by reading a page. So live delivery, replay and recovery are one path, and
//! nothing is kept that Postgres could not give again.

mod reader;
mod start;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use self::reader::Reader;
pub use self::start::{KeptByClient, Place, Start};
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::mark::{Mark, StateFrame, Targets};
use crate::model::notification::{Entry, Newest, Notification, Page};
use crate::model::protocol::{ClientFrame, Close, ErrorCode, ServerFrame, SkipReason};
use crate::telemetry::traces::Origin;

/// A session from which nothing is heard for so many heartbeats, each of which asks for a pong, is dead.
const SILENT_HEARTBEATS_MAX: u32 = 3;
/// A client may send so many frames a second, beside those that notifications entitle it to …
const FRAMES_PER_SECOND: u32 = 50;
/// … and save up so many, beside those for a full window.
const FRAMES_SAVED_MAX: u32 = 1_000;
/// Each notification entitles a client to answer with an ack and one frame more.
const FRAMES_PER_NOTIFICATION: u32 = 2;
/// Most numbers in one `read` or `handle`.
const SEQS_PER_FRAME_MAX: usize = 256;
/// Most of a client's `read` and `handle` that wait for the database.
const SAID_WAITING_MAX: usize = 64;
/// What a client that sent too many frames is told to wait, in milliseconds.
const TOO_MANY_FRAMES_RETRY_MS: u64 = 5_000;

const UNKNOWN_FEED: &str = "this session does not read that feed";

/// How a session behaves, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Most notifications outstanding (sent and not acknowledged).
    pub window: usize,
    /// How often a heartbeat is sent.
    pub heartbeat: Duration,
}

/// When a session must end whatever happens.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The token's expiry, with the leeway that its check had.
    pub token: Instant,
    /// The connection's greatest age.
    pub age: Option<Instant>,
    /// How long its client is told to wait where the epoch changes, in milliseconds: another for each session.
    pub epoch_retry_ms: u64,
}

/// What the task is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a notification.
    Notification(Arc<Notification>),
    /// Send another frame.
    Send(Utf8Bytes),
    /// Send a WebSocket ping.
    Ping,
    /// Read the page of `feed` after `after`, and hand it to [`Session::on_page`]. One at a time.
    Read {
        /// The feed.
        feed: Feed,
        /// The last number sent or skipped.
        after: Seq,
        /// How many notifications there is room for.
        wanted: usize,
        /// The last change sent, where later ones are missing.
        changes_after: Option<Version>,
    },
    /// Count that the client acknowledged what it was sent.
    Acknowledged(Sent),
    /// Record that the subscriber has everything up to `seq`.
    Ack {
        /// The feed.
        feed: Feed,
        /// The highest number acknowledged.
        seq: Seq,
    },
    /// Record what the subscriber says, and hand the reply to [`Session::on_replies`].
    Say {
        /// The feed.
        feed: Feed,
        /// What it says of it.
        said: Mark,
    },
    /// The database has less than it had in the session's epoch: have it renewed.
    Doubt,
    /// Check the token of an `auth`, and hand the verdict to [`Session::on_verified`].
    Verify {
        /// The JWT.
        token: String,
    },
    /// Close; nothing follows.
    Close(Close),
}

/// A notification that was sent, until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    seq: Seq,
    /// The event's time.
    pub time: Option<OffsetDateTime>,
    /// Where its trace goes on, for one that is traced.
    pub origin: Option<Origin>,
}

/// One session's place in its feeds.
#[derive(Debug)]
pub struct Session {
    rules: Rules,
    /// All numbers of this session are of this epoch.
    epoch: Epoch,
    readers: Vec<Reader>,
    /// Notifications sent and not acknowledged, in all feeds together.
    outstanding: usize,
    /// What the client said and has no reply to yet.
    said_waiting: usize,
    /// A page was asked for and has not come.
    reading: bool,
    /// Which feed is looked at first the next time, so that none starves the others.
    turn: usize,
    frames_allowed: u32,
    frames_saved_max: u32,
    frames_counted_at: Instant,
    heartbeat_at: Instant,
    heard_at: Instant,
    ends: Ends,
    outputs: Vec<Output>,
}

impl Session {
    /// Begins; the first outputs are pages to read for the feeds that are behind.
    pub fn new(rules: Rules, epoch: Epoch, starts: Vec<Start>, ends: Ends, now: Instant) -> Self {
        let for_a_window = u32::try_from(rules.window)
            .unwrap_or(u32::MAX)
            .saturating_mul(FRAMES_PER_NOTIFICATION);
        let frames_saved_max = FRAMES_SAVED_MAX.saturating_add(for_a_window);
        let mut session = Self {
            rules,
            epoch,
            readers: starts.into_iter().map(Reader::new).collect(),
            outstanding: 0,
            said_waiting: 0,
            reading: false,
            turn: 0,
            frames_allowed: frames_saved_max,
            frames_saved_max,
            frames_counted_at: now,
            heartbeat_at: now + rules.heartbeat,
            heard_at: now,
            ends,
            outputs: Vec::new(),
        };
        session.advance();
        session
    }

    /// What is to be done now, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// When [`Session::on_tick`] is due.
    pub fn deadline(&self) -> Instant {
        let timers = [self.heartbeat_at, self.silent_at(), self.ends.token];
        let soonest = timers.into_iter().fold(self.heartbeat_at, Instant::min);
        self.ends.age.map_or(soonest, |age| soonest.min(age))
    }

    /// A batch was stored: some of it may be for this session.
    pub fn on_hints(&mut self, hints: Vec<Arc<Notification>>, wall: OffsetDateTime) {
        for notification in hints {
            if let Some(reader) = self
                .readers
                .iter_mut()
                .find(|reader| reader.feed == notification.feed)
            {
                reader.keep(notification);
            }
            self.send_kept(wall);
        }
        self.advance();
    }

    /// A feed is known to have grown: told by a hint without what grew, or by the sweep.
    pub fn on_newest(&mut self, feed: &Feed, newest: Newest) {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.feed == *feed) {
            reader.grown(newest);
        }
        self.advance();
    }

    /// People said something of notifications: the next change is sent as it is, after a gap they are read.
    pub fn on_changes(&mut self, changes: &[Arc<StateFrame>]) {
        for change in changes {
            let reader = self
                .readers
                .iter_mut()
                .find(|reader| reader.feed == change.feed);
            if reader.is_some_and(|reader| reader.take_change(change)) {
                self.outputs.push(Output::Send(change.frame.clone()));
            }
        }
        self.advance();
    }

    /// What came of things that the client said, for it alone.
    pub fn on_replies(&mut self, replies: Vec<Vec<Utf8Bytes>>) {
        self.said_waiting = self.said_waiting.saturating_sub(replies.len());
        self.outputs
            .extend(replies.into_iter().flatten().map(Output::Send));
    }

    /// The page that was asked for. What the window has no room for is dropped, and read again when acks come.
    pub fn on_page(&mut self, page: &Page, wall: OffsetDateTime) {
        self.reading = false;
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
            // The database has less than was sent: it was set back, and nobody has noticed yet. A canary's feed is forgotten on
            // purpose: only this session ends.
            if !page.feed.is_of_a_canary() {
                self.outputs.push(Output::Doubt);
            }
            return self.end_epoch();
        }
        let reader = &mut self.readers[index];
        let changes = reader.take_changes(page);
        match page.entries.is_empty() {
            true => reader.found_nothing(page.last),
            false => reader.last = reader.last.max(page.last),
        }
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
        self.outputs.extend(
            changes
                .iter()
                .map(|change| Output::Send(change.frame.clone())),
        );
        self.send_kept(wall);
        self.advance();
    }

    /// A notification that is traced went out: there its trace goes on.
    pub fn on_traced(&mut self, sent: &Notification, origin: Origin) {
        let reader = self
            .readers
            .iter_mut()
            .find(|reader| reader.feed == sent.feed);
        if let Some(sent) = reader.and_then(|reader| reader.unacked(sent.seq)) {
            sent.origin = Some(origin);
        }
    }

    /// How many notifications wait for the client's ack.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether the client is to acknowledge before it gets more.
    pub fn is_window_full(&self) -> bool {
        !self.has_room()
    }

    /// The client said something.
    pub fn on_frame(&mut self, frame: ClientFrame, now: Instant) {
        if !self.admit_frame(now) {
            return;
        }
        match frame {
            ClientFrame::Ack { feed, seq } => self.on_ack(&feed, seq),
            ClientFrame::Read {
                feed,
                seqs: Some(seqs),
                through: None,
            } => {
                self.on_mark(&feed, seqs.len(), Mark::Read(Targets::Seqs(seqs)));
            }
            ClientFrame::Read {
                feed,
                seqs: None,
                through: Some(through),
            } => {
                self.on_mark(
                    &feed,
                    1,
                    Mark::Read(Targets::Through(Seq::new(through).unwrap_or_default())),
                );
            }
            // Neither or both: it does not know what it says.
            ClientFrame::Read { .. } => return self.close(Close::NotTheProtocol),
            ClientFrame::Handle { feed, seqs } => {
                self.on_mark(&feed, seqs.len(), Mark::Handled(seqs))
            }
            ClientFrame::Auth { token } => self.outputs.push(Output::Verify { token }),
            ClientFrame::Ping => self.say(&ServerFrame::Pong),
            ClientFrame::Unknown => {
                self.complain(
                    None,
                    ErrorCode::UnknownType,
                    "this server does not know that frame type",
                );
            }
        }
        self.advance();
    }

    /// A WebSocket ping or pong came: the client lives.
    pub fn on_control(&mut self, now: Instant) {
        self.admit_frame(now);
    }

    /// The verdict on an `auth`: the new end, or what is wrong with the token.
    pub fn on_verified(&mut self, verdict: Result<Instant, &str>) {
        match verdict {
            Ok(token) => self.ends.token = token,
            Err(message) => self.complain(None, ErrorCode::TokenRefused, message),
        }
    }

    /// A deadline passed.
    pub fn on_tick(&mut self, now: Instant) {
        if now >= self.ends.token {
            return self.close(Close::TokenExpired);
        }
        if now >= self.silent_at() {
            return self.close(Close::Silent);
        }
        if self.ends.age.is_some_and(|age| now >= age) {
            return self.close(Close::TooOld);
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.rules.heartbeat;
            let sent = self
                .readers
                .iter()
                .map(|reader| (&reader.feed, reader.next.previous()))
                .collect();
            let heartbeat = ServerFrame::Heartbeat { sent }.to_json();
            self.outputs
                .extend([Output::Send(heartbeat.into()), Output::Ping]);
        }
    }

    /// This is the present epoch.
    pub fn on_epoch(&mut self, epoch: &Epoch) {
        if self.epoch != *epoch {
            self.end_epoch();
        }
    }

    /// This replica is leaving.
    pub fn on_drain(&mut self, retry_after_ms: u64) {
        self.say(&ServerFrame::Goaway { retry_after_ms });
        self.close(Close::GoingAway { retry_after_ms });
    }

    fn on_ack(&mut self, feed: &str, seq: i64) {
        let Some(reader) = self
            .readers
            .iter_mut()
            .find(|reader| reader.feed.as_str() == feed)
        else {
            return self.complain(Some(feed), ErrorCode::UnknownFeed, UNKNOWN_FEED);
        };
        let Some(seq) = Seq::new(seq).filter(|seq| *seq < reader.next) else {
            return self.complain(
                Some(feed),
                ErrorCode::AckNotSent,
                "an ack is only for what this session was sent",
            );
        };
        let before = self.outputs.len();
        self.outputs
            .extend(reader.release(seq).map(Output::Acknowledged));
        self.outstanding -= self.outputs.len() - before;
        if seq > reader.acked {
            reader.acked = seq;
            self.outputs.push(Output::Ack {
                feed: reader.feed.clone(),
                seq,
            });
        }
    }

    fn on_mark(&mut self, feed: &str, numbers: usize, said: Mark) {
        let Some(reader) = self
            .readers
            .iter()
            .find(|reader| reader.feed.as_str() == feed)
        else {
            return self.complain(Some(feed), ErrorCode::UnknownFeed, UNKNOWN_FEED);
        };
        let refused = if reader.shared {
            Some((
                ErrorCode::ReadOnly,
                "everyone reads this feed: only a token with the claim broadcast answers for all",
            ))
        } else if numbers > SEQS_PER_FRAME_MAX {
            Some((
                ErrorCode::TooManySeqs,
                "a frame may name 256 numbers at most",
            ))
        } else if self.said_waiting >= SAID_WAITING_MAX {
            Some((
                ErrorCode::Busy,
                "wait for the answers to what was said before",
            ))
        } else {
            None
        };
        match refused {
            Some((code, message)) => self.complain(Some(feed), code, message),
            None => {
                self.said_waiting += 1;
                self.outputs.push(Output::Say {
                    feed: reader.feed.clone(),
                    said,
                });
            }
        }
    }

    /// Says what is due: who caught up, and which page to read next.
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
                self.outputs.push(Output::Send(caught_up.into()));
            }
            let (wanted, changes_after) = (reader.wanted(free), reader.changes_wanted());
            if !self.reading && (wanted > 0 || changes_after.is_some()) {
                self.reading = true;
                self.turn = index + 1;
                reader.asks();
                let (feed, after) = (reader.feed.clone(), reader.next.previous());
                self.outputs.push(Output::Read {
                    feed,
                    after,
                    wanted,
                    changes_after,
                });
            }
        }
    }

    /// Sends the hints that were kept and are now next; keeps none where there is no room, for Postgres has them.
    fn send_kept(&mut self, wall: OffsetDateTime) {
        for index in 0..self.readers.len() {
            while self.has_room() {
                let Some(notification) = self.readers[index].take_kept() else {
                    break;
                };
                self.send(index, &notification, wall);
            }
            if !self.has_room() {
                self.readers[index].forget_kept();
            }
        }
    }

    fn has_room(&self) -> bool {
        self.outstanding < self.rules.window
    }

    fn send(&mut self, index: usize, notification: &Arc<Notification>, wall: OffsetDateTime) {
        if notification.is_expired(wall) {
            return self.skip(index, notification.seq, SkipReason::Expired);
        }
        self.readers[index].sent(notification);
        self.outstanding += 1;
        self.frames_allowed = self
            .frames_allowed
            .saturating_add(FRAMES_PER_NOTIFICATION)
            .min(self.frames_saved_max);
        self.outputs
            .push(Output::Notification(notification.clone()));
    }

    fn skip(&mut self, index: usize, through: Seq, reason: SkipReason) {
        let reader = &mut self.readers[index];
        let frame = ServerFrame::Skipped {
            feed: &reader.feed,
            from: reader.next,
            through,
            reason,
        }
        .to_json();
        reader.next = through.next();
        self.outputs.push(Output::Send(frame.into()));
    }

    /// Counts a frame from the client; closes where there were too many.
    fn admit_frame(&mut self, now: Instant) -> bool {
        self.heard_at = now;
        let seconds = now
            .saturating_duration_since(self.frames_counted_at)
            .as_secs();
        if seconds > 0 {
            let earned =
                FRAMES_PER_SECOND.saturating_mul(u32::try_from(seconds).unwrap_or(u32::MAX));
            self.frames_allowed = self
                .frames_allowed
                .saturating_add(earned)
                .min(self.frames_saved_max);
            self.frames_counted_at = now;
        }
        match self.frames_allowed.checked_sub(1) {
            Some(left) => self.frames_allowed = left,
            None => self.close(Close::TooManyFrames {
                retry_after_ms: TOO_MANY_FRAMES_RETRY_MS,
            }),
        }
        !self.is_closed()
    }

    fn silent_at(&self) -> Instant {
        self.heard_at + self.rules.heartbeat * SILENT_HEARTBEATS_MAX
    }

    fn say(&mut self, frame: &ServerFrame<'_>) {
        self.outputs.push(Output::Send(frame.to_json().into()));
    }

    fn complain(&mut self, feed: Option<&str>, code: ErrorCode, message: &str) {
        self.say(&ServerFrame::Error {
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

    /// What this session knows is of a numbering that is over.
    fn end_epoch(&mut self) {
        self.close(Close::EpochChanged {
            retry_after_ms: self.ends.epoch_retry_ms,
        });
    }

    fn is_closed(&self) -> bool {
        matches!(self.outputs.last(), Some(Output::Close(_)))
    }
}

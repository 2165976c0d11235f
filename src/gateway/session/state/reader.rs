//! The place of a session in one feed: the numbers that were sent, and the newest numbers that are
//! known. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Sent, Start};
use crate::model::feed::{Feed, Newest, Seq, Version};
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::model::page::Page;

/// Most hints kept while a page is being read. They save a read if events arrive all the time.
const KEPT_MAX: usize = 32;
/// Most bytes of the frames of these hints, beyond the newest hint.
const KEPT_BYTES_MAX: usize = 256 * 1024;
/// The list of unacked notifications shrinks if less than this part of its capacity is used.
const SHRUNK_BELOW: usize = 8;

#[derive(Debug)]
pub(super) struct FeedReader {
    pub(super) feed: Feed,
    pub(super) acked: Seq,
    pub(super) next: Seq,
    pub(super) last: Seq,
    /// The value of `last` when the last read began.
    last_at_read: Seq,
    /// The newest number at connect, until `caught_up` is sent.
    stored_at_connect: Option<Seq>,
    /// The notifications that are sent and not acknowledged, at most a window.
    unacked: VecDeque<Sent>,
    /// Hints without a gap that cannot be sent yet.
    kept: VecDeque<Arc<Notification>>,
    version: Version,
    newest_version: Version,
    /// The values of both when the last read began.
    version_at_read: Version,
    newest_version_at_read: Version,
    /// Notifications up to this number may have been rendered before the mark of this version,
    /// which was sent. A page of this version or a later one has them as they are now.
    outdated: (Seq, Version),
    /// Everyone reads the feed, so the client may not mark its notifications.
    pub(super) shared: bool,
}

impl FeedReader {
    pub(super) fn new(start: Start) -> Self {
        Self {
            feed: start.feed,
            acked: start.acked,
            next: start.after.next(),
            last: start.last,
            last_at_read: start.last,
            stored_at_connect: Some(start.last),
            unacked: VecDeque::new(),
            kept: VecDeque::new(),
            version: start.version,
            newest_version: start.newest_version,
            version_at_read: start.version,
            newest_version_at_read: start.newest_version,
            // A late hint may be older than a mark that was stored before the session began.
            outdated: if start.newest_version > Version::ZERO {
                (start.last, start.newest_version)
            } else {
                Default::default()
            },
            shared: start.shared,
        }
    }

    pub(super) fn raise_newest(&mut self, newest: Newest) {
        self.last = self.last.max(newest.seq);
        self.newest_version = self.newest_version.max(newest.version);
    }

    /// Returns whether a mark is the next one to send, and records it.
    pub(super) fn take_state(&mut self, state: &StateFrame) -> bool {
        self.newest_version = self.newest_version.max(state.version);
        if state.version != self.version.next() {
            return false;
        }
        self.version = state.version;
        if state.highest >= self.next {
            self.drop_kept();
            self.outdated = (self.outdated.0.max(state.highest), state.version);
        }
        true
    }

    /// Returns the marks of a page that are to be sent. If the next version is missing, it was
    /// deleted: the client sees the gap and fetches the history again.
    pub(super) fn take_states(&mut self, page: &Page) -> Vec<Arc<StateFrame>> {
        if let Some(oldest) = page.states.first()
            && oldest.version > self.version.next()
        {
            self.version = Version::new(oldest.version.get() - 1).unwrap_or_default();
        }
        let taken: Vec<_> = page
            .states
            .iter()
            .filter(|state| self.take_state(state))
            .cloned()
            .collect();
        // Versions that are not stored are not read again: hints may name them, or they were
        // deleted.
        if self.newest_version == self.newest_version_at_read {
            self.newest_version = self.version.max(page.version);
        }
        if page.states.is_empty() && self.version_at_read < self.newest_version_at_read {
            self.version = self.version.max(page.version);
        }
        taken
    }

    /// Whether the session sent marks that the database does not have.
    pub(super) fn is_ahead_of(&self, page: &Page) -> bool {
        page.version < self.version_at_read
    }

    pub(super) fn begin_read(&mut self) {
        self.last_at_read = self.last;
        self.version_at_read = self.version;
        self.newest_version_at_read = self.newest_version;
    }

    /// The version to read marks after, if some are missing.
    pub(super) fn states_wanted(&self) -> Option<Version> {
        (self.version < self.newest_version).then_some(self.version)
    }

    /// Whether a page has this notification as it was before a mark that was sent.
    pub(super) fn is_outdated(&self, seq: Seq, page: &Page) -> bool {
        let (through, version) = self.outdated;
        seq <= through && page.version < version
    }

    /// Keeps a hint, unless it was sent or may be outdated.
    pub(super) fn keep(&mut self, notification: Arc<Notification>) {
        let seq = notification.seq;
        self.last = self.last.max(seq);
        if seq < self.next
            || seq <= self.outdated.0
            || self.kept.back().is_some_and(|newest| seq <= newest.seq)
        {
            return;
        }
        if self
            .kept
            .back()
            .is_some_and(|newest| newest.seq.next() != seq)
        {
            self.kept.clear();
        }
        let bytes = |kept: &VecDeque<Arc<Notification>>| {
            kept.iter().map(|hint| hint.frame.len()).sum::<usize>()
        };
        while self.kept.len() >= KEPT_MAX || bytes(&self.kept) > KEPT_BYTES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(notification);
    }

    pub(super) fn take_kept(&mut self) -> Option<Arc<Notification>> {
        while self
            .kept
            .front()
            .is_some_and(|oldest| oldest.seq < self.next)
        {
            self.kept.pop_front();
        }
        self.kept.pop_front_if(|oldest| oldest.seq == self.next)
    }

    pub(super) fn drop_kept(&mut self) {
        self.kept = VecDeque::new();
    }

    /// Lowers the newest number after an empty page. Otherwise the session would read the same page
    /// again and again.
    pub(super) fn lower_last(&mut self, last: Seq) {
        if self.last == self.last_at_read {
            self.last = last;
        }
    }

    pub(super) fn push_sent(&mut self, notification: &Notification) {
        let Notification { seq, time, .. } = *notification;
        self.unacked.push_back(Sent {
            seq,
            time,
            trace: None,
        });
        self.next = seq.next();
    }

    /// Takes the notifications up to `seq` out of the window.
    pub(super) fn release(&mut self, seq: Seq) -> Vec<Sent> {
        let released = self.unacked.partition_point(|unacked| unacked.seq <= seq);
        let released: Vec<_> = self.unacked.drain(..released).collect();
        // An idle session must not keep the memory of a full window.
        if self.unacked.len() < self.unacked.capacity() / SHRUNK_BELOW {
            self.unacked.shrink_to(2 * self.unacked.len());
        }
        released
    }

    pub(super) fn unacked(&mut self, seq: Seq) -> Option<&mut Sent> {
        let place = self
            .unacked
            .binary_search_by_key(&seq, |sent| sent.seq)
            .ok()?;
        self.unacked.get_mut(place)
    }

    /// The number of `caught_up`, once, when it is due.
    pub(super) fn take_caught_up(&mut self) -> Option<Seq> {
        self.stored_at_connect
            .take_if(|stored| *stored < self.next)
            .map(|_| self.next.previous())
    }

    /// Number of notifications to read next: those that are missing, and at most `room`.
    pub(super) fn wanted(&self, room: usize) -> usize {
        usize::try_from(self.last.get() - self.next.get() + 1)
            .unwrap_or(0)
            .min(room)
    }
}

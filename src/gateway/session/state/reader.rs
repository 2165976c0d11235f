//! A session's place in one feed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Sent, Start};
use crate::model::feed::{Feed, Seq, Version};
use crate::model::mark::StateFrame;
use crate::model::notification::{Newest, Notification, Page};

/// Most hints kept while a page is being read, so that a session which catches up under a live flow need not read again.
const KEPT_MAX: usize = 32;
/// Most bytes of their frames, beyond the newest.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// The list of what was sent shrinks when less than one in so many of its places are used.
const SHRUNK_BELOW: usize = 8;

/// What was sent of a feed, and what is known of it.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) feed: Feed,
    /// The highest number acknowledged.
    pub(super) acked: Seq,
    /// The next number to send.
    pub(super) next: Seq,
    /// The newest number known to be stored.
    pub(super) last: Seq,
    /// The same when the last page was asked for.
    last_when_asked: Seq,
    /// What was newest at connect, until `caught_up` was said.
    stored_at_connect: Option<Seq>,
    /// What was sent and not acknowledged, at most a window of them.
    unacked: VecDeque<Sent>,
    /// A gapless run of hints that cannot be sent yet.
    kept: VecDeque<Arc<Notification>>,
    /// The newest change that was sent, and the newest known.
    version: Version,
    newest_version: Version,
    /// The same when the last page was asked for.
    version_when_asked: Version,
    newest_version_when_asked: Version,
    /// Notifications up to this one may have been rendered before the change that was sent already: a page that is as new as
    /// that change has them as they are now.
    outdated: (Seq, Version),
    /// Read by everyone: nobody's to answer for all.
    pub(super) shared: bool,
}

impl Reader {
    pub(super) fn new(start: Start) -> Self {
        Self {
            feed: start.feed,
            acked: start.acked,
            next: start.after.next(),
            last: start.last,
            last_when_asked: start.last,
            stored_at_connect: Some(start.last),
            unacked: VecDeque::new(),
            kept: VecDeque::new(),
            version: start.version,
            newest_version: start.newest_version,
            version_when_asked: start.version,
            newest_version_when_asked: start.newest_version,
            // What was stored before may have been changed before, too: a hint of it may be late.
            outdated: if start.newest_version > Version::ZERO {
                (start.last, start.newest_version)
            } else {
                Default::default()
            },
            shared: start.shared,
        }
    }

    /// Notes how far the feed is known to have grown.
    pub(super) fn grown(&mut self, newest: Newest) {
        self.last = self.last.max(newest.seq);
        self.newest_version = self.newest_version.max(newest.version);
    }

    /// Whether a change is the next to be sent; notes it.
    pub(super) fn take_change(&mut self, change: &StateFrame) -> bool {
        self.newest_version = self.newest_version.max(change.version);
        if change.version != self.version.next() {
            return false;
        }
        self.version = change.version;
        if change.highest >= self.next {
            self.forget_kept();
            self.outdated = (self.outdated.0.max(change.highest), change.version);
        }
        true
    }

    /// Notes the changes of a page. Where it has none that is next, they are not kept any more: the client sees the gap, and
    /// looks at the history again.
    pub(super) fn take_changes(&mut self, page: &Page) -> Vec<Arc<StateFrame>> {
        if let Some(oldest) = page.changes.first()
            && oldest.version > self.version.next()
        {
            self.version = Version::new(oldest.version.get() - 1).unwrap_or_default();
        }
        let taken: Vec<_> = page
            .changes
            .iter()
            .filter(|change| self.take_change(change))
            .cloned()
            .collect();
        // Changes that are not stored are forgotten, as numbers are: those that are only announced, and those that are gone.
        if self.newest_version == self.newest_version_when_asked {
            self.newest_version = self.version.max(page.version);
        }
        if page.changes.is_empty() && self.version_when_asked < self.newest_version_when_asked {
            self.version = self.version.max(page.version);
        }
        taken
    }

    /// Whether the client was told of changes that are not stored.
    pub(super) fn is_ahead_of(&self, page: &Page) -> bool {
        page.version < self.version_when_asked
    }

    /// Notes that a page is asked for.
    pub(super) fn asks(&mut self) {
        self.last_when_asked = self.last;
        self.version_when_asked = self.version;
        self.newest_version_when_asked = self.newest_version;
    }

    /// The version to read changes after, where some were missed.
    pub(super) fn changes_wanted(&self) -> Option<Version> {
        (self.version < self.newest_version).then_some(self.version)
    }

    /// Whether a page has this notification as it was before a change that was sent.
    pub(super) fn is_outdated(&self, seq: Seq, page: &Page) -> bool {
        let (through, version) = self.outdated;
        seq <= through && page.version < version
    }

    /// Notes a hint.
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

    /// The hint that is next, if it is there.
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

    pub(super) fn forget_kept(&mut self) {
        self.kept = VecDeque::new();
    }

    /// Notes a page that has nothing to send. Where it was asked for numbers that are not stored, they are forgotten, or the
    /// same page would be read again and again.
    pub(super) fn found_nothing(&mut self, last: Seq) {
        if self.last == self.last_when_asked {
            self.last = last;
        }
    }

    /// Notes that the next number was sent.
    pub(super) fn sent(&mut self, notification: &Notification) {
        let Notification { seq, time, .. } = *notification;
        self.unacked.push_back(Sent {
            seq,
            time,
            origin: None,
        });
        self.next = seq.next();
    }

    /// Takes an ack up to `seq`, and gives what it was for: so much room it makes in the window.
    pub(super) fn release(&mut self, seq: Seq) -> impl Iterator<Item = Sent> {
        let released = self.unacked.partition_point(|unacked| unacked.seq <= seq);
        let released: Vec<_> = self.unacked.drain(..released).collect();
        // A window that was full once must not stay allocated with an idle session.
        if self.unacked.len() < self.unacked.capacity() / SHRUNK_BELOW {
            self.unacked.shrink_to(2 * self.unacked.len());
        }
        released.into_iter()
    }

    /// What was sent with this number, if it is not acknowledged yet.
    pub(super) fn unacked(&mut self, seq: Seq) -> Option<&mut Sent> {
        let place = self
            .unacked
            .binary_search_by_key(&seq, |sent| sent.seq)
            .ok()?;
        self.unacked.get_mut(place)
    }

    /// The number that `caught_up` is to name, once.
    pub(super) fn take_caught_up(&mut self) -> Option<Seq> {
        self.stored_at_connect
            .take_if(|stored| *stored < self.next)
            .map(|_| self.next.previous())
    }

    /// How many notifications to read next: what is missing, as far as there is room for it.
    pub(super) fn wanted(&self, room: usize) -> usize {
        usize::try_from(self.last.get() - self.next.get() + 1)
            .unwrap_or(0)
            .min(room)
    }
}

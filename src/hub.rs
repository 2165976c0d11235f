//! Which sessions of this replica read which feed. It wakes them and keeps nothing: what an inbox has no room for is only
//! remembered as a number, and the session reads it from Postgres.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::change::Change;
use crate::feed::Feed;
use crate::notification::{Newest, Notification};

/// Most hints that wait in an inbox; a session that is that far behind reads pages, which is cheaper.
const INBOX_HINTS_MAX: usize = 64;
/// Most bytes of frames that wait in an inbox, beyond the first: large events are read from Postgres by who is slow.
const INBOX_BYTES_MAX: usize = 256 * 1024;
/// Most changes that wait in an inbox; past that the session reads them.
const INBOX_CHANGES_MAX: usize = 64;

/// Feed → sessions.
#[derive(Debug, Default)]
pub struct Hub {
    /// Held for a lookup and a push an inbox, never across an await: a plain mutex is the fastest there is for that.
    feeds: Mutex<HashMap<Feed, Readers>>,
}

/// The sessions that read one feed.
#[derive(Debug, Default)]
struct Readers {
    inboxes: Vec<Arc<Inbox>>,
    /// The highest numbers they were told of: the sweep wakes nobody for what is not new.
    announced: Newest,
}

impl Hub {
    /// Adds a session to its feeds until the registration is dropped. Register first, then read: what is stored in
    /// between is in the inbox.
    pub fn register(self: &Arc<Self>, feeds: Vec<Feed>) -> Registration {
        let inbox = Arc::new(Inbox::default());
        let mut sessions = lock(&self.feeds);
        for feed in &feeds {
            sessions.entry(feed.clone()).or_default().inboxes.push(inbox.clone());
        }
        drop(sessions);
        Registration { hub: self.clone(), feeds, inbox }
    }

    /// Wakes the sessions of these notifications' feeds.
    pub fn announce(&self, notifications: &[Arc<Notification>]) {
        let mut sessions = lock(&self.feeds);
        for notification in notifications {
            let Some(readers) = sessions.get_mut(&notification.feed) else { continue };
            readers.announced.seq = readers.announced.seq.max(notification.seq);
            for inbox in &readers.inboxes {
                inbox.put(notification);
            }
        }
    }

    /// Wakes the sessions of feeds of which people said something.
    pub fn announce_changes(&self, changes: &[Arc<Change>]) {
        let mut sessions = lock(&self.feeds);
        for change in changes {
            let Some(readers) = sessions.get_mut(&change.feed) else { continue };
            readers.announced.version = readers.announced.version.max(change.version);
            for inbox in &readers.inboxes {
                inbox.put_change(change);
            }
        }
    }

    /// Wakes the sessions of feeds that are known to have grown, without what grew; not those that know it.
    pub fn announce_newest(&self, newest: &[(Feed, Newest)]) {
        let mut sessions = lock(&self.feeds);
        for (feed, newest) in newest {
            let Some(readers) = sessions.get_mut(feed) else { continue };
            let announced = readers.announced.max(*newest);
            if announced != readers.announced {
                readers.announced = announced;
                for inbox in &readers.inboxes {
                    inbox.put_newest(feed, *newest);
                }
            }
        }
    }

    /// The feeds that have a session here.
    pub fn feeds(&self) -> Vec<Feed> {
        lock(&self.feeds).keys().cloned().collect()
    }
}

/// A session's place in the hub; leaves when dropped.
#[derive(Debug)]
pub struct Registration {
    hub: Arc<Hub>,
    feeds: Vec<Feed>,
    inbox: Arc<Inbox>,
}

impl Registration {
    /// Where the hints wait.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = lock(&self.hub.feeds);
        for feed in &self.feeds {
            if let Some(readers) = sessions.get_mut(feed) {
                readers.inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
                if readers.inboxes.is_empty() {
                    sessions.remove(feed);
                }
            }
        }
    }
}

/// What waits for one session.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// What was announced since the session last looked.
#[derive(Debug, Default)]
pub struct Waiting {
    /// In the order announced.
    pub hints: Vec<Arc<Notification>>,
    /// Bytes of their frames.
    bytes: usize,
    /// What people said, in the order announced; after the hints, which may be older.
    pub changes: Vec<Arc<Change>>,
    /// Feeds known to have grown, by what did not fit or was not given.
    pub newest: Vec<(Feed, Newest)>,
    /// Frames that reply to this session alone, one list for each thing that it said.
    pub replies: Vec<Vec<Utf8Bytes>>,
}

impl Inbox {
    /// Returns when something may be waiting. Losing this future in a `select!` loses no wake-up.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Takes what waits.
    pub fn take(&self) -> Waiting {
        std::mem::take(&mut lock(&self.waiting))
    }

    fn put(&self, notification: &Arc<Notification>) {
        let mut waiting = lock(&self.waiting);
        if waiting.hints.len() < INBOX_HINTS_MAX && waiting.bytes < INBOX_BYTES_MAX {
            waiting.bytes += notification.frame.len();
            waiting.hints.push(notification.clone());
        } else {
            waiting.raise(&notification.feed, Newest { seq: notification.seq, ..Newest::default() });
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn put_change(&self, change: &Arc<Change>) {
        let mut waiting = lock(&self.waiting);
        if waiting.changes.len() < INBOX_CHANGES_MAX {
            waiting.changes.push(change.clone());
        } else {
            waiting.raise(&change.feed, Newest { version: change.version, ..Newest::default() });
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn put_newest(&self, feed: &Feed, newest: Newest) {
        lock(&self.waiting).raise(feed, newest);
        self.wake.notify_one();
    }

    /// Replies to something that this session said. It says only so much before it gets a reply, which bounds what waits.
    pub fn put_reply(&self, frames: Vec<Utf8Bytes>) {
        lock(&self.waiting).replies.push(frames);
        self.wake.notify_one();
    }
}

impl Waiting {
    /// One entry a feed, and a session reads few feeds: bounded.
    fn raise(&mut self, feed: &Feed, more: Newest) {
        match self.newest.iter_mut().find(|(known, _)| known == feed) {
            Some((_, newest)) => *newest = newest.max(more),
            None => self.newest.push((feed.clone(), more)),
        }
    }
}

/// A panic while holding one of these locks cannot leave half a change: they are single pushes and takes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

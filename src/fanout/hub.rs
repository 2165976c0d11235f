//! Which sessions of this replica read which feed. It wakes them and keeps nothing: what an inbox has no room for is only
//! remembered as a number, and the session reads it from Postgres.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::model::feed::{Epoch, Feed};
use crate::model::mark::StateFrame;
use crate::model::notification::{Newest, Notification};
use crate::store::epoch::known::Epochs;

/// Most hints that wait in an inbox; a session that is that far behind reads pages, which is cheaper.
const INBOX_HINTS_MAX: usize = 64;
/// Most bytes of frames that wait in an inbox, beyond the first: large events are read from Postgres by who is slow.
const INBOX_BYTES_MAX: usize = 256 * 1024;
/// Most changes that wait in an inbox; past that the session reads them.
const INBOX_CHANGES_MAX: usize = 64;

/// Feed → sessions.
#[derive(Debug, Default)]
pub struct Hub {
    /// Held for lookups only, never while sessions are woken or across an await: ingest of every feed needs it.
    sessions: Mutex<Sessions>,
    epochs: Arc<Epochs>,
}

#[derive(Debug, Default)]
struct Sessions {
    feeds: HashMap<Feed, Readers>,
    /// The epoch of all numbers in `feeds`.
    epoch: Option<Epoch>,
}

/// The sessions that read one feed.
#[derive(Debug, Default)]
struct Readers {
    places: Places,
    /// The places that are empty; a new session takes one of these first.
    empty: Vec<usize>,
    /// The highest numbers that they were told of: the sweep wakes them only for news.
    announced: Newest,
}

/// The inbox of each session at a place that it keeps, so that it leaves without a search. An announcement shares them
/// while it wakes the sessions; if a session comes or goes meanwhile, that one copies them.
type Places = Arc<Vec<Option<Arc<Inbox>>>>;

impl Hub {
    /// Takes the present epoch from there.
    pub fn new(epochs: Arc<Epochs>) -> Self {
        Self {
            epochs,
            ..Self::default()
        }
    }

    /// Adds a session to its feeds until the registration is dropped. Register first, then read: the inbox has whatever
    /// is stored in between.
    pub fn register(self: &Arc<Self>, feeds: Vec<Feed>) -> Registration {
        let inbox = Arc::new(Inbox::default());
        let mut sessions = self.of_the_present_epoch();
        let enter = |feed: Feed| {
            let place = sessions
                .feeds
                .entry(feed.clone())
                .or_default()
                .enter(inbox.clone());
            (feed, place)
        };
        let places = feeds.into_iter().map(enter).collect();
        drop(sessions);
        Registration {
            hub: self.clone(),
            places,
            inbox,
        }
    }

    /// Wakes the sessions of these notifications' feeds. Drops them if they were not stored in the present epoch.
    pub fn announce(&self, epoch: &Epoch, notifications: &[Arc<Notification>]) {
        let newest = |notification: &Arc<Notification>| Newest {
            seq: notification.seq,
            ..Newest::default()
        };
        for told in self.tell(epoch, notifications, |notification| {
            (&notification.feed, newest(notification))
        }) {
            told.inboxes().for_each(|inbox| inbox.put(epoch, told.of));
        }
    }

    /// Wakes the sessions of feeds with new changes. Drops them if they are not of the present epoch.
    pub fn publish_states(&self, epoch: &Epoch, changes: &[Arc<StateFrame>]) {
        let newest = |change: &Arc<StateFrame>| Newest {
            version: change.version,
            ..Newest::default()
        };
        for told in self.tell(epoch, changes, |change| (&change.feed, newest(change))) {
            told.inboxes()
                .for_each(|inbox| inbox.put_change(epoch, told.of));
        }
    }

    /// Wakes the sessions of feeds that are known to have grown, without what grew; but not those that know it.
    /// Drops it if the numbers are not of the present epoch.
    pub fn publish_newest(&self, epoch: &Epoch, newest: &[(Feed, Newest)]) {
        for told in self
            .tell(epoch, newest, |(feed, newest)| (feed, *newest))
            .into_iter()
            .filter(|told| told.is_news)
        {
            let (feed, newest) = told.of;
            told.inboxes()
                .for_each(|inbox| inbox.put_newest(epoch, feed, *newest));
        }
    }

    /// The feeds that have a session here.
    pub fn feeds(&self) -> Vec<Feed> {
        lock(&self.sessions).feeds.keys().cloned().collect()
    }

    /// The present epoch, and the highest numbers that the sessions of each feed were told of in it.
    pub fn announced(&self) -> (Option<Epoch>, HashMap<Feed, Newest>) {
        let sessions = self.of_the_present_epoch();
        let announced = sessions
            .feeds
            .iter()
            .map(|(feed, readers)| (feed.clone(), readers.announced));
        (sessions.epoch.clone(), announced.collect())
    }

    /// Tells all sessions if the epoch has changed. Every other call does the same first.
    pub fn follow_epoch(&self) {
        drop(self.of_the_present_epoch());
    }

    /// Locks the sessions. If the epoch has changed, forgets the numbers of before, and tells every inbox under the same lock:
    /// an announcement of the earlier epoch that is under way finds each of them closed to it.
    fn of_the_present_epoch(&self) -> MutexGuard<'_, Sessions> {
        let mut sessions = lock(&self.sessions);
        if let Some(epoch) = self.epochs.current()
            && sessions.epoch.as_ref() != Some(&epoch)
        {
            for readers in sessions.feeds.values_mut() {
                readers.announced = Newest::default();
                readers
                    .places
                    .iter()
                    .flatten()
                    .for_each(|inbox| inbox.begin_epoch(&epoch));
            }
            sessions.epoch = Some(epoch);
        }
        sessions
    }

    /// Notes what is announced, and gives the sessions to wake. A session that comes later reads it from Postgres, because
    /// an announcement follows the commit.
    fn tell<'a, T>(
        &self,
        epoch: &Epoch,
        news: &'a [T],
        of: impl Fn(&'a T) -> (&'a Feed, Newest),
    ) -> Vec<Told<'a, T>> {
        let mut sessions = self.of_the_present_epoch();
        if sessions.epoch.as_ref() != Some(epoch) {
            return Vec::new();
        }
        let tell = |item| {
            let (feed, newest) = of(item);
            let readers = sessions.feeds.get_mut(feed)?;
            let before = readers.announced;
            readers.announced = before.max(newest);
            Some(Told {
                of: item,
                is_news: readers.announced != before,
                places: readers.places.clone(),
            })
        };
        news.iter().filter_map(tell).collect()
    }
}

/// An announcement with the sessions that get it.
struct Told<'a, T> {
    of: &'a T,
    /// It is higher than what the feed's sessions were told of before.
    is_news: bool,
    places: Places,
}

impl<T> Told<'_, T> {
    fn inboxes(&self) -> impl Iterator<Item = &Arc<Inbox>> {
        self.places.iter().flatten()
    }
}

impl Readers {
    fn enter(&mut self, inbox: Arc<Inbox>) -> usize {
        let places = Arc::make_mut(&mut self.places);
        if let Some(place) = self.empty.pop() {
            places[place] = Some(inbox);
            return place;
        }
        // Most feeds have one session.
        if places.is_empty() {
            places.reserve_exact(1);
        }
        places.push(Some(inbox));
        places.len() - 1
    }

    fn leave(&mut self, place: usize) {
        Arc::make_mut(&mut self.places)[place] = None;
        self.empty.push(place);
    }

    fn is_empty(&self) -> bool {
        self.empty.len() == self.places.len()
    }
}

/// A session's place in the hub; leaves when dropped.
#[derive(Debug)]
pub struct Registration {
    hub: Arc<Hub>,
    places: Vec<(Feed, usize)>,
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
        let mut sessions = lock(&self.hub.sessions);
        for (feed, place) in &self.places {
            if let Some(readers) = sessions.feeds.get_mut(feed) {
                readers.leave(*place);
                if readers.is_empty() {
                    sessions.feeds.remove(feed);
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
    pub changes: Vec<Arc<StateFrame>>,
    /// Feeds known to have grown, by what did not fit or was not given.
    pub newest: Vec<(Feed, Newest)>,
    /// Frames that reply to this session alone, one list for each thing that it said.
    pub replies: Vec<Vec<Utf8Bytes>>,
    /// The epoch that began while the session was registered; all that waits is of it.
    pub epoch: Option<Epoch>,
}

impl Inbox {
    /// Returns when something may be waiting. Losing this future in a `select!` loses no wake-up.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Takes what waits.
    pub fn take(&self) -> Waiting {
        let mut waiting = lock(&self.waiting);
        let epoch = waiting.epoch.clone();
        std::mem::replace(
            &mut waiting,
            Waiting {
                epoch,
                ..Waiting::default()
            },
        )
    }

    /// From now on only what is of this epoch is taken. What waits is dropped, but for replies to the session itself.
    fn begin_epoch(&self, epoch: &Epoch) {
        let mut waiting = lock(&self.waiting);
        let replies = std::mem::take(&mut waiting.replies);
        *waiting = Waiting {
            replies,
            epoch: Some(epoch.clone()),
            ..Waiting::default()
        };
        drop(waiting);
        self.wake.notify_one();
    }

    /// Locks what waits, if that may be of this epoch.
    fn waiting_of(&self, epoch: &Epoch) -> Option<MutexGuard<'_, Waiting>> {
        Some(lock(&self.waiting))
            .filter(|waiting| waiting.epoch.as_ref().is_none_or(|began| began == epoch))
    }

    fn put(&self, epoch: &Epoch, notification: &Arc<Notification>) {
        let Some(mut waiting) = self.waiting_of(epoch) else {
            return;
        };
        if waiting.hints.len() < INBOX_HINTS_MAX && waiting.bytes < INBOX_BYTES_MAX {
            waiting.bytes += notification.frame.len();
            waiting.hints.push(notification.clone());
        } else {
            waiting.raise(
                &notification.feed,
                Newest {
                    seq: notification.seq,
                    ..Newest::default()
                },
            );
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn put_change(&self, epoch: &Epoch, change: &Arc<StateFrame>) {
        let Some(mut waiting) = self.waiting_of(epoch) else {
            return;
        };
        if waiting.changes.len() < INBOX_CHANGES_MAX {
            waiting.changes.push(change.clone());
        } else {
            waiting.raise(
                &change.feed,
                Newest {
                    version: change.version,
                    ..Newest::default()
                },
            );
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn put_newest(&self, epoch: &Epoch, feed: &Feed, newest: Newest) {
        let Some(mut waiting) = self.waiting_of(epoch) else {
            return;
        };
        waiting.raise(feed, newest);
        drop(waiting);
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::model::feed::{Seq, Version};

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn the_cost_of_leaving_does_not_grow_with_the_sessions_of_a_feed() {
        // A scan of the feed's sessions would cost 64 times as much for each of them. The bound leaves room for a loaded machine.
        let (few, many) = (seconds_to_leave(500), seconds_to_leave(32_000));
        assert!(
            many < few * 20.0,
            "{few:e} s for each of 500 sessions, {many:e} s for each of 32,000"
        );
    }

    #[test]
    fn a_long_announcement_holds_up_no_other_feed_and_no_session() {
        let hub = hub();
        let registration = hub.register(vec![feed("all"), feed("merchant-1")]);
        let other = hub.register(vec![feed("merchant-2")]);
        let inbox = registration.inbox().clone();
        // The announcement stops at this inbox.
        let busy = lock(&inbox.waiting);
        let announcing = std::thread::spawn({
            let (hub, notification) = (hub.clone(), notification("all", 1));
            move || hub.announce(&epoch("e1"), &[notification])
        });
        let (done, is_done) = mpsc::channel();
        let meanwhile = std::thread::spawn({
            let hub = hub.clone();
            move || {
                while lock(&hub.sessions)
                    .feeds
                    .get(&feed("all"))
                    .is_none_or(|readers| readers.announced.seq == Seq::ZERO)
                {
                    std::thread::yield_now();
                }
                hub.announce(&epoch("e1"), &[notification("merchant-2", 1)]);
                drop(registration);
                drop(hub.register(vec![feed("all")]));
                done.send(()).ok();
            }
        });
        let waited = is_done.recv_timeout(PATIENCE);
        drop(busy);
        assert_eq!(
            waited,
            Ok(()),
            "another feed is announced, and sessions come and go"
        );
        announcing.join().unwrap();
        meanwhile.join().unwrap();
        assert_eq!(other.inbox().take().hints.len(), 1);
        assert_eq!(inbox.take().hints.len(), 1);
        assert_eq!(hub.feeds(), [feed("merchant-2")]);
    }

    #[test]
    fn nothing_of_an_earlier_epoch_waits_after_the_epoch_changed() {
        let hub = hub();
        let (before, all, replied) = (
            hub.register(vec![feed("all")]),
            feed("all"),
            Utf8Bytes::from("a reply"),
        );
        let told = hub.tell(&epoch("e1"), &[()], |()| {
            (
                &all,
                Newest {
                    seq: Seq::ZERO.next(),
                    ..Newest::default()
                },
            )
        });
        hub.announce(&epoch("e1"), &[notification("all", 1)]);
        before.inbox().put_reply(vec![replied.clone()]);
        hub.epochs.learn(&epoch("e2"));
        let after = hub.register(vec![feed("all")]);
        // An announcement that had found its sessions before.
        told.iter()
            .flat_map(Told::inboxes)
            .for_each(|inbox| inbox.put(&epoch("e1"), &notification("all", 1)));
        hub.announce(&epoch("e1"), &[notification("all", 2)]);
        hub.publish_newest(
            &epoch("e1"),
            &[(
                feed("all"),
                Newest {
                    seq: Seq::ZERO.next(),
                    ..Newest::default()
                },
            )],
        );
        assert_eq!(
            hub.announced(),
            (
                Some(epoch("e2")),
                HashMap::from([(feed("all"), Newest::default())])
            )
        );
        let waiting = before.inbox().take();
        assert_eq!(
            (waiting.hints.len(), waiting.newest.len(), waiting.epoch),
            (0, 0, Some(epoch("e2")))
        );
        assert_eq!(waiting.replies, [[replied]], "a reply is the session's own");
        assert_eq!(after.inbox().take().hints.len(), 0);
        hub.announce(&epoch("e2"), &[notification("all", 1)]);
        assert_eq!(
            [&before, &after].map(|session| session.inbox().take().hints.len()),
            [1, 1]
        );
    }

    #[test]
    fn sessions_that_come_and_go_leave_the_others_registered() {
        let hub = hub();
        let mut sessions: Vec<_> = (0..6).map(|_| hub.register(vec![feed("all")])).collect();
        drop(sessions.remove(4));
        drop(sessions.remove(1));
        sessions.push(hub.register(vec![feed("all"), feed("merchant-1")]));
        sessions.push(hub.register(vec![feed("all")]));
        sessions.push(hub.register(vec![feed("all")]));
        drop(sessions.remove(0));
        hub.announce(&epoch("e1"), &[notification("all", 1)]);
        hub.publish_newest(
            &epoch("e1"),
            &[(
                feed("all"),
                Newest {
                    seq: Seq::ZERO,
                    version: Version::ZERO.next(),
                },
            )],
        );
        for session in &sessions {
            let waiting = session.inbox().take();
            assert_eq!((waiting.hints.len(), waiting.newest.len()), (1, 1));
        }
        drop(sessions);
        assert_eq!(hub.feeds(), []);
    }

    fn hub() -> Arc<Hub> {
        let epochs = Arc::<Epochs>::default();
        epochs.learn(&epoch("e1"));
        Arc::new(Hub::new(epochs))
    }

    fn epoch(text: &str) -> Epoch {
        Epoch::parse(text).unwrap()
    }

    /// The least of several runs, for each session.
    fn seconds_to_leave(sessions: u32) -> f64 {
        let run = || {
            let hub = hub();
            let registrations: Vec<_> = (0..sessions)
                .map(|number| hub.register(vec![feed(&number.to_string()), feed("all")]))
                .collect();
            let begun = Instant::now();
            drop(registrations);
            begun.elapsed().as_secs_f64() / f64::from(sessions)
        };
        (0..7).map(|_| run()).fold(f64::INFINITY, f64::min)
    }

    fn feed(name: &str) -> Feed {
        Feed::parse(name).unwrap()
    }

    fn notification(name: &str, seq: i64) -> Arc<Notification> {
        let (feed, seq) = (feed(name), Seq::new(seq).unwrap());
        Arc::new(Notification {
            feed,
            seq,
            expires_at: None,
            time: None,
            origin: None,
            frame: "{}".into(),
        })
    }
}

//! The sessions of this replica by feed. Hints come in, and the hub puts them into the inbox of each session of their feed.

mod inbox;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::inbox::{Inbox, InboxContent};
use crate::model::feed::{Epoch, Feed, Newest};
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::store::epoch::known::Epochs;

/// The sessions of each feed.
#[derive(Debug, Default)]
pub struct Hub {
    /// Locked for lookups only, never while sessions are woken or across an await, because ingest of every feed needs it.
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
    /// Empty places, which new sessions take first.
    empty: Vec<usize>,
    /// The highest numbers published to them. A read of the newest numbers wakes them only for higher ones.
    published: Newest,
    /// Whether subscribers have acked all that is published, as far as a probe knows.
    is_delivered: bool,
}

/// The inbox of each session at a place that it keeps, so that it leaves without a search. A hint shares the list while it
/// wakes the sessions; if a session comes or goes meanwhile, it copies the list.
type Places = Arc<Vec<Option<Arc<Inbox>>>>;

impl Hub {
    /// Reads the present epoch from `epochs`.
    pub fn new(epochs: Arc<Epochs>) -> Self {
        Self {
            epochs,
            ..Self::default()
        }
    }

    /// Adds a session to its feeds until the registration is dropped. Register first and read then, so that the inbox has
    /// all that is stored in between.
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

    /// Wakes the sessions of new notifications. Drops the hints if `epoch` is not the present one.
    pub fn publish(&self, epoch: &Epoch, notifications: &[Arc<Notification>]) {
        let newest = |notification: &Arc<Notification>| Newest {
            seq: notification.seq,
            ..Newest::default()
        };
        for item in self.record(epoch, notifications, |notification| {
            (&notification.feed, newest(notification))
        }) {
            item.inboxes().for_each(|inbox| inbox.put(epoch, item.of));
        }
    }

    /// Wakes the sessions of new marks. Drops the hints if `epoch` is not the present one.
    pub fn publish_states(&self, epoch: &Epoch, changes: &[Arc<StateFrame>]) {
        let newest = |change: &Arc<StateFrame>| Newest {
            version: change.version,
            ..Newest::default()
        };
        for item in self.record(epoch, changes, |change| (&change.feed, newest(change))) {
            item.inboxes()
                .for_each(|inbox| inbox.put_state(epoch, item.of));
        }
    }

    /// Wakes the sessions of feeds with numbers above those published before; the sessions read pages. Drops the numbers if
    /// `epoch` is not the present one.
    pub fn publish_newest(&self, epoch: &Epoch, newest: &[(Feed, Newest)]) {
        for item in self
            .record(epoch, newest, |(feed, newest)| (feed, *newest))
            .into_iter()
            .filter(|item| item.is_news)
        {
            let (feed, newest) = item.of;
            item.inboxes()
                .for_each(|inbox| inbox.put_newest(epoch, feed, *newest));
        }
    }

    /// Whether the feed of this name has a session here.
    pub fn has_session(&self, feed: &str) -> bool {
        lock(&self.sessions).feeds.contains_key(feed)
    }

    /// The feeds that have a session here.
    pub fn feeds(&self) -> Vec<Feed> {
        lock(&self.sessions).feeds.keys().cloned().collect()
    }

    /// The present epoch, and the highest numbers published to those of these feeds that have a session here.
    pub fn published(&self, feeds: &[Feed]) -> (Option<Epoch>, HashMap<Feed, Newest>) {
        let sessions = self.of_the_present_epoch();
        let published = feeds
            .iter()
            .filter_map(|feed| Some((feed.clone(), sessions.feeds.get(feed)?.published)));
        (sessions.epoch.clone(), published.collect())
    }

    /// The feeds that may have notifications without an ack, with their published numbers.
    pub fn undelivered(&self) -> Vec<(Feed, Newest)> {
        let sessions = self.of_the_present_epoch();
        let undelivered = sessions
            .feeds
            .iter()
            .filter(|(_, readers)| !readers.is_delivered);
        undelivered
            .map(|(feed, readers)| (feed.clone(), readers.published))
            .collect()
    }

    /// Records that all notifications of a feed up to these numbers were acked.
    pub fn delivered(&self, feeds: &[(Feed, Newest)]) {
        let mut sessions = lock(&self.sessions);
        for (feed, published) in feeds {
            if let Some(readers) = sessions.feeds.get_mut(feed)
                && readers.published == *published
            {
                readers.is_delivered = true;
            }
        }
    }

    /// Wakes all sessions if the epoch has changed. Every other call does the same first.
    pub fn follow_epoch(&self) {
        drop(self.of_the_present_epoch());
    }

    /// Locks the sessions. If the epoch has changed, resets the numbers and every inbox under the
    /// same lock. So no inbox gets a hint of the earlier epoch that is being published.
    fn of_the_present_epoch(&self) -> MutexGuard<'_, Sessions> {
        let mut sessions = lock(&self.sessions);
        if let Some(epoch) = self.epochs.current()
            && sessions.epoch.as_ref() != Some(&epoch)
        {
            for readers in sessions.feeds.values_mut() {
                readers.published = Newest::default();
                readers.is_delivered = false;
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

    /// Records the numbers, and returns the sessions to wake. A session that registers later reads them from Postgres,
    /// because hints are published after the commit.
    fn record<'a, T>(
        &self,
        epoch: &Epoch,
        news: &'a [T],
        of: impl Fn(&'a T) -> (&'a Feed, Newest),
    ) -> Vec<Wakeup<'a, T>> {
        let mut sessions = self.of_the_present_epoch();
        if sessions.epoch.as_ref() != Some(epoch) {
            return Vec::new();
        }
        let record = |item| {
            let (feed, newest) = of(item);
            let readers = sessions.feeds.get_mut(feed)?;
            let before = readers.published;
            readers.published = before.max(newest);
            readers.is_delivered &= readers.published == before;
            Some(Wakeup {
                of: item,
                is_news: readers.published != before,
                places: readers.places.clone(),
            })
        };
        news.iter().filter_map(record).collect()
    }
}

/// A hint with the sessions that receive it.
struct Wakeup<'a, T> {
    of: &'a T,
    /// Its number is above those published to the feed before.
    is_news: bool,
    places: Places,
}

impl<T> Wakeup<'_, T> {
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

/// A session's place in the hub, until it is dropped.
#[derive(Debug)]
pub struct Registration {
    hub: Arc<Hub>,
    places: Vec<(Feed, usize)>,
    inbox: Arc<Inbox>,
}

impl Registration {
    /// The inbox of the session.
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

/// A poisoned lock is used again: the code under these locks does single pushes and takes, which a panic cannot split.
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
    fn leaving_costs_the_same_however_many_sessions_a_feed_has() {
        // A scan of the feed's sessions would cost 64 times as much. The bound leaves room for a loaded machine.
        let (few, many) = (seconds_to_leave(500), seconds_to_leave(32_000));
        assert!(
            many < few * 20.0,
            "{few:e} s for each of 500 sessions, {many:e} s for each of 32,000"
        );
    }

    #[test]
    fn a_slow_publish_delays_no_other_feed_and_no_session() {
        let hub = hub();
        let registration = hub.register(vec![feed("all"), feed("merchant-1")]);
        let other = hub.register(vec![feed("merchant-2")]);
        let inbox = registration.inbox().clone();
        // The publish waits for this inbox.
        let busy = inbox.lock();
        let publishing = std::thread::spawn({
            let (hub, notification) = (hub.clone(), notification("all", 1));
            move || hub.publish(&epoch("e1"), &[notification])
        });
        let (done, is_done) = mpsc::channel();
        let meanwhile = std::thread::spawn({
            let hub = hub.clone();
            move || {
                while lock(&hub.sessions)
                    .feeds
                    .get(&feed("all"))
                    .is_none_or(|readers| readers.published.seq == Seq::ZERO)
                {
                    std::thread::yield_now();
                }
                hub.publish(&epoch("e1"), &[notification("merchant-2", 1)]);
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
            "another feed receives hints, and sessions come and go"
        );
        publishing.join().unwrap();
        meanwhile.join().unwrap();
        assert_eq!(other.inbox().take().hints.len(), 1);
        assert_eq!(inbox.take().hints.len(), 1);
        assert_eq!(hub.feeds(), [feed("merchant-2")]);
    }

    #[test]
    fn hints_of_an_earlier_epoch_are_dropped() {
        let hub = hub();
        let (before, all, replied): (_, _, crate::model::frame_text::FrameText) = (
            hub.register(vec![feed("all")]),
            feed("all"),
            "a reply".into(),
        );
        let recorded = hub.record(&epoch("e1"), &[()], |()| {
            (
                &all,
                Newest {
                    seq: Seq::ZERO.next(),
                    ..Newest::default()
                },
            )
        });
        hub.publish(&epoch("e1"), &[notification("all", 1)]);
        before.inbox().put_reply(vec![replied.clone()]);
        hub.epochs.learn(&epoch("e2"));
        let after = hub.register(vec![feed("all")]);
        // A publish that read the list of sessions before the epoch changed.
        recorded
            .iter()
            .flat_map(Wakeup::inboxes)
            .for_each(|inbox| inbox.put(&epoch("e1"), &notification("all", 1)));
        hub.publish(&epoch("e1"), &[notification("all", 2)]);
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
            hub.published(&[feed("all")]),
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
        assert_eq!(waiting.replies, [[replied]], "replies are kept");
        assert_eq!(after.inbox().take().hints.len(), 0);
        hub.publish(&epoch("e2"), &[notification("all", 1)]);
        assert_eq!(
            [&before, &after].map(|session| session.inbox().take().hints.len()),
            [1, 1]
        );
    }

    #[test]
    fn sessions_that_leave_keep_the_others_registered() {
        let hub = hub();
        let mut sessions: Vec<_> = (0..6).map(|_| hub.register(vec![feed("all")])).collect();
        drop(sessions.remove(4));
        drop(sessions.remove(1));
        sessions.push(hub.register(vec![feed("all"), feed("merchant-1")]));
        sessions.push(hub.register(vec![feed("all")]));
        sessions.push(hub.register(vec![feed("all")]));
        drop(sessions.remove(0));
        hub.publish(&epoch("e1"), &[notification("all", 1)]);
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

    /// The fastest of several runs, per session.
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
            trace: None,
            frame: "{}".into(),
        })
    }
}

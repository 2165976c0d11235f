//! The devices with a session on this replica, and the changes that are not written. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::store::cursors::CursorKey;
use crate::store::presence::{Present, Stated};

/// Time within which the next poll of a client arrives, so that its device stays online.
const RETURN_WITHIN: Duration = Duration::from_secs(10);
/// Most devices whose change waits for the database. Beyond it, all are forgotten, and the gateway
/// begins again with the sessions that it has then. More than the sessions of a replica, so that only
/// clients that come and go while the database is away cause it.
const WAITING_MAX: usize = 500_000;
/// Most states of devices elsewhere that wait for the database. Further ones are dropped.
const STATES_MAX: usize = 10_000;

/// The devices and their unwritten changes.
#[derive(Debug, Default)]
pub(super) struct Book {
    devices: HashMap<CursorKey, Here>,
    /// The keys whose rows differ from `devices`.
    waiting: BTreeSet<CursorKey>,
    is_overfull: bool,
    /// States of devices without a session here.
    states: BTreeMap<CursorKey, Stated>,
    /// The ends of polls, with the time by which the next one should have come.
    polls: VecDeque<(Instant, CursorKey)>,
}

/// A device with a session here, or with a poll that ended a moment ago.
#[derive(Debug)]
struct Here {
    sessions: u32,
    connected_at: OffsetDateTime,
    stated: Option<Stated>,
    /// The time by which the next poll should come, if there is no session.
    returns_by: Option<Instant>,
}

/// The changes of one batch. Each key is in one list only.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) present: Vec<Present>,
    pub(super) gone: Vec<CursorKey>,
    pub(super) states: Vec<(CursorKey, Stated)>,
}

impl Change {
    pub(super) fn len(&self) -> usize {
        self.present.len() + self.gone.len() + self.states.len()
    }
}

impl Book {
    pub(super) fn arrive(&mut self, keys: impl Iterator<Item = CursorKey>, now: OffsetDateTime) {
        for key in keys {
            let is_new = match self.devices.get_mut(&key) {
                // The next poll of a device that is online changes nothing.
                Some(here) if here.sessions == 0 => {
                    (here.sessions, here.returns_by) = (1, None);
                    false
                }
                Some(here) => {
                    here.sessions += 1;
                    true
                }
                None => {
                    let here = Here {
                        sessions: 1,
                        connected_at: now,
                        stated: self.states.remove(&key),
                        returns_by: None,
                    };
                    self.devices.insert(key.clone(), here);
                    true
                }
            };
            if is_new {
                self.wait(key);
            }
        }
    }

    pub(super) fn leave(
        &mut self,
        keys: impl Iterator<Item = CursorKey>,
        returns: bool,
        now: Instant,
    ) {
        for key in keys {
            let Some(here) = self.devices.get_mut(&key) else {
                continue;
            };
            here.sessions = here.sessions.saturating_sub(1);
            if here.sessions == 0 && returns {
                let by = now + RETURN_WITHIN;
                here.returns_by = Some(by);
                self.polls.push_back((by, key));
                continue;
            }
            if here.sessions == 0 {
                self.devices.remove(&key);
            }
            self.wait(key);
        }
    }

    pub(super) fn report(&mut self, keys: impl Iterator<Item = CursorKey>, stated: Stated) {
        for key in keys {
            match self.devices.get_mut(&key) {
                Some(here) => {
                    let is_new = here.stated.is_none_or(|last| last.state != stated.state);
                    here.stated = Some(stated);
                    if is_new {
                        self.wait(key);
                    }
                }
                None if self.states.len() < STATES_MAX => _ = self.states.insert(key, stated),
                None => {}
            }
        }
    }

    /// The time at which the device of an ended poll goes offline.
    pub(super) fn returned_by(&self) -> Option<Instant> {
        self.polls.front().map(|(by, _)| *by)
    }

    /// Takes the changes of the next statement, at most `max`.
    pub(super) fn next(&mut self, max: usize, now: Instant) -> Option<Change> {
        self.end_polls(now);
        let mut change = Change::default();
        while change.len() < max
            && let Some(key) = self.waiting.pop_first()
        {
            match self.devices.get(&key) {
                Some(here) => change.present.push(Present {
                    sessions: i32::try_from(here.sessions.max(1)).unwrap_or(i32::MAX),
                    connected_at: here.connected_at,
                    stated: here.stated,
                    key,
                }),
                None => change.gone.push(key),
            }
        }
        while change.len() < max
            && let Some(state) = self.states.pop_first()
        {
            change.states.push(state);
        }
        (change.len() > 0).then_some(change)
    }

    /// Takes back a batch that was not written. Newer changes of its keys stay.
    pub(super) fn put_back(&mut self, change: Change) {
        let present = change.present.into_iter().map(|present| present.key);
        for key in present.chain(change.gone) {
            self.wait(key);
        }
        for (key, stated) in change.states {
            self.states.entry(key).or_insert(stated);
        }
    }

    /// Whether changes were forgotten, so that only a new id of the gateway makes its rows true.
    pub(super) fn is_overfull(&self) -> bool {
        self.is_overfull
    }

    /// No row of this gateway counts any more: all devices are to be written, and no end of a session.
    pub(super) fn begin_again(&mut self) {
        self.is_overfull = false;
        self.waiting = self.devices.keys().cloned().collect();
    }

    fn wait(&mut self, key: CursorKey) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting = BTreeSet::new();
            self.is_overfull = true;
        }
        if !self.is_overfull {
            self.waiting.insert(key);
        }
    }

    fn end_polls(&mut self, now: Instant) {
        while let Some((by, key)) = self.polls.pop_front_if(|(by, _)| *by <= now) {
            let is_due = |here: &Here| here.returns_by.is_some_and(|later| later <= by);
            if self.devices.get(&key).is_some_and(is_due) {
                self.devices.remove(&key);
                self.wait(key);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::model::feed::{Device, Feed, Subscriber};
    use crate::model::protocol::{CanRing, DeviceState};

    fn key(device: &str) -> CursorKey {
        CursorKey {
            feed: Feed::parse("m").unwrap(),
            subscriber: Subscriber::parse("m").unwrap(),
            device: Device::parse(device).unwrap(),
        }
    }

    fn keys(device: &str) -> impl Iterator<Item = CursorKey> {
        std::iter::once(key(device))
    }

    const WALL: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn stated(can_ring: CanRing) -> Stated {
        let visible = Some(true);
        let state = DeviceState { can_ring, visible };
        Stated { state, at: WALL }
    }

    /// The next batch: devices with their sessions, devices that went, states.
    fn next(book: &mut Book, now: Instant) -> (Vec<(String, i32)>, Vec<String>, usize) {
        let change = book.next(100, now).unwrap_or_default();
        let name = |key: &CursorKey| key.device.as_str().to_owned();
        let present = change.present.iter();
        (
            present.map(|one| (name(&one.key), one.sessions)).collect(),
            change.gone.iter().map(name).collect(),
            change.states.len(),
        )
    }

    #[test]
    fn sessions_of_a_device_are_counted_and_written_once() {
        let (mut book, now) = (Book::default(), Instant::now());
        for device in ["a", "b", "a"] {
            book.arrive(keys(device), WALL);
        }
        let both = vec![("a".into(), 2), ("b".into(), 1)];
        assert_eq!(next(&mut book, now), (both, vec![], 0));
        assert_eq!(next(&mut book, now), (vec![], vec![], 0));
        book.leave(keys("a"), false, now);
        book.leave(keys("b"), false, now);
        let left = (vec![("a".into(), 1)], vec!["b".into()], 0);
        assert_eq!(next(&mut book, now), left);
        book.begin_again();
        assert_eq!(next(&mut book, now), (vec![("a".into(), 1)], vec![], 0));
    }

    #[test]
    fn a_batch_that_failed_is_written_again_as_it_is_then() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.arrive(keys("a"), WALL);
        let failed = book.next(100, now).unwrap();
        book.leave(keys("a"), false, now);
        book.put_back(failed);
        assert_eq!(next(&mut book, now), (vec![], vec!["a".into()], 0));
    }

    #[test]
    fn a_poll_keeps_its_device_online_until_the_next_one() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.arrive(keys("a"), WALL);
        next(&mut book, now);
        book.leave(keys("a"), true, now);
        assert_eq!(next(&mut book, now), (vec![], vec![], 0));
        book.arrive(keys("a"), WALL);
        let later = now + RETURN_WITHIN;
        assert_eq!(next(&mut book, later), (vec![], vec![], 0));
        book.leave(keys("a"), true, later);
        assert_eq!(book.returned_by(), Some(later + RETURN_WITHIN));
        let end = later + RETURN_WITHIN;
        assert_eq!(next(&mut book, end), (vec![], vec!["a".into()], 0));
    }

    #[test]
    fn a_state_is_written_if_it_changed_or_if_its_session_is_elsewhere() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.arrive(keys("a"), WALL);
        next(&mut book, now);
        book.report(keys("a"), stated(CanRing::Muted));
        assert_eq!(next(&mut book, now).0, [("a".into(), 1)]);
        book.report(keys("a"), stated(CanRing::Muted));
        assert_eq!(next(&mut book, now), (vec![], vec![], 0));
        book.report(keys("elsewhere"), stated(CanRing::Yes));
        assert_eq!(next(&mut book, now), (vec![], vec![], 1));
    }

    #[test]
    fn changes_beyond_the_bound_are_forgotten_and_all_is_written_again() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.arrive(keys("stays"), WALL);
        for number in 0..=WAITING_MAX {
            let device = number.to_string();
            book.arrive(keys(&device), WALL);
            book.leave(keys(&device), false, now);
        }
        assert!(book.is_overfull() && book.waiting.is_empty());
        book.begin_again();
        assert!(!book.is_overfull());
        assert_eq!(next(&mut book, now), (vec![("stays".into(), 1)], vec![], 0));
    }
}

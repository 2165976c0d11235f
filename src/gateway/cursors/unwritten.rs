//! The acks that are not written: the highest number of each cursor. Acks come in, the acks of the
//! next write go out. No I/O.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Instant;

use super::highest::HighestAcks;
use crate::model::feed::{Epoch, Feed, Seq};
use crate::retry::Backoff;
use crate::store::cursors::CursorKey;

/// The acks, all of one epoch.
#[derive(Debug, Default)]
pub(super) struct UnwrittenAcks {
    /// Acks of an earlier epoch are dropped, because their numbers may belong to other
    /// notifications now.
    epoch: Option<Epoch>,
    /// Acks for the next write. They are ordered, so that writes lock rows in one order.
    waiting: BTreeMap<CursorKey, Seq>,
    /// The last key that left `waiting`. The next write begins after it and goes round, so that no ack
    /// waits longer because of its key.
    taken_through: Option<CursorKey>,
    /// Acks that are being written. A session that connects still needs them.
    writing: BTreeMap<CursorKey, Seq>,
    /// Acks that failed alone. Batches leave them out, so that no other ack fails with them.
    held: BTreeMap<CursorKey, HeldAck>,
    /// Acks that were written, for the rows of their feeds.
    highest: HighestAcks,
}

#[derive(Debug)]
struct HeldAck {
    seq: Seq,
    retry_at: Instant,
    backoff: Backoff,
}

impl UnwrittenAcks {
    pub(super) fn of(epoch: Epoch) -> Self {
        Self {
            epoch: Some(epoch),
            ..Self::default()
        }
    }

    pub(super) fn is_of(&self, epoch: &Epoch) -> bool {
        self.epoch.as_ref() == Some(epoch)
    }

    pub(super) fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// Adds an ack. Returns whether it waits for the next write.
    pub(super) fn add(&mut self, key: CursorKey, seq: Seq) -> bool {
        if let Some(held) = self.held.get_mut(&key) {
            held.seq = seq.max(held.seq);
            return false;
        }
        raise(&mut self.waiting, key, seq);
        true
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn newest(&self, key: &CursorKey) -> Option<Seq> {
        let held = self.held.get(key).map(|held| held.seq);
        self.waiting
            .get(key)
            .copied()
            .max(self.writing.get(key).copied())
            .max(held)
    }

    /// Returns the acks of the next statement. Those that the last statement did not write come
    /// first.
    pub(super) fn next_write(&mut self, acks_max: usize) -> Vec<(CursorKey, Seq)> {
        while self.writing.len() < acks_max
            && let Some((key, seq)) = self.take_waiting()
        {
            self.taken_through = Some(key.clone());
            raise(&mut self.writing, key, seq);
        }
        self.writing
            .iter()
            .map(|(key, seq)| (key.clone(), *seq))
            .collect()
    }

    fn take_waiting(&mut self) -> Option<(CursorKey, Seq)> {
        let after = match &self.taken_through {
            Some(key) => Bound::Excluded(key),
            None => Bound::Unbounded,
        };
        let mut later = self.waiting.range((after, Bound::Unbounded));
        match later.next() {
            Some((key, _)) => {
                let key = key.clone();
                self.waiting.remove_entry(&key)
            }
            None => self.waiting.pop_first(),
        }
    }

    /// The held acks that are due, the earliest first.
    pub(super) fn due(&self, now: Instant) -> Vec<(CursorKey, Seq)> {
        let mut due: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| held.retry_at <= now)
            .collect();
        due.sort_by_key(|(_, held)| held.retry_at);
        due.into_iter()
            .map(|(key, held)| (key.clone(), held.seq))
            .collect()
    }

    /// The time at which the writer has work although no ack waits.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let retry_at = self.held.values().map(|held| held.retry_at);
        retry_at.chain(self.highest.due_at()).min()
    }

    /// Takes feeds whose rows are raised now. Returns also whether more are due.
    pub(super) fn take_highest(&mut self, now: Instant) -> (Vec<(Feed, Seq)>, bool) {
        let due = self.highest.take_due(now);
        (
            due,
            self.highest.due_at().is_some_and(|due_at| due_at <= now),
        )
    }

    /// Puts feeds back whose rows could not be raised.
    pub(super) fn put_highest_back(&mut self, feeds: Vec<(Feed, Seq)>, now: Instant) {
        self.highest.add(feeds, now);
    }

    /// Removes acks that were written.
    pub(super) fn written(&mut self, acks: &[(CursorKey, Seq)], now: Instant) {
        self.remove(acks);
        let highest = acks.iter().map(|(key, seq)| (key.feed.clone(), *seq));
        self.highest.add(highest, now);
    }

    /// Removes acks that were written or dropped. A higher ack that was held meanwhile waits for
    /// the next write.
    pub(super) fn remove(&mut self, acks: &[(CursorKey, Seq)]) {
        for (key, seq) in acks {
            self.writing.remove(key);
            if let Some(held) = self.held.remove(key)
                && held.seq > *seq
            {
                raise(&mut self.waiting, key.clone(), held.seq);
            }
        }
    }

    /// Holds an ack that failed alone until its next try. Returns whether this was its first
    /// failure.
    pub(super) fn hold(&mut self, (key, seq): (CursorKey, Seq), now: Instant) -> bool {
        let seq = seq.max(self.newest(&key).unwrap_or_default());
        self.writing.remove(&key);
        self.waiting.remove(&key);
        let known = self.held.remove(&key);
        let is_first = known.is_none();
        let mut backoff = known.map(|held| held.backoff).unwrap_or_default();
        let retry_at = now + backoff.next_wait();
        self.held.insert(
            key,
            HeldAck {
                seq,
                retry_at,
                backoff,
            },
        );
        is_first
    }
}

fn raise(acks: &mut BTreeMap<CursorKey, Seq>, key: CursorKey, seq: Seq) {
    let newest = acks.entry(key).or_insert(seq);
    *newest = seq.max(*newest);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::feed::{Device, Feed, Subscriber};

    fn key(name: &str) -> CursorKey {
        CursorKey {
            feed: Feed::parse(name).unwrap(),
            subscriber: Subscriber::parse(name).unwrap(),
            device: Device::default(),
        }
    }

    fn ack(name: &str, seq: i64) -> (CursorKey, Seq) {
        (key(name), Seq::new(seq).unwrap())
    }

    fn unwritten(acks: &[(&str, i64)]) -> UnwrittenAcks {
        let mut unwritten = UnwrittenAcks::default();
        for (name, seq) in acks {
            let (key, seq) = ack(name, *seq);
            unwritten.add(key, seq);
        }
        unwritten
    }

    #[test]
    fn a_held_ack_is_left_out_of_batches_until_it_is_due() {
        let (now, mut unwritten) = (Instant::now(), unwritten(&[("a", 1), ("b", 2)]));
        assert_eq!(unwritten.next_write(10), [ack("a", 1), ack("b", 2)]);
        unwritten.add(key("a"), Seq::new(3).unwrap());
        assert!(unwritten.hold(ack("a", 1), now));
        assert_eq!(unwritten.next_write(10), [ack("b", 2)]);
        unwritten.remove(&[ack("b", 2)]);
        assert!(
            !unwritten.add(key("a"), Seq::new(4).unwrap()),
            "a held ack wakes the writer"
        );
        assert!(unwritten.next_write(10).is_empty());
        assert_eq!(unwritten.newest(&key("a")), Seq::new(4));
        assert!(unwritten.due(now).is_empty());
        assert_eq!(unwritten.due(now + Duration::from_secs(10)), [ack("a", 4)]);
        assert!(!unwritten.hold(ack("a", 4), now));
    }

    #[test]
    fn a_higher_ack_than_the_written_one_is_written_next() {
        let mut unwritten = unwritten(&[("a", 1)]);
        unwritten.hold(ack("a", 1), Instant::now());
        unwritten.add(key("a"), Seq::new(2).unwrap());
        unwritten.remove(&[ack("a", 1)]);
        assert_eq!((unwritten.wake_at(), unwritten.waiting_count()), (None, 1));
        assert_eq!(unwritten.next_write(10), [ack("a", 2)]);
    }

    #[test]
    fn acks_of_a_cursor_merge_into_the_highest() {
        let mut unwritten = unwritten(&[("a", 2), ("b", 5), ("a", 7), ("a", 3), ("b", 4)]);
        assert_eq!(unwritten.newest(&key("a")), Seq::new(7));
        assert_eq!(unwritten.next_write(10), [ack("a", 7), ack("b", 5)]);
        assert_eq!(unwritten.waiting_count(), 0);
    }

    #[test]
    fn one_write_has_a_bound_and_the_rest_waits() {
        let mut unwritten = unwritten(&[("a", 1), ("b", 2), ("c", 3)]);
        assert_eq!(unwritten.next_write(2), [ack("a", 1), ack("b", 2)]);
        assert_eq!(unwritten.waiting_count(), 1);
        unwritten.remove(&[ack("a", 1), ack("b", 2)]);
        assert_eq!(unwritten.next_write(2), [ack("c", 3)]);
        unwritten.remove(&[ack("c", 3)]);
        assert!(unwritten.next_write(2).is_empty());
        assert_eq!(unwritten.newest(&key("a")), None, "the database has it");
    }

    #[test]
    fn a_late_key_is_written_although_earlier_keys_keep_coming() {
        let mut unwritten = unwritten(&[("a", 1), ("b", 1), ("c", 1), ("z", 1)]);
        let mut written = Vec::new();
        for seq in 2..5 {
            let acks = unwritten.next_write(2);
            unwritten.remove(&acks);
            written.extend(acks.into_iter().map(|(key, _)| key));
            for name in ["a", "b", "c"] {
                unwritten.add(key(name), Seq::new(seq).unwrap());
            }
        }
        assert_eq!(written, ["a", "b", "c", "z", "a", "b"].map(key));
    }

    #[test]
    fn an_ack_during_a_write_is_written_next_and_a_failed_write_is_repeated() {
        let mut unwritten = unwritten(&[("a", 1)]);
        assert_eq!(unwritten.next_write(10), [ack("a", 1)]);
        unwritten.add(key("a"), Seq::new(2).unwrap());
        assert_eq!(unwritten.newest(&key("a")), Seq::new(2));
        assert_eq!(
            unwritten.next_write(10),
            [ack("a", 2)],
            "the first write failed"
        );
        unwritten.add(key("a"), Seq::new(3).unwrap());
        unwritten.remove(&[ack("a", 2)]);
        assert_eq!(unwritten.next_write(10), [ack("a", 3)]);
    }

    #[test]
    fn acks_of_an_earlier_epoch_are_not_of_this_one() {
        let (first, second) = (Epoch::parse("e1").unwrap(), Epoch::parse("e2").unwrap());
        let mut unwritten = UnwrittenAcks::of(first.clone());
        unwritten.add(key("a"), Seq::new(1).unwrap());
        assert!(unwritten.is_of(&first) && !unwritten.is_of(&second));
        assert!(
            !UnwrittenAcks::default().is_of(&first),
            "no epoch is known yet"
        );
    }

    #[test]
    fn a_held_ack_waits_longer_after_each_failure_up_to_a_bound() {
        let (now, mut unwritten) = (Instant::now(), unwritten(&[]));
        let waits: Vec<_> = (0..20)
            .map(|_| {
                unwritten.hold(ack("a", 1), now);
                unwritten.wake_at().unwrap() - now
            })
            .collect();
        assert!(
            waits[19] > waits[0] && waits[19] <= Duration::from_secs(5),
            "{waits:?}"
        );
    }
}

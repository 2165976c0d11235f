//! Feeds whose rows are damaged on disk.
//!
//! A statement that reads many feeds fails if Postgres cannot read one row. So the statement is split
//! until the damaged feed is alone in it, and that feed is then left out for some minutes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;
use crate::model::feed::Feed;

/// How long a damaged feed is left out of statements for many feeds.
const APART: Duration = Duration::from_secs(5 * 60);
/// Most feeds that are left out. Beyond that the whole table is damaged, and only splitting helps.
const FEEDS_MAX: usize = 10_000;

/// Items that are read together, in smaller parts after a failure.
#[derive(Debug)]
pub struct Halves<T> {
    waiting: VecDeque<Vec<T>>,
    splits_left: usize,
}

impl<T> Halves<T> {
    /// One part, which is split `splits_max` times at most.
    pub fn new(all: Vec<T>, splits_max: usize) -> Self {
        Self {
            waiting: VecDeque::from([all]),
            splits_left: splits_max,
        }
    }

    /// Returns the next part to read.
    pub fn take(&mut self) -> Option<Vec<T>> {
        self.waiting.pop_front()
    }

    /// Puts a part back that is to be read again next.
    pub fn put_back(&mut self, part: Vec<T>) {
        self.waiting.push_front(part);
    }

    /// Returns whether no part is left.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Halves a part that could not be read. Returns it if it cannot be split.
    pub fn split(&mut self, mut part: Vec<T>) -> Result<(), Vec<T>> {
        if part.len() <= 1 || self.splits_left == 0 {
            return Err(part);
        }
        self.splits_left -= 1;
        let second = part.split_off(part.len() / 2);
        self.waiting.push_front(second);
        self.waiting.push_front(part);
        Ok(())
    }
}

impl Halves<Feed> {
    /// Takes a part whose read failed. Halves it, or returns its only feed as damaged. Returns the
    /// error if it is not caused by stored rows.
    pub fn failed(
        &mut self,
        part: Vec<Feed>,
        error: StoreError,
        damaged: &Damaged,
    ) -> Result<Option<Feed>, StoreError> {
        if !error.may_pass_in_parts() {
            return Err(error);
        }
        let Err(mut whole) = self.split(part) else {
            return Ok(None);
        };
        if whole.len() > 1 || !error.blames_rows() {
            return Err(error);
        }
        let feed = whole.pop();
        if let Some(feed) = &feed {
            damaged.keep_apart(feed);
            tracing::error!(%error, feed = feed.as_str(), "a feed has rows that Postgres cannot read; it is left out for some minutes");
        }
        Ok(feed)
    }
}

/// Damaged feeds.
#[derive(Debug, Default)]
pub struct Damaged {
    /// When each is tried again. The lock is held for a few instructions.
    feeds: Mutex<BTreeMap<Feed, Instant>>,
}

impl Damaged {
    /// Leaves a feed out from now on; returns whether it was not left out before.
    pub fn keep_apart(&self, feed: &Feed) -> bool {
        let (now, mut feeds) = (Instant::now(), self.lock());
        feeds.retain(|_, until| *until > now);
        let is_new = !feeds.contains_key(feed);
        if !is_new || feeds.len() < FEEDS_MAX {
            feeds.insert(feed.clone(), now + APART);
        }
        is_new
    }

    /// Returns these feeds without the damaged ones.
    pub fn others(&self, feeds: &[Feed]) -> Vec<Feed> {
        let (now, damaged) = (Instant::now(), self.lock());
        feeds
            .iter()
            .filter(|feed| damaged.get(*feed).is_none_or(|until| *until <= now))
            .cloned()
            .collect()
    }

    /// Returns whether a feed is damaged.
    pub fn contains(&self, feed: &Feed) -> bool {
        self.lock()
            .get(feed)
            .is_some_and(|until| *until > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Feed, Instant>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the readable items, the unreadable parts, and the number of reads.
    fn read(
        all: Vec<u32>,
        is_bad: impl Fn(u32) -> bool,
        splits_max: usize,
    ) -> (Vec<u32>, Vec<Vec<u32>>, usize) {
        let (mut parts, mut good, mut bad, mut reads) =
            (Halves::new(all, splits_max), Vec::new(), Vec::new(), 0);
        while let Some(part) = parts.take() {
            reads += 1;
            if !part.iter().any(|one| is_bad(*one)) {
                good.extend(part);
            } else if let Err(part) = parts.split(part) {
                bad.push(part);
            }
        }
        (good, bad, reads)
    }

    #[test]
    fn damaged_items_are_isolated_and_all_others_are_read() {
        let (good, bad, reads) = read((0..64).collect(), |one| one == 17, 64);
        assert_eq!((good.len(), bad), (63, vec![vec![17]]));
        assert_eq!(reads, 1 + 2 * 6, "two more for each halving");
        let (good, bad, _) = read((0..64).collect(), |_| true, 64);
        assert_eq!((good.len(), bad.len()), (0, 64));
    }

    #[test]
    fn the_number_of_splits_is_bounded() {
        let (good, bad, reads) = read((0..5_000).collect(), |_| true, 40);
        assert_eq!((good.len(), bad.concat().len(), reads), (0, 5_000, 81));
    }

    #[test]
    fn a_feed_becomes_damaged_once() {
        let damaged = Damaged::default();
        let feed = Feed::parse("merchant-42");
        let Ok(feed) = feed else {
            panic!("a good name")
        };
        assert!(!damaged.contains(&feed));
        assert!(damaged.keep_apart(&feed) && !damaged.keep_apart(&feed));
        assert!(damaged.contains(&feed));
    }
}

//! The highest ack of each feed since its row in `feeds` was raised. Acks that were written come in,
//! the feeds that are due go out. No I/O.
//!
//! The readers of the row also read up to 1,000 cursors of the feed, so they need it only for a feed
//! with more. A replica that stops loses its raises, and the next acks of these feeds raise the rows.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::feed::{Feed, Seq};

/// Age of the first ack when its feed is raised. A busy merchant has many acks in this time.
const RAISE_AFTER: Duration = Duration::from_secs(20);
/// Most feeds in one statement. Appends to them wait meanwhile.
pub(super) const FEEDS_PER_RAISE_MAX: usize = 20;

/// The highest acks of one epoch.
#[derive(Debug, Default)]
pub(super) struct HighestAcks {
    highest: HashMap<Feed, Seq>,
    /// Each feed once, with the time when it is due.
    waiting: VecDeque<(Instant, Feed)>,
}

impl HighestAcks {
    /// Adds acks that were written.
    pub(super) fn add(&mut self, acks: impl IntoIterator<Item = (Feed, Seq)>, now: Instant) {
        for (feed, seq) in acks {
            match self.highest.get_mut(&feed) {
                Some(highest) => *highest = seq.max(*highest),
                None => {
                    self.waiting.push_back((now + RAISE_AFTER, feed.clone()));
                    self.highest.insert(feed, seq);
                }
            }
        }
    }

    /// The time when the next feed is due.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.waiting.front().map(|(due_at, _)| *due_at)
    }

    /// Takes the feeds of one statement.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(Feed, Seq)> {
        let mut due = Vec::new();
        while due.len() < FEEDS_PER_RAISE_MAX
            && let Some((_, feed)) = self.waiting.pop_front_if(|(due_at, _)| *due_at <= now)
        {
            due.extend(self.highest.remove_entry(&feed));
        }
        if self.waiting.is_empty() {
            // Frees their memory, because one announcement may have added every feed.
            *self = Self::default();
        }
        due
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn ack(feed: &str, seq: i64) -> (Feed, Seq) {
        (Feed::parse(feed).unwrap(), Seq::new(seq).unwrap())
    }

    fn raised(due: &[(Feed, Seq)]) -> Vec<(&str, i64)> {
        due.iter()
            .map(|(feed, seq)| (feed.as_str(), seq.get()))
            .collect()
    }

    #[test]
    fn a_feed_is_raised_to_its_highest_ack_when_its_first_one_is_old() {
        let (begun, mut acks) = (Instant::now(), HighestAcks::default());
        acks.add([ack("a", 3), ack("a", 7)], begun);
        let later = begun + RAISE_AFTER / 2;
        acks.add([ack("a", 5), ack("b", 1)], later);
        assert_eq!(acks.due_at(), Some(begun + RAISE_AFTER));
        assert!(acks.take_due(later).is_empty());
        assert_eq!(raised(&acks.take_due(begun + RAISE_AFTER)), [("a", 7)]);
        assert_eq!(raised(&acks.take_due(later + RAISE_AFTER)), [("b", 1)]);
        assert_eq!(acks.due_at(), None);
    }

    #[test]
    fn one_statement_raises_few_feeds_and_the_rest_waits() {
        let (begun, mut acks) = (Instant::now(), HighestAcks::default());
        let count = FEEDS_PER_RAISE_MAX + 1;
        for feed in 0..count {
            acks.add([ack(&feed.to_string(), 1)], begun);
        }
        let now = begun + RAISE_AFTER;
        assert_eq!(acks.take_due(now).len(), FEEDS_PER_RAISE_MAX);
        assert_eq!(acks.take_due(now).len(), 1);
        assert!(acks.take_due(now).is_empty());
    }
}

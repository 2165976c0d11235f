//! The arithmetic of a batch of new events. Pure.

use std::collections::BTreeMap;

/// The new numbers of a batch, before the database adds the last number of each feed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbering<'a> {
    /// In C order, because a batch locks its feeds in this order.
    feeds: BTreeMap<&'a str, Added>,
    /// For each event, the number of events of its feed that follow in the batch.
    later_in_batch: Vec<i64>,
}

/// The events of a batch for one feed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Added {
    events: i64,
    /// Of these, all but the progress of imports.
    news: i64,
}

impl<'a> Numbering<'a> {
    /// Counts events, each with its feed and whether it is news.
    pub(super) fn new(events: impl Iterator<Item = (&'a str, bool)> + Clone) -> Self {
        let mut feeds = BTreeMap::<_, Added>::new();
        let mut later_in_batch = Vec::with_capacity(events.size_hint().0);
        for (feed, is_news) in events.clone() {
            let added = feeds.entry(feed).or_default();
            added.events += 1;
            added.news += i64::from(is_news);
            later_in_batch.push(added.events);
        }
        for ((feed, _), later) in events.zip(&mut later_in_batch) {
            *later = feeds.get(feed).map_or(0, |added| added.events) - *later;
        }
        Self {
            feeds,
            later_in_batch,
        }
    }

    /// The feeds of the batch, each once.
    pub(super) fn feeds(&self) -> Vec<&'a str> {
        self.feeds.keys().copied().collect()
    }

    /// The number of events of each feed.
    pub(super) fn added(&self) -> Vec<i64> {
        self.feeds.values().map(|added| added.events).collect()
    }

    /// The number of news of each feed.
    pub(super) fn news(&self) -> Vec<i64> {
        self.feeds.values().map(|added| added.news).collect()
    }

    /// For each event, the number of events of its feed that follow in the batch.
    pub(super) fn later_in_batch(&self) -> &[i64] {
        &self.later_in_batch
    }

    /// Returns the number of each event, given the feed of each event and the last number of each of
    /// [`feeds`](Self::feeds). Returns the number of feeds if it is not that of `last_seqs`.
    pub(super) fn seqs(
        &self,
        events: impl Iterator<Item = &'a str>,
        last_seqs: &[i64],
    ) -> Result<Vec<i64>, usize> {
        if last_seqs.len() != self.feeds.len() {
            return Err(self.feeds.len());
        }
        let last_seqs: BTreeMap<_, _> = self.feeds.keys().zip(last_seqs).collect();
        let seq = |(feed, later_in_batch): (&str, &i64)| {
            last_seqs.get(&feed).copied().copied().unwrap_or_default() - later_in_batch
        };
        Ok(events.zip(&self.later_in_batch).map(seq).collect())
    }
}

/// Assigns the results for import events: the next one to each event that is an import event.
pub(super) fn assign<T>(
    is_import: impl Iterator<Item = bool>,
    returned: impl IntoIterator<Item = T>,
) -> Vec<Option<T>> {
    let mut returned = returned.into_iter();
    is_import
        .map(|is_import| is_import.then(|| returned.next()).flatten())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: [(&str, bool); 5] = [
        ("b", true),
        ("a", true),
        ("b", false),
        ("b", true),
        ("a", false),
    ];

    fn numbering() -> Numbering<'static> {
        Numbering::new(BATCH.into_iter())
    }

    fn seqs(last_seqs: &[i64]) -> Result<Vec<i64>, usize> {
        numbering().seqs(BATCH.into_iter().map(|(feed, _)| feed), last_seqs)
    }

    #[test]
    fn feeds_are_counted_once_each_and_in_order() {
        let numbering = numbering();
        assert_eq!(numbering.feeds(), ["a", "b"]);
        assert_eq!(numbering.added(), [2, 3]);
        assert_eq!(numbering.news(), [1, 2], "import progress is no news");
    }

    #[test]
    fn each_event_counts_the_later_events_of_its_feed() {
        assert_eq!(numbering().later_in_batch(), [2, 1, 1, 0, 0]);
    }

    #[test]
    fn numbers_of_a_feed_are_consecutive_and_end_at_the_last() {
        assert_eq!(seqs(&[10, 3]), Ok(vec![1, 9, 2, 3, 10]));
    }

    #[test]
    fn another_number_of_feeds_is_an_error() {
        assert_eq!(seqs(&[10]), Err(2));
        assert_eq!(seqs(&[10, 3, 7]), Err(2));
    }

    #[test]
    fn an_empty_batch_has_no_feeds() {
        let numbering = Numbering::new(std::iter::empty());
        assert!(numbering.feeds().is_empty() && numbering.later_in_batch().is_empty());
        assert_eq!(numbering.seqs(std::iter::empty(), &[]), Ok(Vec::new()));
    }

    #[test]
    fn only_import_events_get_a_progress_in_their_order() {
        let is_import = [false, true, false, true].into_iter();
        assert_eq!(
            assign(is_import, ["first", "second"]),
            [None, Some("first"), None, Some("second")]
        );
    }
}

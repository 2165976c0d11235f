//! A page: one read of a feed, without holes.

use std::sync::Arc;

use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::model::protocol::SkipReason;
use crate::model::trace_context::TraceContext;

/// One read of a feed after a number. Every number is an entry or part of a `Skipped`. It may also
/// have the marks since a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The feed that was read.
    pub feed: Feed,
    /// The number before the first entry.
    pub after: Seq,
    /// The newest number of the feed.
    pub last: Seq,
    /// The epoch.
    pub epoch: Option<Epoch>,
    /// Retention has removed all numbers up to this one. A missing number above it is lost.
    pub trimmed: Seq,
    /// In order of their numbers.
    pub entries: Vec<Entry>,
    /// The newest mark of the feed, which the entries include.
    pub version: Version,
    /// The marks after the requested version, in order; the first of them if there are many.
    pub states: Vec<Arc<StateFrame>>,
    through: Seq,
}

/// An entry of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A notification to send.
    Notification(Arc<Notification>),
    /// Numbers that are not sent.
    Skipped {
        /// The first number.
        from: Seq,
        /// The last number.
        through: Seq,
        /// The reason.
        reason: SkipReason,
    },
}

impl Entry {
    /// The last number of the entry.
    pub fn through(&self) -> Seq {
        match self {
            Self::Notification(notification) => notification.seq,
            Self::Skipped { through, .. } => *through,
        }
    }
}

impl Page {
    /// An empty page. Entries are added in the order of their numbers.
    pub fn new(feed: Feed, after: Seq) -> Self {
        let (entries, states) = (Vec::new(), Vec::new());
        let (epoch, trimmed, version) = (None, Seq::ZERO, Version::ZERO);
        Self {
            feed,
            after,
            last: after,
            epoch,
            trimmed,
            entries,
            version,
            states,
            through: after,
        }
    }

    /// Adds the next notification.
    pub fn push(&mut self, notification: Arc<Notification>) {
        self.skip_missing_before(notification.seq);
        self.through = notification.seq;
        self.entries.push(Entry::Notification(notification));
    }

    /// Sets the position in the trace of one of its notifications.
    pub fn set_trace(&mut self, seq: Seq, trace: TraceContext) {
        let notification = self.entries.iter_mut().find_map(|entry| match entry {
            Entry::Notification(notification) if notification.seq == seq => Some(notification),
            _ => None,
        });
        if let Some(notification) = notification {
            Arc::make_mut(notification).trace = Some(trace);
        }
    }

    /// Adds a stored number that is not sent.
    pub fn skip(&mut self, seq: Seq, reason: SkipReason) {
        self.skip_missing_before(seq);
        self.skip_through(seq, reason);
    }

    /// Completes the page. If it has no entry, all numbers up to `last` are missing.
    pub fn close(&mut self) {
        if self.entries.is_empty() {
            self.skip_missing_before(self.last.next());
        }
    }

    /// The first and the last number of each lost range.
    pub fn lost(&self) -> impl Iterator<Item = (Seq, Seq)> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Skipped {
                from,
                through,
                reason: SkipReason::Lost,
            } => Some((*from, *through)),
            _ => None,
        })
    }

    /// A number without a row is trimmed or lost.
    fn skip_missing_before(&mut self, seq: Seq) {
        for (upper, reason) in [
            (seq.previous().min(self.trimmed), SkipReason::Trimmed),
            (seq.previous(), SkipReason::Lost),
        ] {
            if upper > self.through {
                self.skip_through(upper, reason);
            }
        }
    }

    fn skip_through(&mut self, seq: Seq, why: SkipReason) {
        match self.entries.last_mut() {
            Some(Entry::Skipped {
                through, reason, ..
            }) if *reason == why => *through = seq,
            _ => self.entries.push(Entry::Skipped {
                from: self.through.next(),
                through: seq,
                reason: why,
            }),
        }
        self.through = seq;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::model::notification::NotificationFields;

    fn seq(number: i64) -> Seq {
        Seq::new(number).unwrap()
    }

    fn notification(number: i64) -> Arc<Notification> {
        Arc::new(Notification::render(&NotificationFields {
            feed: &Feed::parse("m").unwrap(),
            seq: seq(number),
            id: "e-1",
            source: "/checkout",
            event: "order.created",
            time: OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap(),
            data: None,
            collapse_key: None,
            progress: None,
            expires_at: None,
            read_at: None,
            handled_at: None,
            handled_by: None,
        }))
    }

    #[test]
    fn a_page_has_no_hole() {
        let mut page = Page::new(Feed::parse("m").unwrap(), seq(2));
        page.last = seq(12);
        page.trimmed = seq(3);
        page.push(notification(5));
        page.skip(seq(6), SkipReason::Collapsed);
        page.skip(seq(7), SkipReason::Collapsed);
        page.skip(seq(8), SkipReason::Expired);
        page.skip(seq(10), SkipReason::Expired);
        page.close();
        let skipped = |from, through, reason| Entry::Skipped {
            from: seq(from),
            through: seq(through),
            reason,
        };
        assert_eq!(
            page.entries,
            [
                skipped(3, 3, SkipReason::Trimmed),
                skipped(4, 4, SkipReason::Lost),
                Entry::Notification(notification(5)),
                skipped(6, 7, SkipReason::Collapsed),
                skipped(8, 8, SkipReason::Expired),
                skipped(9, 9, SkipReason::Lost),
                skipped(10, 10, SkipReason::Expired),
            ]
        );
        assert_eq!(
            page.lost().collect::<Vec<_>>(),
            [(seq(4), seq(4)), (seq(9), seq(9))]
        );
    }

    #[test]
    fn a_feed_that_lost_its_tail_is_skipped_through_its_last_number() {
        let mut page = Page::new(Feed::parse("m").unwrap(), seq(2));
        page.last = seq(9);
        page.close();
        assert_eq!(
            page.entries,
            [Entry::Skipped {
                from: seq(3),
                through: seq(9),
                reason: SkipReason::Lost
            }]
        );
    }
}

//! A stored event as a `notification` frame, and a page of a feed.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::event::{Event, Import};
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::frame_text::FrameText;
use crate::model::mark::StateFrame;
use crate::model::protocol::SkipReason;
use crate::model::trace_context::TraceContext;

/// An event that a feed stores, rendered once and shared by all sessions that send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The feed.
    pub feed: Feed,
    /// Its number in the feed.
    pub seq: Seq,
    /// After this time it is skipped.
    pub expires_at: Option<OffsetDateTime>,
    /// The time of the event. `None` in hints of earlier versions of Shopbell.
    pub time: Option<OffsetDateTime>,
    /// The position in its trace, if the event is traced.
    pub trace: Option<TraceContext>,
    /// The `notification` frame.
    pub frame: FrameText,
}

impl Notification {
    /// Renders an event that was just stored.
    pub fn of_event(
        event: &Event,
        seq: Seq,
        received_at: OffsetDateTime,
        progress: Option<Progress>,
    ) -> Self {
        let is_progress = event.import.as_ref().is_some_and(Import::is_progress);
        let marked_at = is_progress.then_some(received_at);
        Self::render(&NotificationFields {
            feed: &event.recipient,
            seq,
            id: &event.id,
            source: &event.source,
            event: &event.event_type,
            time: event.time.unwrap_or(received_at),
            data: event.data.as_ref().map(|data| data.get()),
            collapse_key: event.collapse_key.as_deref(),
            progress,
            expires_at: event.expires_at,
            read_at: marked_at,
            handled_at: marked_at,
            handled_by: None,
        })
    }

    /// Renders the frame from its fields.
    pub fn render(fields: &NotificationFields<'_>) -> Self {
        let frame = Frame {
            kind: "notification",
            feed: fields.feed,
            seq: fields.seq,
            id: fields.id,
            source: fields.source,
            event: fields.event,
            time: rfc3339(fields.time),
            // Stored data is valid JSON, so this never fails.
            data: fields.data.and_then(|data| serde_json::from_str(data).ok()),
            collapse_key: fields.collapse_key,
            progress: fields.progress,
            read_at: fields.read_at.map(rfc3339),
            handled_at: fields.handled_at.map(rfc3339),
            handled_by: fields.handled_by,
        };
        Self {
            feed: fields.feed.clone(),
            seq: fields.seq,
            expires_at: fields.expires_at,
            time: Some(fields.time),
            trace: None,
            // Serialising strings, numbers and raw JSON to a string cannot fail.
            frame: serde_json::to_string(&frame).unwrap_or_default().into(),
        }
    }

    /// Whether its `expirytime` has passed.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// The fields of a `notification` frame.
#[derive(Debug)]
#[expect(missing_docs, reason = "docs/protocol.md documents the fields")]
pub struct NotificationFields<'a> {
    pub feed: &'a Feed,
    pub seq: Seq,
    pub id: &'a str,
    pub source: &'a str,
    pub event: &'a str,
    pub time: OffsetDateTime,
    pub data: Option<&'a str>,
    pub collapse_key: Option<&'a str>,
    pub progress: Option<Progress>,
    pub expires_at: Option<OffsetDateTime>,
    pub read_at: Option<OffsetDateTime>,
    pub handled_at: Option<OffsetDateTime>,
    pub handled_by: Option<&'a str>,
}

/// The progress of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Items that were imported or failed.
    pub done: i64,
    /// The failed items of these.
    pub failed: i64,
    /// The number of items, if `import.started` was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
}

#[derive(Serialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    feed: &'a Feed,
    seq: Seq,
    id: &'a str,
    source: &'a str,
    event: &'a str,
    time: String,
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handled_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handled_by: Option<&'a str>,
}

/// RFC 3339. All times are within its years, because they were parsed or are from Postgres.
fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// One read of a feed after a number. Every number is an entry or part of a `Skipped`. It may also have
/// the marks since a version.
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
    /// Retention may have removed numbers up to this one. A missing number above it is lost.
    pub trimmed: Seq,
    /// In order of their numbers.
    pub entries: Vec<Entry>,
    /// The newest mark of the feed, which the entries include.
    pub version: Version,
    /// The marks after the requested version, in order; the first of them if there are many.
    pub states: Vec<Arc<StateFrame>>,
    through: Seq,
}

/// The highest known numbers of a feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// Its newest notification.
    pub seq: Seq,
    /// Its newest mark.
    pub version: Version,
}

impl Newest {
    /// The higher number of both, for each kind.
    pub fn max(self, other: Self) -> Self {
        Self {
            seq: self.seq.max(other.seq),
            version: self.version.max(other.version),
        }
    }
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
    use super::*;

    fn seq(number: i64) -> Seq {
        Seq::new(number).unwrap()
    }

    fn notification(number: i64, data: Option<&str>) -> Arc<Notification> {
        Arc::new(Notification::render(&NotificationFields {
            feed: &Feed::parse("m").unwrap(),
            seq: seq(number),
            id: "e-1",
            source: "/checkout",
            event: "order.created",
            time: OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap(),
            data,
            collapse_key: None,
            progress: None,
            expires_at: None,
            read_at: None,
            handled_at: None,
            handled_by: None,
        }))
    }

    #[test]
    fn data_stands_in_the_frame_byte_for_byte() {
        let data = r#"{ "b":1e400, "a":123456789012345678901234567890,  "c":"\u0000\ud800" }"#;
        assert_eq!(
            notification(7, Some(data)).frame.as_str(),
            format!(
                r#"{{"type":"notification","feed":"m","seq":7,"id":"e-1","source":"/checkout","event":"order.created","time":"2023-11-14T22:13:20.123456Z","data":{data}}}"#
            )
        );
        assert!(notification(7, None).frame.ends_with(r#""data":null}"#));
    }

    #[test]
    fn a_page_has_no_hole() {
        let mut page = Page::new(Feed::parse("m").unwrap(), seq(2));
        page.last = seq(12);
        page.trimmed = seq(3);
        page.push(notification(5, None));
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
                Entry::Notification(notification(5, None)),
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

//! A stored event as a `notification` frame.

use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::event::{Event, Import};
use crate::model::feed::{Feed, Seq};
use crate::model::frame_text::FrameText;
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn seq(number: i64) -> Seq {
        Seq::new(number).unwrap()
    }

    fn notification(number: i64, data: Option<&str>) -> Notification {
        Notification::render(&NotificationFields {
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
        })
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
}

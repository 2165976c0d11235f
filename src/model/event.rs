//! What a publisher sent becomes an [`Event`], or a [`Rejection`] with its reason.
//!
//! In comes a [`Message`]: content type, headers and body as AMQP or HTTP delivered them. Out goes an event that can
//! be stored as it is, its `data` byte for byte the publisher's. Both forms of CloudEvents 1.0 are read: structured
//! (the body is the whole event) and binary (the body is the data, the attributes are headers).
//!
//! Nothing here does I/O, reads a clock, waits or keeps anything. A rejection is permanent: the same message is
//! rejected again whenever it is parsed, so it is dead-lettered and never retried.

mod audience;
mod binary;
mod content_type;
mod encoding;
mod envelope;
mod json;
#[cfg(test)]
mod properties;
mod rejection;
#[cfg(test)]
mod sample;
mod schema;
mod structured;
mod timestamp;

use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::model::feed::Feed;
pub use audience::{CANARY_SOURCE, CANARY_TYPE};
use content_type::Mode;
use envelope::Envelope;
pub use envelope::{
    COLLAPSE_KEY_BYTES_MAX, ID_BYTES_MAX, SOURCE_BYTES_MAX, TRACEPARENT_BYTES_MAX, TYPE_BYTES_MAX,
};
pub use rejection::{Reason, Rejection};
pub use schema::IMPORT_ID_BYTES_MAX;

/// Bound on all names and values of the headers together. A dead letter carries its headers and Shopbell's own in one
/// AMQP frame (128 KiB in RabbitMQ), so half a frame is the publisher's; the attributes need a twentieth of that.
pub const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// A message as AMQP (or HTTP) brought it, not yet looked at.
///
/// It has no `Debug`, so that no event's body ends in a log.
pub struct Message<'a> {
    /// The content type, with its parameters. It alone decides between structured and not (AMQP binding 1.0 §3).
    pub content_type: Option<&'a str>,
    /// The content encoding. It only explains a body that cannot be read.
    pub content_encoding: Option<&'a str>,
    /// The application headers. In binary mode the attributes are `cloudEvents_NAME` or `cloudEvents:NAME` (AMQP binding
    /// §3.1.3).
    pub headers: Vec<(Cow<'a, str>, HeaderValue<'a>)>,
    /// The body: the whole event in structured mode, its data in binary mode.
    pub body: &'a [u8],
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue<'a> {
    /// Text; a whole number or a boolean, rendered as text; a timestamp, rendered as RFC 3339.
    Text(Cow<'a, str>),
    /// A value that no attribute can have. The words name its type and nothing of its content.
    Unreadable(&'static str),
}

impl HeaderValue<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Unreadable(_) => None,
        }
    }
}

impl<'a> From<&'a str> for HeaderValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

/// What an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body that is taken.
    pub event_bytes_max: usize,
}

/// An event that keeps every rule of the contract: Postgres can store each of its texts, an index can hold its keys.
#[derive(Clone)]
pub struct Event {
    /// `recipient`: the feed it goes to.
    pub recipient: Feed,
    /// `broadcast`: whether it is meant for everyone, where the publisher wrote that.
    pub broadcast: Option<bool>,
    /// `id`: with `source` what makes the event the same event (CloudEvents 1.0, "id").
    pub id: String,
    /// `source`: where it comes from; a URI reference, taken as it is (CloudEvents 1.0, "source+id").
    pub source: String,
    /// `type`: what happened (CloudEvents 1.0, "type").
    pub event_type: String,
    /// `time`: when it happened, in UTC and cut to the microseconds that Postgres keeps (CloudEvents 1.0, "time").
    pub time: Option<OffsetDateTime>,
    /// `expirytime`: when the notification stops being worth showing; in UTC, microseconds (CloudEvents extension
    /// "Expiry Time").
    pub expires_at: Option<OffsetDateTime>,
    /// `collapsekey`, or what the type's schema puts in its place: a subscriber who is behind gets the newest
    /// notification of each key only.
    pub collapse_key: Option<String>,
    /// What it tells of an import, where its type does.
    pub import: Option<Import>,
    /// `traceparent`: W3C Trace Context (CloudEvents extension "Distributed Tracing"), or where the event has none the header
    /// of that name, which instrumented publishers set; absent where unusable.
    pub traceparent: Option<String>,
    /// The data, byte for byte as published, without the white space around it. `None` where there is none; a published
    /// `null` is data and stays `null`, in both modes.
    pub data: Option<Box<RawValue>>,
}

/// What an event tells of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// `import_id`: names one run after another, in its recipient's feed.
    pub id: String,
    /// What happened.
    pub step: Step,
    /// `index`: the item it happened to; an item that comes again is the same item.
    pub item: Option<i64>,
}

/// A step of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `import.started`.
    Started {
        /// How many items it has.
        total: i64,
    },
    /// An item was imported.
    Imported,
    /// An item was not imported.
    Failed,
    /// It is over.
    Finished,
    /// It is over before its end.
    Aborted,
}

impl Import {
    /// An item that was imported is progress, not news: nobody has to read or handle it, and only the newest is replayed.
    pub fn is_progress(&self) -> bool {
        self.step == Step::Imported
    }
}

/// Says everything but the data, which does not belong in a log.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("recipient", &self.recipient)
            .field("broadcast", &self.broadcast)
            .field("id", &self.id)
            .field("source", &self.source)
            .field("event_type", &self.event_type)
            .field("time", &self.time)
            .field("expires_at", &self.expires_at)
            .field("collapse_key", &self.collapse_key)
            .field("import", &self.import)
            .field("traceparent", &self.traceparent)
            .field(
                "data_bytes",
                &self.data.as_ref().map(|data| data.get().len()),
            )
            .finish()
    }
}

/// Reads a message. The checks come in a fixed order, cheapest and most general first, and the first that fails names
/// the reason: size, content type, UTF-8, nesting, JSON, envelope, recipient, data.
pub fn parse(message: &Message<'_>, limits: Limits) -> Result<Event, Rejection> {
    check_size(message, limits)?;
    let mode = content_type::mode(message)?;
    let envelope =
        envelope(message, mode).map_err(|rejection| encoding::explain(rejection, message))?;
    let mut event = envelope.into_event()?;
    if event.traceparent.is_none() {
        let header = message
            .headers
            .iter()
            .find(|(name, _)| name == "traceparent");
        event.traceparent = header.and_then(|(_, value)| envelope::traceparent(value.text()?));
    }
    Ok(event)
}

fn envelope<'a>(message: &'a Message<'_>, mode: Mode) -> Result<Envelope<'a>, Rejection> {
    let body = std::str::from_utf8(message.body).map_err(|error| {
        let detail = format!("the body is not UTF-8 after byte {}", error.valid_up_to());
        Rejection::new(Reason::InvalidUtf8, detail)
    })?;
    match mode {
        Mode::Structured => structured::envelope(body),
        Mode::Binary => binary::envelope(&message.headers, body),
    }
}

fn check_size(message: &Message<'_>, limits: Limits) -> Result<(), Rejection> {
    let header_bytes = |(name, value): &(Cow<'_, str>, HeaderValue<'_>)| {
        name.len() + value.text().map_or(0, str::len)
    };
    let header_bytes = message.headers.iter().map(header_bytes).sum();
    for (what, bytes, bytes_max) in [
        ("body", message.body.len(), limits.event_bytes_max),
        ("headers", header_bytes, HEADERS_BYTES_MAX),
    ] {
        if bytes > bytes_max {
            let detail = format!("{what} of {bytes} bytes, at most {bytes_max} are taken");
            return Err(Rejection::new(Reason::TooLarge, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::sample::{self, STRUCTURED};
    use super::*;

    #[test]
    fn a_structured_event_is_read_whole() {
        let event = sample::structured(
            r#"{"specversion":"1.0","id":"e-1","source":"/shop","type":"custom.thing","recipient":"merchant-42",
                "time":"2026-01-02T03:04:05.1234567+02:00","expirytime":"2026-01-03T00:00:00Z","collapsekey":"k",
                "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","other":[1],"data":{"a":1}}"#,
        )
        .unwrap();
        assert_eq!(event.recipient.as_str(), "merchant-42");
        assert_eq!((event.id.as_str(), event.source.as_str()), ("e-1", "/shop"));
        assert_eq!(event.event_type, "custom.thing");
        assert_eq!(
            event.time,
            Some(time::macros::datetime!(2026-01-02 01:04:05.123456 UTC))
        );
        assert_eq!(
            event.expires_at,
            Some(time::macros::datetime!(2026-01-03 0:00 UTC))
        );
        assert_eq!(event.collapse_key.as_deref(), Some("k"));
        assert_eq!(
            event.traceparent.map(|text| text.len()),
            Some(TRACEPARENT_BYTES_MAX)
        );
        assert_eq!(event.data.unwrap().get(), r#"{"a":1}"#);
    }

    #[test]
    fn a_body_is_taken_up_to_the_limit_and_not_past_it() {
        let body = sample::structured_body("custom.thing", "1");
        let (content_type, content_encoding) = (Some(STRUCTURED), None);
        let message = Message {
            content_type,
            content_encoding,
            headers: vec![],
            body: body.as_bytes(),
        };
        let limit = |event_bytes_max| Limits { event_bytes_max };
        assert!(parse(&message, limit(body.len())).is_ok());
        let rejection = parse(&message, limit(body.len() - 1)).unwrap_err();
        assert_eq!(rejection.reason, Reason::TooLarge);
    }

    #[test]
    fn headers_are_bounded_too() {
        let long = "x".repeat(HEADERS_BYTES_MAX);
        let rejection = sample::binary(&[("x-other", &long)], b"1").unwrap_err();
        assert_eq!(rejection.reason, Reason::TooLarge);
        assert!(rejection.detail.starts_with("headers of "), "{rejection}");
    }

    #[test]
    fn the_first_check_that_fails_names_the_reason() {
        let deep = "[".repeat(200);
        let too_deep_not_json_no_recipient = format!(r#"{{"id":7,"data":{deep}"#);
        let bad_recipient_bad_data =
            r#"{"specversion":"1.0","id":"e","source":"s","type":"order.created","data":7}"#;
        let cases: [(&str, &[u8], Reason); 7] = [
            ("text/plain", b"\xff", Reason::UnsupportedContentType),
            (STRUCTURED, b"[[[\xff", Reason::InvalidUtf8),
            (
                STRUCTURED,
                too_deep_not_json_no_recipient.as_bytes(),
                Reason::TooDeep,
            ),
            (
                STRUCTURED,
                br#"{"specversion":"0.3""#,
                Reason::MalformedJson,
            ),
            (
                STRUCTURED,
                br#"{"specversion":"0.3"}"#,
                Reason::UnsupportedVersion,
            ),
            (
                STRUCTURED,
                br#"{"specversion":"1.0","recipient":7}"#,
                Reason::InvalidEnvelope,
            ),
            (
                STRUCTURED,
                bad_recipient_bad_data.as_bytes(),
                Reason::InvalidRecipient,
            ),
        ];
        for (content_type, body, reason) in cases {
            let rejection = sample::parse(Some(content_type), &[], body).unwrap_err();
            assert_eq!(rejection.reason, reason, "{rejection}");
        }
    }

    #[test]
    fn debug_output_has_no_data() {
        let event = sample::structured_data("custom.thing", r#""s3cr3t""#).unwrap();
        let debug = format!("{event:?}");
        assert!(
            debug.contains("data_bytes: Some(8)") && !debug.contains("s3cr3t"),
            "{debug}"
        );
    }
}

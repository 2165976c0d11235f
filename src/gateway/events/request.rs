//! The events of a request. Headers and body come in; publishes and verdicts go out. No I/O.

use std::borrow::Cow;
use std::fmt;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue as HttpValue};
use percent_encoding::percent_decode;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::amqp::publisher::Outgoing;
use crate::gateway::auth::Recipients;
use crate::model::event::{self, Event, HeaderValue, Limits, Message};
use crate::model::feed::Feed;
use crate::telemetry::labels::EventVerdict;

/// Most bytes of a body.
pub(super) const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most events of a batch.
const BATCH_MAX: usize = 500;
/// The reason of a verdict if the token does not allow the recipient.
pub(super) const NOT_ALLOWED: &str = "not_allowed";
/// Prefix of the headers that are attributes in binary mode (HTTP binding §3.1.3).
const ATTRIBUTE_PREFIX: &str = "ce-";
/// Longest name of an attribute. CloudEvents asks for at most 20.
const ATTRIBUTE_NAME_MAX: usize = 64;
const STRUCTURED: &str = "application/cloudevents+json";
/// Every content type of structured mode begins with it.
const STRUCTURED_PREFIX: &str = "application/cloudevents";
const BATCH: &str = "application/cloudevents-batch+json";
/// The extension for distributed tracing is a header of its own (W3C Trace Context §3.2).
const TRACEPARENT: &str = "traceparent";

/// The rules for the events of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) limits: Limits,
    pub(super) broadcast_feed: &'a Feed,
    /// The recipients of the token.
    pub(super) recipients: &'a Recipients,
    pub(super) exchange: &'a str,
}

/// A request that has no events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a batch must be a JSON array of CloudEvents in UTF-8")]
    NotABatch,
    #[error("a batch may have at most {BATCH_MAX} events")]
    TooMany,
}

/// The events of a request, in its order.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) is_batch: bool,
    pub(super) items: Vec<Item>,
}

/// An event of a request.
#[derive(Debug)]
pub(super) enum Item {
    /// To be published, with the verdict after the confirm.
    Publish(Verdict, Box<Outgoing>),
    /// Refused.
    Refuse(Verdict),
}

impl Item {
    pub(super) fn into_parts(self) -> (Verdict, Option<Outgoing>) {
        match self {
            Self::Publish(verdict, outgoing) => (verdict, Some(*outgoing)),
            Self::Refuse(verdict) => (verdict, None),
        }
    }
}

/// The verdict of an event, as the response has it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(super) enum Verdict {
    /// RabbitMQ confirmed the event, so it will be stored.
    Accepted {
        id: String,
        source: String,
        /// Whether the recipient has a session; absent if that is unknown.
        #[serde(skip_serializing_if = "Option::is_none")]
        online: Option<bool>,
        #[serde(skip)]
        recipient: Feed,
    },
    /// The event can never be stored, or the token does not allow its recipient.
    Refused {
        reason: &'static str,
        detail: String,
    },
}

impl Verdict {
    /// The value of the label `verdict` in the metrics.
    pub(super) fn label(&self) -> EventVerdict {
        match self {
            Self::Accepted { .. } => EventVerdict::Accepted,
            Self::Refused { .. } => EventVerdict::Refused,
        }
    }
}

/// Parses a request. An event is checked as ingest checks it, so that no accepted event becomes a dead
/// letter for its content.
pub(super) fn parse(
    headers: &HeaderMap,
    body: &[u8],
    rules: &Rules<'_>,
) -> Result<Parsed, Malformed> {
    let content_type = headers.get(CONTENT_TYPE).and_then(text);
    let is_batch = content_type.is_some_and(is_batch);
    let items = if is_batch {
        let batch = std::str::from_utf8(body).ok();
        let batch = batch.and_then(|body| serde_json::from_str::<Batch<'_>>(body).ok());
        let Batch(events) = batch.ok_or(Malformed::NotABatch)?;
        if events.len() > BATCH_MAX {
            return Err(Malformed::TooMany);
        }
        let structured =
            |event: &RawValue| item(&one(Some(STRUCTURED), event.get().as_bytes()), rules);
        events.into_iter().map(structured).collect()
    } else {
        let message = Message {
            content_encoding: headers.get(CONTENT_ENCODING).and_then(text),
            headers: attributes(headers),
            ..one(content_type, body)
        };
        vec![item(&message, rules)]
    };
    Ok(Parsed { is_batch, items })
}

fn one<'a>(content_type: Option<&'a str>, body: &'a [u8]) -> Message<'a> {
    Message {
        content_type,
        content_encoding: None,
        headers: Vec::new(),
        body,
    }
}

fn item(message: &Message<'_>, rules: &Rules<'_>) -> Item {
    let checked = event::parse(message, rules.limits).and_then(|event| {
        event.check_audience(rules.broadcast_feed)?;
        Ok(event)
    });
    let event = match checked {
        Ok(event) => event,
        Err(rejection) => {
            return Item::Refuse(Verdict::Refused {
                reason: rejection.reason.as_str(),
                detail: rejection.detail,
            });
        }
    };
    if !rules
        .recipients
        .allow(&event.recipient, rules.broadcast_feed)
    {
        return Item::Refuse(Verdict::Refused {
            reason: NOT_ALLOWED,
            detail: "the claim publish of the token does not name the recipient of the event"
                .into(),
        });
    }
    let outgoing = Box::new(outgoing(&event, message, rules.exchange));
    let accepted = Verdict::Accepted {
        id: event.id,
        source: event.source,
        online: None,
        recipient: event.recipient,
    };
    Item::Publish(accepted, outgoing)
}

/// The publish of an event in the mode in which it came, with its body byte for byte.
fn outgoing(event: &Event, message: &Message<'_>, exchange: &str) -> Outgoing {
    let (exchange, body) = (exchange.to_owned(), message.body.to_vec());
    let (event_type, recipient) = (event.event_type.as_str(), event.recipient.as_str());
    let outgoing = if is_structured(message) {
        Outgoing::event(exchange, event_type, recipient, body)
    } else {
        let attributes = message.headers.iter().filter_map(|(name, value)| {
            Some((name.strip_prefix(ATTRIBUTE_PREFIX)?, value.text()?))
        });
        Outgoing::binary_event(
            exchange,
            event_type,
            recipient,
            attributes,
            message.content_type,
            body,
        )
    };
    outgoing.traced(event.traceparent.as_deref())
}

/// The events of a batch: at most one more than allowed, and the others are not kept.
struct Batch<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Events;

        impl<'de> Visitor<'de> for Events {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut events = Vec::new();
                while events.len() <= BATCH_MAX
                    && let Some(event) = array.next_element()?
                {
                    events.push(event);
                }
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Batch(events))
            }
        }

        deserializer.deserialize_seq(Events)
    }
}

fn is_batch(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(BATCH)
}

/// The mode of a message that was parsed. Ingest decides in the same way.
fn is_structured(message: &Message<'_>) -> bool {
    let content_type = message.content_type.unwrap_or_default().trim_start();
    content_type
        .get(..STRUCTURED_PREFIX.len())
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case(STRUCTURED_PREFIX))
}

/// The attributes in the headers. Names that CloudEvents does not allow are left out.
fn attributes(headers: &HeaderMap) -> Vec<(Cow<'_, str>, HeaderValue<'_>)> {
    let is_attribute = |name: &str| {
        name.strip_prefix(ATTRIBUTE_PREFIX).is_some_and(|name| {
            (1..=ATTRIBUTE_NAME_MAX).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        })
    };
    headers
        .iter()
        .filter(|(name, _)| is_attribute(name.as_str()) || name.as_str() == TRACEPARENT)
        .map(|(name, value)| (name.as_str().into(), decoded(value.as_bytes())))
        .collect()
}

/// The text of a header: without quotes, then without percent-encoding (HTTP binding §3.1.3.2).
fn decoded(value: &[u8]) -> HeaderValue<'_> {
    let quoted = value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    let text = match quoted {
        None => percent_decode(value).decode_utf8().map(Cow::into_owned),
        Some(quoted) => {
            let unquoted = unquoted(quoted);
            percent_decode(&unquoted).decode_utf8().map(Cow::into_owned)
        }
    };
    match text {
        Ok(text) => HeaderValue::Text(text.into()),
        Err(_) => HeaderValue::Unreadable("text that is not UTF-8"),
    }
}

/// The content of a quoted string (RFC 9110 §5.6.4).
fn unquoted(content: &[u8]) -> Vec<u8> {
    let mut unquoted = Vec::with_capacity(content.len());
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        unquoted.push(match byte {
            b'\\' => *bytes.next().unwrap_or(byte),
            byte => *byte,
        });
    }
    unquoted
}

fn text(value: &HttpValue) -> Option<&str> {
    value.to_str().ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    const EVENT: &str = r#"{"specversion":"1.0","id":"e-1","source":"/shop","type":"custom.thing","recipient":"m-1","data":{"a": 1}}"#;

    fn parsed(headers: &[(&'static str, &[u8])], body: &str) -> Result<Parsed, Malformed> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    (*name).parse().unwrap(),
                    HttpValue::from_bytes(value).unwrap(),
                )
            })
            .collect();
        let rules = Rules {
            limits: Limits {
                event_bytes_max: 4_096,
            },
            broadcast_feed: &Feed::parse("all").unwrap(),
            recipients: &Recipients::parse(&["m-*".into(), "shop".into()]).unwrap(),
            exchange: "shopbell.events",
        };
        parse(&headers, body.as_bytes(), &rules)
    }

    fn verdicts(content_type: &'static str, body: &str) -> serde_json::Value {
        let parsed = parsed(&[("content-type", content_type.as_bytes())], body).unwrap();
        let verdicts: Vec<_> = parsed
            .items
            .into_iter()
            .map(|item| item.into_parts().0)
            .collect();
        serde_json::to_value(verdicts).unwrap()
    }

    fn reasons(verdicts: &serde_json::Value) -> Vec<Option<&str>> {
        let verdicts = verdicts.as_array().unwrap().iter();
        verdicts.map(|verdict| verdict["reason"].as_str()).collect()
    }

    #[test]
    fn a_structured_event_is_accepted() {
        let accepted = json!([{"verdict": "accepted", "id": "e-1", "source": "/shop"}]);
        for content_type in [STRUCTURED, "Application/CloudEvents+JSON; charset=utf-8"] {
            assert_eq!(verdicts(content_type, EVENT), accepted);
        }
    }

    #[test]
    fn each_event_of_a_batch_has_its_verdict_in_order() {
        let event = |id: &str, recipient: &str| EVENT.replace("e-1", id).replace("m-1", recipient);
        let events = [
            event("a", "m-1"),
            "7".into(),
            event("c", "x"),
            event("d", "all"),
            event("e", "shop"),
        ];
        let verdicts = verdicts(BATCH, &format!("[{}]", events.join(",")));
        assert_eq!(
            reasons(&verdicts),
            [
                None,
                Some("invalid_envelope"),
                Some(NOT_ALLOWED),
                Some(NOT_ALLOWED),
                None
            ]
        );
        assert_eq!(verdicts[4]["id"], "e");
    }

    #[test]
    fn a_batch_is_an_array_of_at_most_500_events() {
        let batch = |body: &str| {
            parsed(
                &[(
                    "content-type",
                    b"application/cloudevents-batch+json; charset=utf-8",
                )],
                body,
            )
        };
        assert!(batch("[]").unwrap().items.is_empty());
        let of = |count| format!("[{}]", vec!["1"; count].join(","));
        assert_eq!(batch(&of(BATCH_MAX)).unwrap().items.len(), BATCH_MAX);
        for many in [BATCH_MAX + 1, 100_000] {
            assert_eq!(batch(&of(many)).err(), Some(Malformed::TooMany));
        }
        for body in ["", "{}", "[1", "[1]x", "7", EVENT] {
            assert_eq!(batch(body).err(), Some(Malformed::NotABatch), "{body}");
        }
    }

    #[test]
    fn binary_headers_are_decoded() {
        let of = |source: &'static str| {
            let headers: [(_, &[u8]); 7] = [
                ("content-type", b"application/json"),
                ("ce-specversion", b"1.0"),
                ("ce-id", b"e-1"),
                ("ce-source", source.as_bytes()),
                ("ce-type", b"custom.thing"),
                ("ce-recipient", b"m-1"),
                ("ce-Not_An_Attribute", b"x"),
            ];
            match parsed(&headers, "{}")
                .unwrap()
                .items
                .pop()
                .unwrap()
                .into_parts()
                .0
            {
                Verdict::Accepted { source, .. } => source,
                refused @ Verdict::Refused { .. } => format!("{refused:?}"),
            }
        };
        for (sent, read) in [
            ("/shop", "/shop"),
            ("/caf%C3%A9%20%E2%82%AC", "/caf\u{e9} \u{20ac}"),
            ("\"/a \\\"b\\\\\"", "/a \"b\\"),
            ("/100%", "/100%"),
            ("/caf\u{e9}", "/caf\u{e9}"),
        ] {
            assert_eq!(of(sent), read, "{sent}");
        }
        assert!(of("/%FF").contains("invalid_envelope"), "{}", of("/%FF"));
    }

    #[test]
    fn a_request_without_a_mode_is_refused() {
        let refused = verdicts("application/json", EVENT);
        assert_eq!(reasons(&refused), [Some("unsupported_content_type")]);
    }
}

//! A delivery of RabbitMQ, and its headers as CloudEvents attributes. No I/O.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::event::{HeaderValue, Message};

const NANOSECONDS_PER_MILLISECOND: i128 = 1_000_000;

/// The header of the numbers of hints.
pub(super) const ANNOUNCEMENT_HEADER: &str = "shopbell-announcement";

/// A delivery: an event as its publisher sent it, and the tag that acknowledges it.
#[derive(Debug)]
pub struct Delivery {
    pub(super) inner: lapin::message::Delivery,
}

impl Delivery {
    /// The delivery tag. It is valid only on the incarnation that delivered it.
    pub fn tag(&self) -> u64 {
        self.inner.delivery_tag
    }

    /// The part that the event parser reads.
    pub fn message(&self) -> Message<'_> {
        message(self.properties(), &self.inner.data)
    }

    /// The exchange of the publish.
    pub fn exchange(&self) -> &str {
        self.inner.exchange.as_str()
    }

    /// The routing key of the publish.
    pub fn routing_key(&self) -> &str {
        self.inner.routing_key.as_str()
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.inner.data
    }

    /// The `app_id` property. The publish of a hint names its replica here.
    pub fn app_id(&self) -> Option<&str> {
        self.properties()
            .app_id()
            .as_ref()
            .map(|name| name.as_str())
    }

    /// The numbers of hints, as their publisher wrote them.
    pub fn announcement(&self) -> Option<Cow<'_, str>> {
        header(self.properties(), ANNOUNCEMENT_HEADER)
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.inner.properties
    }
}

/// Returns the part of a delivery that the event parser reads.
pub fn message<'a>(properties: &'a BasicProperties, body: &'a [u8]) -> Message<'a> {
    Message {
        content_type: properties.content_type().as_ref().map(|name| name.as_str()),
        content_encoding: properties
            .content_encoding()
            .as_ref()
            .map(|name| name.as_str()),
        headers: headers(properties),
        body,
    }
}

/// Returns a header if it is text.
pub(super) fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<Cow<'a, str>> {
    match properties
        .headers()
        .as_ref()?
        .inner()
        .get(name)
        .and_then(value)?
    {
        HeaderValue::Text(text) => Some(text),
        HeaderValue::Unreadable(_) => None,
    }
}

/// Returns the headers as CloudEvents attributes (CloudEvents AMQP binding §3.1.3.2).
fn headers(properties: &BasicProperties) -> Vec<(Cow<'_, str>, HeaderValue<'_>)> {
    let pairs = properties.headers().iter().flat_map(|table| table.inner());
    pairs
        .filter_map(|(name, held)| Some((name.as_str().into(), value(held)?)))
        .collect()
}

/// Converts the value of a header. `None` is an absent attribute.
///
/// Text that is not UTF-8 is unreadable. With replacement characters, two ids could become equal.
fn value(held: &AMQPValue) -> Option<HeaderValue<'_>> {
    Some(match held {
        AMQPValue::LongString(text) => utf_8(text.as_bytes()),
        AMQPValue::ShortString(text) => HeaderValue::Text(text.as_str().into()),
        AMQPValue::ByteArray(bytes) => utf_8(bytes.as_slice()),
        AMQPValue::Boolean(value) => rendered(value),
        AMQPValue::ShortShortInt(value) => rendered(value),
        AMQPValue::ShortShortUInt(value) => rendered(value),
        AMQPValue::ShortInt(value) => rendered(value),
        AMQPValue::ShortUInt(value) => rendered(value),
        AMQPValue::LongInt(value) => rendered(value),
        AMQPValue::LongUInt(value) => rendered(value),
        AMQPValue::LongLongInt(value) => rendered(value),
        AMQPValue::Timestamp(seconds) => match moment(*seconds) {
            Some(moment) => HeaderValue::Text(moment.into()),
            None => HeaderValue::Unreadable("an AMQP timestamp after the year 9999"),
        },
        AMQPValue::Float(_) => HeaderValue::Unreadable("an AMQP float"),
        AMQPValue::Double(_) => HeaderValue::Unreadable("an AMQP double"),
        AMQPValue::DecimalValue(_) => HeaderValue::Unreadable("an AMQP decimal"),
        AMQPValue::FieldArray(_) => HeaderValue::Unreadable("an AMQP array"),
        AMQPValue::FieldTable(_) => HeaderValue::Unreadable("an AMQP table"),
        AMQPValue::Void => return None,
    })
}

fn utf_8(bytes: &[u8]) -> HeaderValue<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => HeaderValue::Text(text.into()),
        Err(_) => HeaderValue::Unreadable("text that is not UTF-8"),
    }
}

fn rendered(value: &impl ToString) -> HeaderValue<'static> {
    HeaderValue::Text(value.to_string().into())
}

/// AMQP 0-9-1 counts seconds (§4.2.5.4), but clients that use `Date.now()` send milliseconds. As
/// seconds, these would be after the year 9999.
fn moment(timestamp: u64) -> Option<String> {
    let seconds = i64::try_from(timestamp).ok()?;
    let milliseconds = i128::from(seconds) * NANOSECONDS_PER_MILLISECOND;
    let moment = OffsetDateTime::from_unix_timestamp(seconds)
        .or_else(|_| OffsetDateTime::from_unix_timestamp_nanos(milliseconds));
    moment.ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_in_seconds_or_in_milliseconds() {
        for (timestamp, rfc_3339) in [
            (0, Some("1970-01-01T00:00:00Z")),
            (1_767_323_045, Some("2026-01-02T03:04:05Z")),
            (253_402_300_799, Some("9999-12-31T23:59:59Z")),
            (1_767_323_045_678, Some("2026-01-02T03:04:05.678Z")),
            (253_402_300_799_999, Some("9999-12-31T23:59:59.999Z")),
            (253_402_300_800_000, None),
            (1_767_323_045_678_000, None),
            (u64::MAX, None),
        ] {
            assert_eq!(moment(timestamp).as_deref(), rfc_3339, "{timestamp}");
        }
    }

    #[test]
    fn a_header_without_a_value_is_absent() {
        assert_eq!(value(&AMQPValue::Void), None);
    }
}

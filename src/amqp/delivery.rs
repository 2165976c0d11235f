//! What RabbitMQ hands to a consumer.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::event::Message;

/// One delivery: an event as it came, and the tag that it is acknowledged by on the incarnation that delivered it.
#[derive(Debug)]
pub struct Delivery {
    pub(super) inner: lapin::message::Delivery,
}

impl Delivery {
    /// What it is acknowledged by.
    pub fn tag(&self) -> u64 {
        self.inner.delivery_tag
    }

    /// What the event parser reads of it.
    pub fn message(&self) -> Message<'_> {
        Message {
            content_type: self.properties().content_type().as_ref().map(|name| name.as_str()),
            headers: headers(self.properties()),
            body: &self.inner.data,
        }
    }

    /// The exchange it was published to.
    pub fn exchange(&self) -> &str {
        self.inner.exchange.as_str()
    }

    /// The routing key it was published with.
    pub fn routing_key(&self) -> &str {
        self.inner.routing_key.as_str()
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.inner.data
    }

    /// The `app_id` property: for a hint, the replica that sent it.
    pub fn app_id(&self) -> Option<&str> {
        self.properties().app_id().as_ref().map(|name| name.as_str())
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.inner.properties
    }

    /// A header that is text.
    pub(super) fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let headers = self.properties().headers().as_ref()?;
        headers.inner().get(name).and_then(text)
    }
}

/// Application headers as CloudEvents attributes (CloudEvents AMQP binding §3.1.3.2): only what can be one.
fn headers(properties: &BasicProperties) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let pairs = properties.headers().iter().flat_map(|table| table.inner());
    pairs.filter_map(|(name, value)| Some((name.as_str().into(), text(value)?))).collect()
}

/// `None` for what is not text, a number, a truth value or a time; for text that is not UTF-8 too, so that no two
/// different ids become one.
fn text(value: &AMQPValue) -> Option<Cow<'_, str>> {
    Some(match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::ByteArray(bytes) => std::str::from_utf8(bytes.as_slice()).ok()?.into(),
        AMQPValue::Boolean(value) => value.to_string().into(),
        AMQPValue::ShortShortInt(value) => value.to_string().into(),
        AMQPValue::ShortShortUInt(value) => value.to_string().into(),
        AMQPValue::ShortInt(value) => value.to_string().into(),
        AMQPValue::ShortUInt(value) => value.to_string().into(),
        AMQPValue::LongInt(value) => value.to_string().into(),
        AMQPValue::LongUInt(value) => value.to_string().into(),
        AMQPValue::LongLongInt(value) => value.to_string().into(),
        AMQPValue::Timestamp(seconds) => {
            let time = OffsetDateTime::from_unix_timestamp(i64::try_from(*seconds).ok()?).ok()?;
            time.format(&Rfc3339).ok()?.into()
        }
        _ => return None,
    })
}

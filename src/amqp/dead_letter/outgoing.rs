//! The publishes of a dead letter: to the dead-letter exchange, and back to ingest. No I/O.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::DeadLetter;
use crate::amqp::publisher::Outgoing;
use crate::amqp::topology::Names;

const HEADERS_DROPPED: &str = "x-shopbell-headers-dropped";
/// The prefix of the headers that Shopbell adds. A replay removes them.
const OUR_HEADERS: &str = "x-shopbell-";
/// Headers that RabbitMQ adds when it dead-letters an event. A replay is a new publish without
/// them.
const DEATH_HEADERS: [&str; 4] = [
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
];
/// Most bytes of the publisher's headers. With more, they and ours may exceed RabbitMQ's frame of
/// 128 KiB.
const HEADER_BYTES_MAX: usize = 64 * 1024;

impl DeadLetter {
    /// Returns its publish to the dead-letter exchange. If the publisher's headers are too large,
    /// the publish omits them.
    pub fn to_outgoing(&self, names: &Names) -> Outgoing {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        let (ours, theirs): (Vec<_>, Vec<_>) =
            headers.inner().iter().partition(|(name, _)| is_ours(name));
        let their_bytes: usize = theirs.into_iter().map(header_bytes).sum();
        if their_bytes > HEADER_BYTES_MAX {
            let mut kept = FieldTable::default();
            for (name, value) in ours {
                kept.insert(name.clone(), value.clone());
            }
            kept.insert(HEADERS_DROPPED.into(), AMQPValue::Boolean(true));
            headers = kept;
        }
        Outgoing {
            exchange: names.dead_letter(),
            routing_key: self.routing_key.clone(),
            properties: Outgoing::persistent(carried(&self.properties, headers)),
            body: self.body.clone(),
            mandatory: true,
        }
    }

    /// Returns the publish that sends it to ingest again, with `body` instead of its own if given.
    pub fn to_replay(&self, names: &Names, body: Option<&[u8]>) -> Outgoing {
        let mut headers = FieldTable::default();
        let original_headers = self.properties.headers().iter();
        for (name, value) in original_headers.flat_map(|table| table.inner()) {
            if !is_ours(name) && !is_of_a_death(name) {
                headers.insert(name.clone(), value.clone());
            }
        }
        Outgoing {
            exchange: names.events(),
            routing_key: self.routing_key.clone(),
            properties: Outgoing::persistent(carried(&self.properties, headers)),
            body: body.unwrap_or(&self.body).to_vec(),
            mandatory: true,
        }
    }
}

fn is_ours(name: &ShortString) -> bool {
    name.as_str().starts_with(OUR_HEADERS)
}

fn is_of_a_death(name: &ShortString) -> bool {
    let name = name.as_str();
    DEATH_HEADERS.iter().any(|death| name.starts_with(death))
}

/// Returns these headers with the properties that concern the readers of an event.
///
/// It omits `expiration`, which would delete the dead letter, and `user-id`, which RabbitMQ rejects
/// from another user.
fn carried(original: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default().with_headers(headers);
    if let Some(content_type) = original.content_type() {
        properties = properties.with_content_type(content_type.clone());
    }
    if let Some(content_encoding) = original.content_encoding() {
        properties = properties.with_content_encoding(content_encoding.clone());
    }
    if let Some(message_id) = original.message_id() {
        properties = properties.with_message_id(message_id.clone());
    }
    if let Some(correlation_id) = original.correlation_id() {
        properties = properties.with_correlation_id(correlation_id.clone());
    }
    if let Some(timestamp) = original.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    if let Some(kind) = original.kind() {
        properties = properties.with_type(kind.clone());
    }
    if let Some(app_id) = original.app_id() {
        properties = properties.with_app_id(app_id.clone());
    }
    properties
}

fn header_bytes((name, value): (&ShortString, &AMQPValue)) -> usize {
    name.as_str().len() + value_bytes(value)
}

/// Estimates the size of a value in a frame. A number counts as the largest one.
fn value_bytes(value: &AMQPValue) -> usize {
    const NUMBER_BYTES: usize = 10;
    NUMBER_BYTES
        + match value {
            AMQPValue::LongString(text) => text.len(),
            AMQPValue::ShortString(text) => text.as_str().len(),
            AMQPValue::ByteArray(bytes) => bytes.len(),
            AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_bytes).sum(),
            AMQPValue::FieldTable(table) => table.inner().iter().map(header_bytes).sum(),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_letter(headers: FieldTable) -> DeadLetter {
        let mut dead_letter = DeadLetter {
            id: "7".into(),
            reason: "invalid_data".into(),
            detail: String::new(),
            exchange: "shopbell.events".into(),
            routing_key: "order.created".into(),
            body: b"{".to_vec(),
            properties: BasicProperties::default()
                .with_headers(headers)
                .with_expiration("1000".into())
                .with_user_id("merchant".into()),
        };
        dead_letter.set_our_headers();
        dead_letter
    }

    fn names(outgoing: &Outgoing) -> Vec<String> {
        let headers = outgoing.properties.headers().iter();
        headers
            .flat_map(|table| table.inner().keys())
            .map(|name| name.as_str().to_owned())
            .collect()
    }

    #[test]
    fn a_replay_has_only_the_headers_of_the_publisher() {
        let mut headers = FieldTable::default();
        headers.insert("cloudEvents_id".into(), AMQPValue::LongString("1".into()));
        headers.insert("x-death".into(), AMQPValue::Void);
        headers.insert("x-first-death-queue".into(), AMQPValue::Void);
        let replay = dead_letter(headers).to_replay(&Names::new("shopbell"), Some(b"{}"));
        assert_eq!(names(&replay), ["cloudEvents_id"]);
        assert_eq!(
            (replay.exchange.as_str(), &*replay.body),
            ("shopbell.events", &b"{}"[..])
        );
        assert_eq!(replay.properties.expiration(), &None);
        assert_eq!(replay.properties.user_id(), &None);
    }

    #[test]
    fn headers_that_may_not_fit_a_frame_are_omitted() {
        let publish = |bytes: usize| {
            let mut headers = FieldTable::default();
            headers.insert(
                "theirs".into(),
                AMQPValue::LongString("x".repeat(bytes).into()),
            );
            names(&dead_letter(headers).to_outgoing(&Names::new("shopbell")))
        };
        assert!(publish(HEADER_BYTES_MAX - 100).contains(&"theirs".into()));
        let without = publish(HEADER_BYTES_MAX);
        assert!(!without.contains(&"theirs".into()));
        assert!(without.contains(&HEADERS_DROPPED.into()));
        assert!(without.contains(&"x-shopbell-id".into()));
    }
}

//! A dead letter in the form of RabbitMQ: an event that is not stored as a notification, and the
//! reason. Its AMQP headers carry the reason and the way back.
//!
//! `store` keeps dead letters until an operator replays or drops them. [`queue`] reads the copies
//! in RabbitMQ.

mod outgoing;
pub mod queue;

use lapin::BasicProperties;
use lapin::protocol::basic::{gen_properties, parse_properties};
use lapin::types::{AMQPValue, ShortString};

use super::delivery::{self, Delivery};
use crate::model::event::{Message, Rejection};

const ID: &str = "x-shopbell-id";
const REASON: &str = "x-shopbell-reason";
const DETAIL: &str = "x-shopbell-detail";
const EXCHANGE: &str = "x-shopbell-exchange";
const ROUTING_KEY: &str = "x-shopbell-routing-key";
const BODY_BYTES: &str = "x-shopbell-body-bytes";

/// The stored properties of a dead letter are not valid AMQP, so it can be neither published nor
/// replayed.
#[derive(Debug, thiserror::Error)]
#[error("the stored properties of a dead letter are not valid AMQP")]
pub struct Undecodable;

/// An event that is not stored as a notification, with the reason. Its headers are those of the
/// publisher and ours.
#[derive(Debug)]
pub struct DeadLetter {
    /// The id that commands use.
    pub id: String,
    /// A reason of the contract. If RabbitMQ dead-lettered the event, RabbitMQ's reason, such as
    /// `delivery_limit`.
    pub reason: String,
    /// The exact cause, for people.
    pub detail: String,
    /// The exchange of the publish.
    pub exchange: String,
    /// The routing key of the publish.
    pub routing_key: String,
    /// The body of the publish.
    pub body: Vec<u8>,
    properties: BasicProperties,
}

impl DeadLetter {
    /// Makes a dead letter of a delivery, without its body.
    pub fn new(id: String, delivery: &Delivery, reason: &str, detail: &str) -> Self {
        let mut dead_letter = Self {
            id,
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            exchange: delivery.exchange().to_owned(),
            routing_key: delivery.routing_key().to_owned(),
            body: Vec::new(),
            properties: delivery.properties().clone(),
        };
        dead_letter.set_our_headers();
        dead_letter
    }

    /// Decodes a stored dead letter.
    ///
    /// # Errors
    /// [`Undecodable`] if the properties are not those of [`DeadLetter::encode`].
    pub fn decode(properties: &[u8], body: Vec<u8>) -> Result<Self, Undecodable> {
        let (_, properties) = parse_properties(properties).map_err(|_| Undecodable)?;
        Ok(Self::read(properties, body, None))
    }

    /// Encodes all but the body, for the store. If the encoding fails, decoding the result fails.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = gen_properties(&self.properties)(Vec::new().into());
        encoded.map(|context| context.write).unwrap_or_default()
    }

    fn read(properties: BasicProperties, body: Vec<u8>, routing_key: Option<&str>) -> Self {
        let header = |name| delivery::header(&properties, name).map(|value| value.into_owned());
        Self {
            id: header(ID).unwrap_or_default(),
            reason: header(REASON)
                .or_else(|| header("x-first-death-reason"))
                .unwrap_or_else(|| "unknown".into()),
            detail: header(DETAIL).unwrap_or_default(),
            exchange: header(EXCHANGE)
                .or_else(|| header("x-first-death-exchange"))
                .unwrap_or_default(),
            routing_key: header(ROUTING_KEY)
                .unwrap_or_else(|| routing_key.unwrap_or_default().into()),
            body,
            properties,
        }
    }

    /// Replaces the reason, for an event that waited for a damaged feed and is now rejected.
    pub fn rejected(mut self, rejection: &Rejection) -> Self {
        self.reason = rejection.reason.as_str().to_owned();
        self.detail.clone_from(&rejection.detail);
        self.set_our_headers();
        self
    }

    /// Records the length of a body that is stored only in part.
    pub fn set_original_body_bytes(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.set_header(BODY_BYTES, AMQPValue::LongLongInt(bytes));
    }

    /// The length of the publisher's body, if only a part of it is stored.
    pub fn original_body_bytes(&self) -> Option<i64> {
        delivery::header(&self.properties, BODY_BYTES)?.parse().ok()
    }

    fn set_our_headers(&mut self) {
        let text = |value: &str| AMQPValue::LongString(value.into());
        let headers = [
            (ID, text(&self.id)),
            (REASON, text(&self.reason)),
            (DETAIL, text(&self.detail)),
            (EXCHANGE, text(&self.exchange)),
            (ROUTING_KEY, text(&self.routing_key)),
        ];
        for (name, value) in headers {
            self.set_header(name, value);
        }
    }

    fn set_header(&mut self, name: &'static str, value: AMQPValue) {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), value);
        self.properties = self.properties.clone().with_headers(headers);
    }

    /// The content type of the publish.
    pub fn content_type(&self) -> Option<&str> {
        self.properties
            .content_type()
            .as_ref()
            .map(ShortString::as_str)
    }

    /// The part that the event parser reads.
    pub fn message(&self) -> Message<'_> {
        delivery::message(&self.properties, &self.body)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    #[test]
    fn a_dead_letter_is_decoded_as_it_was_encoded() {
        let mut headers = FieldTable::default();
        headers.insert("theirs".into(), AMQPValue::Double(f64::INFINITY));
        headers.insert(
            "bytes".into(),
            AMQPValue::LongString(b"\xff\0".as_slice().into()),
        );
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_content_type("text\0".into())
            .with_priority(3);
        let mut dead_letter = DeadLetter {
            id: "7".into(),
            reason: "too_large".into(),
            detail: "more than 1 byte".into(),
            exchange: "shopbell.events".into(),
            routing_key: "order.\0".into(),
            body: b"{".to_vec(),
            properties,
        };
        dead_letter.set_our_headers();
        dead_letter.set_original_body_bytes(9);
        let decoded = DeadLetter::decode(&dead_letter.encode(), b"{".to_vec()).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{dead_letter:?}"));
        assert_eq!(decoded.original_body_bytes(), Some(9));
        assert!(DeadLetter::decode(b"", Vec::new()).is_err());
        assert!(DeadLetter::decode(&dead_letter.encode()[..40], Vec::new()).is_err());
    }
}

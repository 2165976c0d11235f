//! Dead letters as RabbitMQ has them: an event that is no notification, with the reason, and the way back.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::protocol::basic::{gen_properties, parse_properties};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};

use super::connection::{Connection, Frames};
use super::delivery::{self, Delivery};
use super::publisher::Outgoing;
use super::topology::Names;
use super::{Broker, BrokerError, within};
use crate::model::event::{Message, Rejection};

const ID: &str = "x-shopbell-id";
const REASON: &str = "x-shopbell-reason";
const DETAIL: &str = "x-shopbell-detail";
const EXCHANGE: &str = "x-shopbell-exchange";
const ROUTING_KEY: &str = "x-shopbell-routing-key";
const HEADERS_DROPPED: &str = "x-shopbell-headers-dropped";
const BODY_BYTES: &str = "x-shopbell-body-bytes";
/// Ours all begin so; they are taken off again at a replay.
const OUR_HEADERS: &str = "x-shopbell-";
/// RabbitMQ's own account of a dead-lettering; a replay is a new publish.
const DEATH_HEADERS: [&str; 4] = [
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
];

/// Headers beyond this are not carried along: with ours they might not fit the broker's frame of 128 KiB.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// How long RabbitMQ may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An event that is kept because it is no notification. Its headers are the publisher's and ours.
#[derive(Debug)]
pub struct DeadLetter {
    /// What the commands name it by.
    pub id: String,
    /// A word of the contract, or RabbitMQ's own where it dead-lettered the event itself (`delivery_limit`).
    pub reason: String,
    /// What exactly is wrong, for people.
    pub detail: String,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// The body it came with.
    pub body: Vec<u8>,
    properties: BasicProperties,
}

impl DeadLetter {
    /// The event as it came, with the reason why it is no notification, and an id to name it by.
    ///
    /// `expiration` and `user-id` go: the first would delete the dead letter, the second is refused from another publisher.
    pub fn of(id: String, delivery: &Delivery, reason: &str, detail: &str) -> Self {
        let properties = delivery.properties().clone();
        let mut letter = Self {
            id,
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            exchange: delivery.exchange().to_owned(),
            routing_key: delivery.routing_key().to_owned(),
            body: Vec::new(),
            properties,
        };
        letter.label();
        letter
    }

    /// One that is stored.
    pub fn decode(properties: &[u8], body: Vec<u8>) -> Result<Self, BrokerError> {
        let parsed = parse_properties(properties).map_err(|_| BrokerError::Undecodable)?;
        Ok(Self::read(parsed.1, body, None))
    }

    /// Encodes all but the body, for storing. An encoding that is not complete decodes to an error.
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

    /// Gives an event that waited another reason, now that it is dead.
    pub fn rejected(mut self, rejection: &Rejection) -> Self {
        self.reason = rejection.reason.as_str().to_owned();
        self.detail.clone_from(&rejection.detail);
        self.label();
        self
    }

    /// Notes that only the first bytes of its body are kept.
    pub fn cut_from(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.set_header(BODY_BYTES, AMQPValue::LongLongInt(bytes));
    }

    fn label(&mut self) {
        let text = |value: &str| AMQPValue::LongString(value.into());
        let labels = [
            (ID, text(&self.id)),
            (REASON, text(&self.reason)),
            (DETAIL, text(&self.detail)),
            (EXCHANGE, text(&self.exchange)),
            (ROUTING_KEY, text(&self.routing_key)),
        ];
        for (name, value) in labels {
            self.set_header(name, value);
        }
    }

    fn set_header(&mut self, name: &'static str, value: AMQPValue) {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), value);
        self.properties = self.properties.clone().with_headers(headers);
    }

    /// The content type it came with.
    pub fn content_type(&self) -> Option<&str> {
        self.properties
            .content_type()
            .as_ref()
            .map(ShortString::as_str)
    }

    /// How many bytes its body had, if that is more than are kept.
    pub fn cut_bytes(&self) -> Option<i64> {
        delivery::header(&self.properties, BODY_BYTES)?.parse().ok()
    }

    /// The part that the event parser reads.
    pub fn message(&self) -> Message<'_> {
        delivery::message(&self.properties, &self.body)
    }

    /// The publish to the dead-letter exchange.
    pub fn publish(&self, names: &Names) -> Outgoing {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        let (ours, theirs): (Vec<_>, Vec<_>) =
            headers.inner().iter().partition(|(name, _)| is_ours(name));
        if theirs
            .iter()
            .map(|(name, value)| name.as_str().len() + value_bytes(value))
            .sum::<usize>()
            > HEADER_BYTES_MAX
        {
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

    /// The publish that brings it back to ingest, with another body where it was mended.
    pub fn replay(&self, names: &Names, mended: Option<&[u8]>) -> Outgoing {
        let mut headers = FieldTable::default();
        for (name, value) in self
            .properties
            .headers()
            .iter()
            .flat_map(|table| table.inner())
        {
            if !is_ours(name)
                && !DEATH_HEADERS
                    .iter()
                    .any(|death| name.as_str().starts_with(death))
            {
                headers.insert(name.clone(), value.clone());
            }
        }
        Outgoing {
            exchange: names.events(),
            routing_key: self.routing_key.clone(),
            properties: Outgoing::persistent(carried(&self.properties, headers)),
            body: mended.unwrap_or(&self.body).to_vec(),
            mandatory: true,
        }
    }
}

fn is_ours(name: &ShortString) -> bool {
    name.as_str().starts_with(OUR_HEADERS)
}

/// A dead letter in RabbitMQ's queue.
#[derive(Debug)]
pub struct Queued {
    /// The letter.
    pub letter: DeadLetter,
    /// How many more lay behind it in the queue.
    pub behind: u32,
    tag: u64,
}

impl Queued {
    /// For one that is only to be removed.
    pub fn without_body(mut self) -> Self {
        self.letter.body = Vec::new();
        self
    }
}

/// Looks at the dead-letter queue. What was looked at and not removed goes back when this is closed.
pub struct DeadLetters {
    connection: Connection,
    channel: Channel,
    queue: String,
    looked_at: usize,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters")
            .field("looked_at", &self.looked_at)
            .finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// Connects.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        let (connection, channel, _) = broker.open("dead-letters", Frames::Large).await?;
        Ok(Self {
            connection,
            channel,
            queue: broker.names.dead_letter(),
            looked_at: 0,
        })
    }

    /// The next one, oldest first; `None` when all were looked at.
    pub async fn next(&mut self) -> Result<Option<Queued>, BrokerError> {
        let getting = async {
            Ok(self
                .channel
                .basic_get(self.queue.as_str().into(), BasicGetOptions::default())
                .await?)
        };
        let got = within(ANSWER_TIMEOUT, "getting a dead letter", getting).await?;
        self.looked_at += 1;
        let queued = |got: lapin::message::BasicGetMessage| {
            let lapin::message::Delivery {
                delivery_tag,
                properties,
                data,
                routing_key,
                ..
            } = got.delivery;
            let mut letter = DeadLetter::read(properties, data, Some(routing_key.as_str()));
            if letter.id.is_empty() {
                letter.id = format!("position-{}", self.looked_at);
            }
            Queued {
                letter,
                behind: got.message_count,
                tag: delivery_tag,
            }
        };
        Ok(got.map(queued))
    }

    /// Removes it for good.
    pub async fn remove(&self, queued: &Queued) -> Result<(), BrokerError> {
        let options = BasicAckOptions { multiple: false };
        let removing = async { Ok(self.channel.basic_ack(queued.tag, options).await?) };
        within(ANSWER_TIMEOUT, "removing a dead letter", removing).await
    }

    /// Gives back what was not removed.
    pub async fn close(self) {
        self.connection.close(&self.channel).await;
    }
}

/// The publisher's properties that mean something to whoever reads the event, with these headers.
fn carried(came: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default().with_headers(headers);
    if let Some(content_type) = came.content_type() {
        properties = properties.with_content_type(content_type.clone());
    }
    if let Some(content_encoding) = came.content_encoding() {
        properties = properties.with_content_encoding(content_encoding.clone());
    }
    if let Some(message_id) = came.message_id() {
        properties = properties.with_message_id(message_id.clone());
    }
    if let Some(correlation_id) = came.correlation_id() {
        properties = properties.with_correlation_id(correlation_id.clone());
    }
    if let Some(timestamp) = came.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    if let Some(kind) = came.kind() {
        properties = properties.with_type(kind.clone());
    }
    if let Some(app_id) = came.app_id() {
        properties = properties.with_app_id(app_id.clone());
    }
    properties
}

/// What a value takes in the frame, roughly: numbers and tags count as their largest.
fn value_bytes(value: &AMQPValue) -> usize {
    const NUMBER_BYTES: usize = 10;
    NUMBER_BYTES
        + match value {
            AMQPValue::LongString(text) => text.len(),
            AMQPValue::ShortString(text) => text.as_str().len(),
            AMQPValue::ByteArray(bytes) => bytes.len(),
            AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_bytes).sum(),
            AMQPValue::FieldTable(table) => table
                .inner()
                .iter()
                .map(|(name, value)| name.as_str().len() + value_bytes(value))
                .sum(),
            _ => 0,
        }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_decoded_as_it_was_encoded() {
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
        let mut letter = DeadLetter {
            id: "7".into(),
            reason: "too_large".into(),
            detail: "more than 1 byte".into(),
            exchange: "shopbell.events".into(),
            routing_key: "order.\0".into(),
            body: b"{".to_vec(),
            properties,
        };
        letter.label();
        letter.cut_from(9);
        let decoded = DeadLetter::decode(&letter.encode(), b"{".to_vec()).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{letter:?}"));
        assert_eq!(decoded.cut_bytes(), Some(9));
        assert!(DeadLetter::decode(b"", Vec::new()).is_err());
        assert!(DeadLetter::decode(&letter.encode()[..40], Vec::new()).is_err());
    }
}

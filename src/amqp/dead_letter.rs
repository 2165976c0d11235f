//! Dead letters: how an event that can never be stored is kept, looked at, and brought back.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};

use super::connection::{Connection, Frames};
use super::delivery::Delivery;
use super::publisher::Outgoing;
use super::topology::Names;
use super::{Broker, BrokerError, within};
use crate::event::Rejection;

const ID: &str = "x-shopbell-id";
const REASON: &str = "x-shopbell-reason";
const DETAIL: &str = "x-shopbell-detail";
const EXCHANGE: &str = "x-shopbell-exchange";
const ROUTING_KEY: &str = "x-shopbell-routing-key";
const HEADERS_DROPPED: &str = "x-shopbell-headers-dropped";
/// Ours all begin so; they are taken off again at a replay.
const OUR_HEADERS: &str = "x-shopbell-";
/// RabbitMQ's own account of a dead-lettering; a replay is a new publish.
const DEATH_HEADERS: [&str; 4] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];

/// Headers beyond this are not carried along: with ours they might not fit the broker's frame of 128 KiB.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// How long RabbitMQ may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The event as it came, with the reason why it can never be stored, and an id to name it by.
///
/// `expiration` and `user-id` go: the first would delete the dead letter, the second is refused from another publisher.
pub fn bury(names: &Names, id: &str, delivery: &Delivery, rejection: &Rejection) -> Outgoing {
    let came = delivery.properties();
    let mut headers = came.headers().clone().unwrap_or_default();
    if table_bytes(&headers) > HEADER_BYTES_MAX {
        headers = FieldTable::default();
        headers.insert(HEADERS_DROPPED.into(), AMQPValue::Boolean(true));
    }
    for (name, value) in [
        (ID, id),
        (REASON, rejection.reason.as_str()),
        (DETAIL, &rejection.detail),
        (EXCHANGE, delivery.exchange()),
        (ROUTING_KEY, delivery.routing_key()),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    Outgoing {
        exchange: names.dead_letter(),
        routing_key: delivery.routing_key().into(),
        properties: Outgoing::persistent(carried(came, headers)),
        body: delivery.body().to_vec(),
        mandatory: true,
    }
}

/// An event that is kept because it can never be stored.
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
    /// How many more lay behind it in the queue.
    pub behind: u32,
    delivery: Delivery,
}

impl DeadLetter {
    fn new(delivery: Delivery, position: usize, behind: u32) -> Self {
        let header = |name| delivery.header(name).map(|value| value.into_owned());
        Self {
            id: header(ID).unwrap_or_else(|| format!("position-{position}")),
            reason: header(REASON).or_else(|| header("x-first-death-reason")).unwrap_or_else(|| "unknown".into()),
            detail: header(DETAIL).unwrap_or_default(),
            exchange: header(EXCHANGE).or_else(|| header("x-first-death-exchange")).unwrap_or_default(),
            routing_key: header(ROUTING_KEY).unwrap_or_else(|| delivery.routing_key().into()),
            behind,
            delivery,
        }
    }

    /// The content type it came with.
    pub fn content_type(&self) -> Option<&str> {
        self.delivery.properties().content_type().as_ref().map(ShortString::as_str)
    }

    /// The body it came with.
    pub fn body(&self) -> &[u8] {
        self.delivery.body()
    }

    /// The publish that brings it back to ingest, with another body where it was mended.
    pub fn replay(&self, names: &Names, mended: Option<&[u8]>) -> Outgoing {
        let came = self.delivery.properties();
        let mut headers = FieldTable::default();
        for (name, value) in came.headers().iter().flat_map(|table| table.inner()) {
            let ours = name.as_str().starts_with(OUR_HEADERS);
            if !ours && !DEATH_HEADERS.iter().any(|death| name.as_str().starts_with(death)) {
                headers.insert(name.clone(), value.clone());
            }
        }
        Outgoing {
            exchange: names.events(),
            routing_key: self.routing_key.clone(),
            properties: Outgoing::persistent(carried(came, headers)),
            body: mended.unwrap_or(self.body()).to_vec(),
            mandatory: true,
        }
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
        f.debug_struct("DeadLetters").field("looked_at", &self.looked_at).finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// Connects.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        let (connection, channel, _) = broker.open("dead-letters", Frames::Large).await?;
        Ok(Self { connection, channel, queue: broker.names.dead_letter(), looked_at: 0 })
    }

    /// The next one, oldest first; `None` when all were looked at.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        let getting =
            async { Ok(self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()).await?) };
        let got = within(ANSWER_TIMEOUT, "getting a dead letter", getting).await?;
        self.looked_at += 1;
        Ok(got.map(|got| DeadLetter::new(Delivery { inner: got.delivery }, self.looked_at, got.message_count)))
    }

    /// Removes it for good.
    pub async fn remove(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let options = BasicAckOptions { multiple: false };
        let removing = async { Ok(self.channel.basic_ack(letter.delivery.tag(), options).await?) };
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

fn table_bytes(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| name.as_str().len() + value_bytes(value)).sum()
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
            AMQPValue::FieldTable(table) => table_bytes(table),
            _ => 0,
        }
}

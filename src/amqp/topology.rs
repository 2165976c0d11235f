//! The exchanges and queues of the AMQP contract: their names, and how they are declared or verified.

use std::fmt;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::BrokerError;

/// How often an event may be delivered before RabbitMQ itself dead-letters it: few enough that one which ends every
/// incarnation is out of the way within hours, many enough for a database that takes no writes for days. Every crash, and
/// every wait in vain, counts for all that is prefetched; RabbitMQ 4's default of 20 would be used up in an afternoon.
const DELIVERY_LIMIT: i32 = 1_000;
/// Listing dead letters counts as a delivery of each: none may ever be dropped for having been looked at.
const LOOKS_AT_DEAD_LETTERS_MAX: i32 = 1_000_000_000;
/// Most hints waiting for a replica that does not keep up: past that the oldest go, and the sweep makes them good.
const HINTS_WAITING_MAX: i32 = 10_000;
/// … and most bytes of them.
const HINT_BYTES_WAITING_MAX: i32 = 64 * 1024 * 1024;

/// Names of the contract under one prefix.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $suffix:literal),* $(,)?) => {
        impl Names {
            $($(#[$doc])* pub fn $name(&self) -> String { format!(concat!("{}.", $suffix), self.prefix) })*
        }
    };
}
names! {
    /// The topic exchange that publishers publish to.
    events = "events",
    /// The quorum queue of everything published.
    ingest = "ingest",
    /// The exchange and quorum queue of what can never be stored.
    dead_letter = "dead-letter",
    /// The exchange and queue of what no queue took.
    unroutable = "unroutable",
    /// The exchange to every replica.
    fanout = "fanout",
    /// The topic exchange that Shopbell publishes receipts to.
    receipts = "receipts",
}

impl Names {
    /// Names that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The fan-out queue of one incarnation: always a new name, because the broker may still hold the last one.
    pub fn new_fanout_queue(&self) -> String {
        format!("{}.{}", self.fanout(), uuid::Uuid::new_v4().simple())
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.*", self.prefix)
    }
}

/// Declares everything durable of the contract; with `declare` off, only verifies that it is there.
pub(super) async fn ensure(channel: &Channel, names: &Names, declare: bool) -> Result<(), BrokerError> {
    let exchanges = [
        (names.unroutable(), ExchangeKind::Fanout, FieldTable::default()),
        (names.events(), ExchangeKind::Topic, table([("alternate-exchange", text(names.unroutable()))])),
        (names.dead_letter(), ExchangeKind::Fanout, FieldTable::default()),
        (names.fanout(), ExchangeKind::Fanout, FieldTable::default()),
        (names.receipts(), ExchangeKind::Topic, FieldTable::default()),
    ];
    for (exchange, kind, arguments) in exchanges {
        let options = ExchangeDeclareOptions { durable: true, passive: !declare, ..Default::default() };
        channel.exchange_declare(exchange.into(), kind, options, arguments).await?;
    }

    let kept = || table([("x-queue-type", text("quorum")), ("x-delivery-limit", number(LOOKS_AT_DEAD_LETTERS_MAX))]);
    // At-least-once dead-lettering needs reject-publish, and loses nothing where the broker itself dead-letters.
    let ingest = table([
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-delivery-limit", number(DELIVERY_LIMIT)),
        ("x-dead-letter-exchange", text(names.dead_letter())),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]);
    let queues = [
        (names.dead_letter(), names.dead_letter(), kept()),
        (names.unroutable(), names.unroutable(), kept()),
        (names.ingest(), names.events(), ingest),
    ];
    for (queue, exchange, arguments) in queues {
        let options = QueueDeclareOptions { durable: true, passive: !declare, ..Default::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        if declare {
            let everything = "#".into();
            let bind = QueueBindOptions::default();
            channel.queue_bind(queue.into(), exchange.into(), everything, bind, FieldTable::default()).await?;
        }
    }
    Ok(())
}

/// Declares and binds the fan-out queue of one incarnation of this replica: gone with its connection, and bounded.
pub(super) async fn ensure_fanout_queue(channel: &Channel, names: &Names) -> Result<String, BrokerError> {
    let queue = names.new_fanout_queue();
    let arguments = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", number(HINTS_WAITING_MAX)),
        ("x-max-length-bytes", number(HINT_BYTES_WAITING_MAX)),
        ("x-overflow", text("drop-head")),
    ]);
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(queue.as_str().into(), options, arguments).await?;
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.as_str().into(), names.fanout().into(), "".into(), bind, none).await?;
    Ok(queue)
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn text(value: impl Into<String>) -> AMQPValue {
    AMQPValue::LongString(value.into().into())
}

fn number(value: i32) -> AMQPValue {
    AMQPValue::LongInt(value)
}

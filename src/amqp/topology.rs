//! The exchanges and queues of the AMQP contract: their names, and how they are declared or verified.

use std::fmt;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::connection::Connection;
use super::{Broker, BrokerError};

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

/// The header that partitions are chosen by: the CloudEvents attribute as the AMQP binding writes it.
pub(super) const RECIPIENT_HEADER: &str = "cloudEvents_recipient";
/// The binding key of a topic exchange that takes all; fan-out exchanges ignore it.
const EVERYTHING: &str = "#";
/// The binding key of the hash exchange is a weight: no partition is larger than another.
const ONE_SHARE: &str = "1";
/// AMQP's reply code for a close without an error.
const NOTHING_WRONG: u16 = 200;

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
    /// The quorum queue of everything published; the first partition where there are several.
    ingest = "ingest",
    /// The exchange that spreads events over the partitions by their recipient.
    partitions = "partitions",
    /// The exchange and quorum queue of what can never be stored.
    dead_letter = "dead-letter",
    /// The exchange and queue of what no queue took.
    unroutable = "unroutable",
    /// The exchange to every replica.
    fanout = "fanout",
    /// The queue that gateways are counted by.
    gateways = "gateways",
    /// The topic exchange that Shopbell publishes receipts to.
    receipts = "receipts",
}

impl Names {
    /// Names that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The queue of one partition, counted from 1.
    pub fn partition(&self, number: u8) -> String {
        match number {
            1 => self.ingest(),
            _ => format!("{}.{number}", self.ingest()),
        }
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

/// What of the contract is durable, as it was declared or found.
#[derive(Debug, Default)]
pub struct Topology {
    /// Its exchanges.
    pub exchanges: Vec<String>,
    /// Its queues.
    pub queues: Vec<String>,
    /// Somebody declared more partitions than this process knows of: nobody here consumes those.
    pub more_partitions: bool,
}

/// Declares everything durable of the contract; with `declare` off, only verifies that it is there.
pub(super) async fn ensure(
    connection: &Connection,
    channel: &Channel,
    broker: &Broker,
) -> Result<Topology, BrokerError> {
    let (names, passive) = (&broker.names, !broker.declare);
    let mut topology = Topology::default();
    for (exchange, kind, arguments) in exchanges(broker) {
        let options = ExchangeDeclareOptions {
            durable: true,
            passive,
            ..Default::default()
        };
        channel
            .exchange_declare(exchange.as_str().into(), kind, options, arguments)
            .await?;
        topology.exchanges.push(exchange);
    }
    for (queue, arguments) in queues(broker) {
        let options = QueueDeclareOptions {
            durable: true,
            passive,
            ..Default::default()
        };
        channel
            .queue_declare(queue.as_str().into(), options, arguments)
            .await?;
        topology.queues.push(queue);
    }

    topology.more_partitions = is_there(connection, names.partition(broker.partitions + 1)).await?;
    if broker.declare {
        bind(
            channel,
            names.dead_letter(),
            names.dead_letter(),
            EVERYTHING,
        )
        .await?;
        bind(channel, names.unroutable(), names.unroutable(), EVERYTHING).await?;
        match broker.partitions {
            // The way past partitions that somebody else declared would let new events overtake those that wait there.
            1 if topology.more_partitions => {}
            1 => bind(channel, names.ingest(), names.events(), EVERYTHING).await?,
            partitions => route_by_recipient(channel, names, partitions).await?,
        }
    }
    Ok(topology)
}

/// The durable exchanges, each after those that it names.
pub(super) fn exchanges(broker: &Broker) -> Vec<(String, ExchangeKind, FieldTable)> {
    let names = &broker.names;
    let mut exchanges = vec![
        (
            names.unroutable(),
            ExchangeKind::Fanout,
            FieldTable::default(),
        ),
        (
            names.events(),
            ExchangeKind::Topic,
            table([("alternate-exchange", text(names.unroutable()))]),
        ),
        (
            names.dead_letter(),
            ExchangeKind::Fanout,
            FieldTable::default(),
        ),
        (names.fanout(), ExchangeKind::Fanout, FieldTable::default()),
        (names.receipts(), ExchangeKind::Topic, FieldTable::default()),
    ];
    if broker.partitions > 1 {
        let by_recipient = table([("hash-header", text(RECIPIENT_HEADER))]);
        exchanges.push((
            names.partitions(),
            ExchangeKind::Custom("x-consistent-hash".into()),
            by_recipient,
        ));
    }
    exchanges
}

/// The durable queues.
pub(super) fn queues(broker: &Broker) -> Vec<(String, FieldTable)> {
    let names = &broker.names;
    let kept = || {
        table([
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", number(LOOKS_AT_DEAD_LETTERS_MAX)),
        ])
    };
    // At-least-once dead-lettering needs reject-publish, and loses nothing where the broker itself dead-letters.
    let ingest = table([
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-delivery-limit", number(DELIVERY_LIMIT)),
        ("x-dead-letter-exchange", text(names.dead_letter())),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]);
    let replicated = table([("x-queue-type", text("quorum"))]);
    let mut queues = vec![
        (names.dead_letter(), kept()),
        (names.unroutable(), kept()),
        (names.gateways(), replicated),
    ];
    queues.extend((1..=broker.partitions).map(|number| (names.partition(number), ingest.clone())));
    queues
}

impl Broker {
    /// The bindings that events take: source, destination and key of each.
    pub fn bindings(&self) -> Vec<[String; 3]> {
        let names = &self.names;
        let mut bindings = vec![
            [names.dead_letter(), names.dead_letter(), EVERYTHING.into()],
            [names.unroutable(), names.unroutable(), EVERYTHING.into()],
        ];
        if self.partitions == 1 {
            bindings.push([names.events(), names.ingest(), EVERYTHING.into()]);
        } else {
            bindings.push([names.events(), names.partitions(), EVERYTHING.into()]);
            bindings.extend((1..=self.partitions).map(|number| {
                [
                    names.partitions(),
                    names.partition(number),
                    ONE_SHARE.into(),
                ]
            }));
        }
        bindings
    }
}

/// Events go to the partitions when all of these are bound, and only then no longer straight to the first: what comes
/// twice meanwhile is stored once, and no recipient's events pass through a partition that is not its own in the end.
async fn route_by_recipient(
    channel: &Channel,
    names: &Names,
    partitions: u8,
) -> Result<(), BrokerError> {
    for number in 1..=partitions {
        bind(
            channel,
            names.partition(number),
            names.partitions(),
            ONE_SHARE,
        )
        .await?;
    }
    let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
    let (from, to) = (names.events(), names.partitions());
    channel
        .exchange_bind(
            to.into(),
            from.into(),
            EVERYTHING.into(),
            options,
            none.clone(),
        )
        .await?;
    Ok(channel
        .queue_unbind(
            names.ingest().into(),
            names.events().into(),
            EVERYTHING.into(),
            none,
        )
        .await?)
}

async fn bind(
    channel: &Channel,
    queue: String,
    exchange: String,
    key: &str,
) -> Result<(), BrokerError> {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    Ok(channel
        .queue_bind(queue.into(), exchange.into(), key.into(), options, none)
        .await?)
}

/// Asks on a channel of its own, which RabbitMQ closes where the answer is no.
pub(super) async fn is_there(connection: &Connection, queue: String) -> Result<bool, BrokerError> {
    let channel = connection.channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    match channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await
    {
        Ok(_) => {
            channel.close(NOTHING_WRONG, "asked".into()).await?;
            Ok(true)
        }
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    let not_found = AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == not_found)
}

/// Declares and binds the fan-out queue of one incarnation of this replica: gone with its connection, and bounded.
pub(super) async fn ensure_fanout_queue(
    channel: &Channel,
    names: &Names,
) -> Result<String, BrokerError> {
    let queue = names.new_fanout_queue();
    let arguments = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", number(HINTS_WAITING_MAX)),
        ("x-max-length-bytes", number(HINT_BYTES_WAITING_MAX)),
        ("x-overflow", text("drop-head")),
    ]);
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..Default::default()
    };
    channel
        .queue_declare(queue.as_str().into(), options, arguments)
        .await?;
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(
            queue.as_str().into(),
            names.fanout().into(),
            "".into(),
            bind,
            none,
        )
        .await?;
    Ok(queue)
}

/// How many gateways there are: RabbitMQ knows by the queue that each of them consumes and nobody publishes to.
pub(super) async fn count_gateways(channel: &Channel, names: &Names) -> Result<u32, BrokerError> {
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    Ok(channel
        .queue_declare(names.gateways().into(), options, FieldTable::default())
        .await?
        .consumer_count())
}

pub(super) fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

pub(super) fn text(value: impl Into<String>) -> AMQPValue {
    AMQPValue::LongString(value.into().into())
}

fn number(value: i32) -> AMQPValue {
    AMQPValue::LongInt(value)
}

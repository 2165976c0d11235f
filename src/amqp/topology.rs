//! The exchanges and queues of the AMQP contract: declares them, or verifies that they exist.
//!
//! Existing exchanges and queues are never deleted, and their messages are never read.

mod names;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};

pub use self::names::Names;
use super::connection::Connection;
use super::{Broker, BrokerError, QueueType};

/// Deliveries of an event before RabbitMQ dead-letters it.
///
/// An event that ends each incarnation is gone within hours, and a database may be away for days.
/// Each crash and each abandoned batch counts for all prefetched events, so the default of RabbitMQ
/// 4, which is 20, would last for an afternoon.
const DELIVERY_LIMIT: i32 = 1_000;
/// Deliveries of a dead letter. Each listing counts as one, and must never drop a dead letter.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = 1_000_000_000;
/// Most hints that wait for a slow replica. RabbitMQ drops the oldest, and the replica finds a
/// gap in their numbers.
const HINTS_WAITING_MAX: i32 = 10_000;
/// Most bytes of the hints that wait for a slow replica.
const HINT_BYTES_WAITING_MAX: i32 = 64 * 1024 * 1024;

/// The header by which RabbitMQ chooses a partition: the attribute `recipient` in the CloudEvents
/// AMQP binding.
pub(super) const RECIPIENT_HEADER: &str = "cloudEvents_recipient";
/// Prefix of the headers that are attributes in binary mode (CloudEvents AMQP binding §3.1.3.1).
pub(super) const ATTRIBUTE_PREFIX: &str = "cloudEvents_";
/// The binding key for all events of a topic exchange. Fan-out exchanges ignore it.
const EVERYTHING: &str = "#";
/// The binding key of the hash exchange. It is a weight, and all partitions have the same.
const ONE_SHARE: &str = "1";
/// AMQP's reply code for a close without an error.
const NOTHING_WRONG: u16 = 200;

/// The durable exchanges and queues that were declared or verified.
#[derive(Debug, Default)]
pub struct Topology {
    /// The names of the exchanges.
    pub exchanges: Vec<String>,
    /// The names of the queues.
    pub queues: Vec<String>,
    /// Whether RabbitMQ has more partitions than this process consumes.
    pub more_partitions: bool,
}

/// Declares the durable exchanges and queues. If `broker.declare` is off, verifies that they exist.
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

    topology.more_partitions =
        queue_exists(connection, names.partition(broker.partitions + 1)).await?;
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
            // A binding past the existing partitions would let new events overtake those that wait
            // there.
            1 if topology.more_partitions => {}
            1 => {
                for source in [names.events(), names.entry()] {
                    bind(channel, names.ingest(), source, EVERYTHING).await?;
                }
            }
            partitions => route_by_recipient(channel, names, partitions).await?,
        }
    }
    Ok(topology)
}

/// The durable exchanges. Each stands after the exchanges in its arguments.
pub(super) fn exchanges(broker: &Broker) -> Vec<(String, ExchangeKind, FieldTable)> {
    let names = &broker.names;
    let keeping_all = || table([("alternate-exchange", text(names.unroutable()))]);
    let mut exchanges = vec![
        (
            names.unroutable(),
            ExchangeKind::Fanout,
            FieldTable::default(),
        ),
        (names.events(), ExchangeKind::Topic, keeping_all()),
        (names.entry(), ExchangeKind::Fanout, keeping_all()),
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
            ("x-delivery-limit", number(DEAD_LETTER_DELIVERY_LIMIT)),
        ])
    };
    // With at-least-once, RabbitMQ loses no event that it dead-letters. It needs reject-publish.
    let ingest = match broker.queue_type {
        QueueType::Quorum => table([
            ("x-queue-type", text("quorum")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-delivery-limit", number(DELIVERY_LIMIT)),
            ("x-dead-letter-exchange", text(names.dead_letter())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]),
        // A classic queue has no delivery limit, and dead-letters at most once.
        QueueType::Classic => table([
            ("x-queue-type", text("classic")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ]),
    };
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
    /// The bindings on the way of events: source, destination and key of each.
    pub fn bindings(&self) -> Vec<[String; 3]> {
        let names = &self.names;
        let entries = [names.events(), names.entry()];
        let mut bindings = vec![
            [names.dead_letter(), names.dead_letter(), EVERYTHING.into()],
            [names.unroutable(), names.unroutable(), EVERYTHING.into()],
        ];
        if self.partitions == 1 {
            bindings.extend(entries.map(|source| [source, names.ingest(), EVERYTHING.into()]));
        } else {
            bindings.extend(entries.map(|source| [source, names.partitions(), EVERYTHING.into()]));
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

/// Routes events to all partitions.
///
/// Binds all partitions before the exchange of events, so that each recipient has one partition
/// from the start. Removes the direct binding of the first partition last: events that arrive twice
/// meanwhile are stored once.
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
    for from in [names.events(), names.entry()] {
        channel
            .exchange_bind(
                names.partitions().into(),
                from.as_str().into(),
                EVERYTHING.into(),
                ExchangeBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        channel
            .queue_unbind(
                names.ingest().into(),
                from.as_str().into(),
                EVERYTHING.into(),
                FieldTable::default(),
            )
            .await?;
    }
    Ok(())
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

/// Returns whether a queue exists. Uses a channel of its own, because RabbitMQ closes it if not.
pub(super) async fn queue_exists(
    connection: &Connection,
    queue: String,
) -> Result<bool, BrokerError> {
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

/// Declares and binds the fan-out queue of one incarnation. It is bounded, and RabbitMQ deletes it
/// with the connection.
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

/// Counts the gateways: each consumes the queue `gateways`, which receives no publishes.
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

pub(super) fn number(value: i32) -> AMQPValue {
    AMQPValue::LongInt(value)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn broker(partitions: u8) -> Broker {
        Broker::new(
            "amqp://localhost",
            "shop",
            partitions,
            QueueType::Quorum,
            true,
        )
        .unwrap()
    }

    #[test]
    fn bindings_use_only_declared_exchanges_and_queues() {
        for partitions in [1, 4] {
            let broker = broker(partitions);
            let exchanges: Vec<_> = exchanges(&broker).into_iter().map(|it| it.0).collect();
            let queues: Vec<_> = queues(&broker).into_iter().map(|it| it.0).collect();
            for [source, destination, _] in broker.bindings() {
                assert!(exchanges.contains(&source), "{source}");
                let is_declared = exchanges.contains(&destination) || queues.contains(&destination);
                assert!(is_declared, "{destination}");
            }
            let ingest = queues.iter().filter(|name| name.contains(".ingest"));
            assert_eq!(ingest.count(), usize::from(partitions));
        }
    }

    #[test]
    fn an_exchange_stands_after_those_in_its_arguments() {
        let broker = broker(4);
        let mut before = Vec::new();
        for (name, _, arguments) in exchanges(&broker) {
            if let Some(AMQPValue::LongString(alternate)) =
                arguments.inner().get("alternate-exchange")
            {
                assert!(before.contains(&alternate.to_string()), "{name}");
            }
            before.push(name);
        }
    }
}

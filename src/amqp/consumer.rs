//! Consumes queues: one connection, one channel, and a consumer for each queue.
//!
//! Deliveries come out in the order in which RabbitMQ sent them, and [`Acknowledger`] acknowledges them on the
//! incarnation that delivered them. A consumer never sends a nack or a cancel: see
//! [`Consumer::close`].

mod deliveries;

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;

use self::deliveries::Deliveries;
use super::connection::{Connection, Frames};
use super::delivery::Delivery;
use super::{Broker, BrokerError, DECLARE_TIMEOUT, topology, within};

/// Prefetch of the queue that counts gateways. It stays empty, unless someone publishes to it by
/// mistake.
const GATEWAYS_PREFETCH: u16 = 1;

/// Longest wait of an acknowledgement for room in the socket.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The claim of a replica to a partition of the ingest queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The number of the partition. The first is 1.
    pub partition: u8,
    /// RabbitMQ 4 gives the partition to the consumer with the highest priority. It first waits until the
    /// one before has acknowledged its deliveries, so no event is overtaken. Older versions ignore the
    /// priority.
    pub priority: i32,
}

/// One incarnation of a consumer.
pub struct Consumer {
    // Drops first, for the reason in `close`.
    connection: Connection,
    channel: Channel,
    deliveries: Deliveries,
    /// The channel and the consumer by which RabbitMQ counts this gateway. It receives no deliveries.
    counted: Option<Counted>,
}

struct Counted {
    consumer: lapin::Consumer,
    queue: String,
    _channel: Channel,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

impl Consumer {
    /// Consumes partitions of the ingest queue. `prefetch` bounds the unacknowledged deliveries of
    /// each.
    ///
    /// # Errors
    /// RabbitMQ does not answer, or rejects a part of the topology or a consumer.
    pub async fn ingest(
        broker: &Broker,
        claims: &[Claim],
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let (connection, channel, topology) = broker.open("ingest", Frames::Large).await?;
        // Not fatal: replicas with the old setting drain while the number of partitions is raised.
        if claims.iter().any(|claim| claim.partition == 1) && topology.more_partitions {
            tracing::error!(
                known = broker.partitions,
                unknown = broker.names.partition(broker.partitions + 1),
                "RabbitMQ has more partitions than this replica consumes; \
                 set SHOPBELL_INGEST_PARTITIONS to their number"
            );
        }
        let mut deliveries = Deliveries::new();
        for claim in claims {
            let queue = broker.names.partition(claim.partition);
            let priority = topology::table([("x-priority", topology::number(claim.priority))]);
            let consumer = consume(&channel, queue.clone(), prefetch, priority).await?;
            deliveries.add(consumer, queue);
        }
        Ok(Self {
            connection,
            channel,
            deliveries,
            counted: None,
        })
    }

    /// Consumes a new fan-out queue. RabbitMQ counts this process as a gateway while it does.
    ///
    /// # Errors
    /// RabbitMQ does not answer, or rejects a part of the topology or the consumer.
    pub async fn fanout(broker: &Broker, prefetch: u16) -> Result<Self, BrokerError> {
        let (connection, channel, _) = broker.open("fanout", Frames::Large).await?;
        let declaring = topology::ensure_fanout_queue(&channel, &broker.names);
        let queue = within(DECLARE_TIMEOUT, "declaring a fan-out queue", declaring).await?;
        let consumer = consume(&channel, queue.clone(), prefetch, FieldTable::default()).await?;
        let mut deliveries = Deliveries::new();
        deliveries.add(consumer, queue);
        // A channel of its own: a message that was published there by mistake has a tag too.
        let counting = connection.channel().await?;
        let (queue, none) = (broker.names.gateways(), FieldTable::default());
        let consumer = consume(&counting, queue.clone(), GATEWAYS_PREFETCH, none).await?;
        let counted = Counted {
            consumer,
            queue,
            _channel: counting,
        };
        Ok(Self {
            connection,
            channel,
            deliveries,
            counted: Some(counted),
        })
    }

    /// Waits for the next delivery. If this future is dropped in a `select!`, no delivery is lost.
    ///
    /// # Errors
    /// The consumer or its connection ended.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        tokio::select! {
            biased;
            delivery = self.deliveries.next() => delivery,
            queue = ended(&mut self.counted) => Err(BrokerError::ConsumerEnded(queue)),
        }
    }

    /// Returns the next delivery if it has arrived already.
    pub fn next_ready(&mut self) -> Option<Result<Delivery, BrokerError>> {
        self.next().now_or_never()
    }

    /// Returns the part that acknowledges the deliveries of this incarnation.
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger {
            channel: self.channel.clone(),
        }
    }

    /// Whether lapin has noticed no failure of the connection or the channel.
    pub fn is_connected(&self) -> bool {
        self.connection.is_connected() && self.channel.status().connected()
    }

    /// Closes cleanly. RabbitMQ puts unacknowledged deliveries back to their places in the queue.
    ///
    /// This sends no `basic.cancel`, which lapin sends when a consumer drops. After a cancel,
    /// RabbitMQ 3.10.8 serves the standby consumer before it puts the deliveries back, so later
    /// events would overtake them.
    pub async fn close(self) {
        self.connection.close(&self.channel).await;
    }
}

/// Waits for the end of a consumer, and returns its queue. If there is none, this never returns.
async fn ended(counted: &mut Option<Counted>) -> String {
    match counted {
        Some(counted) => {
            while let Some(Ok(_)) = counted.consumer.next().await {}
            counted.queue.clone()
        }
        None => std::future::pending().await,
    }
}

async fn consume(
    channel: &Channel,
    queue: String,
    prefetch: u16,
    arguments: FieldTable,
) -> Result<lapin::Consumer, BrokerError> {
    let consuming = async {
        channel
            .basic_qos(prefetch, BasicQosOptions { global: false })
            .await?;
        let options = BasicConsumeOptions::default();
        Ok(channel
            .basic_consume(queue.into(), "".into(), options, arguments)
            .await?)
    };
    within(DECLARE_TIMEOUT, "beginning to consume", consuming).await
}

/// Acknowledges the deliveries of one incarnation.
pub struct Acknowledger {
    channel: Channel,
}

impl std::fmt::Debug for Acknowledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acknowledger").finish_non_exhaustive()
    }
}

impl Acknowledger {
    /// Acknowledges this delivery and all before it.
    ///
    /// # Errors
    /// The connection is lost, or its socket takes nothing within [`ACKNOWLEDGE_TIMEOUT`].
    pub async fn acknowledge_through(&self, tag: u64) -> Result<(), BrokerError> {
        let acknowledging = async {
            Ok(self
                .channel
                .basic_ack(tag, BasicAckOptions { multiple: true })
                .await?)
        };
        within(
            ACKNOWLEDGE_TIMEOUT,
            "sending an acknowledgement",
            acknowledging,
        )
        .await
    }
}

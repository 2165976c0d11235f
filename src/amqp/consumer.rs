//! Consuming a queue: one connection, one channel, one consumer.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;

use super::connection::{Connection, Frames};
use super::delivery::Delivery;
use super::{Broker, BrokerError, DECLARE_TIMEOUT, topology, within};

/// Of the queue that nobody publishes to: what somebody puts there by mistake is not taken without bound.
const PREFETCH_OF_NOTHING: u16 = 1;

/// How long an acknowledgement may wait for room in the socket.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(30);

/// One incarnation of a consumer. Deliveries are acknowledged on the incarnation that delivered them, and on no other.
pub struct Consumer {
    // First, so that it drops first, for the reason that `close` gives.
    connection: Connection,
    channel: Channel,
    stream: lapin::Consumer,
    queue: String,
    /// What makes this gateway count; nothing comes from it but its end.
    counted: Option<lapin::Consumer>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// Consumes one partition. `prefetch` bounds what lies unacknowledged, in the broker's books and our memory.
    pub async fn ingest(
        broker: &Broker,
        partition: u8,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let (connection, channel, topology) = broker.open("ingest", Frames::Large).await?;
        // Told by one of the partitions, and no reason to stop: the old replicas drain while partitions are being raised.
        if partition == 1 && topology.more_partitions {
            let (known, unknown) = (
                broker.partitions,
                broker.names.partition(broker.partitions + 1),
            );
            tracing::error!(
                known,
                unknown,
                "there are more partitions than this replica consumes: set SHOPBELL_INGEST_PARTITIONS to their number"
            );
        }
        Self::consume(
            connection,
            channel,
            broker.names.partition(partition),
            prefetch,
        )
        .await
    }

    /// Consumes a fan-out queue of its own, and from then on counts as a gateway.
    pub async fn fanout(broker: &Broker, prefetch: u16) -> Result<Self, BrokerError> {
        let (connection, channel, _) = broker.open("fanout", Frames::Large).await?;
        let declaring = topology::ensure_fanout_queue(&channel, &broker.names);
        let queue = within(DECLARE_TIMEOUT, "declaring a fan-out queue", declaring).await?;
        let mut consumer = Self::consume(connection, channel, queue, prefetch).await?;
        consumer.counted = Some(
            consume(
                &consumer.channel,
                broker.names.gateways(),
                PREFETCH_OF_NOTHING,
            )
            .await?,
        );
        Ok(consumer)
    }

    async fn consume(
        connection: Connection,
        channel: Channel,
        queue: String,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let stream = consume(&channel, queue.clone(), prefetch).await?;
        Ok(Self {
            connection,
            channel,
            stream,
            queue,
            counted: None,
        })
    }

    /// The next delivery. Losing this future in a `select!` loses no delivery.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = tokio::select! {
            biased;
            delivery = self.stream.next() => delivery,
            () = end(&mut self.counted) => None,
        };
        match delivery {
            Some(delivery) => Ok(Delivery { inner: delivery? }),
            None => Err(BrokerError::ConsumerEnded(self.queue.clone())),
        }
    }

    /// The next delivery if it has arrived already.
    pub fn next_ready(&mut self) -> Option<Result<Delivery, BrokerError>> {
        self.next().now_or_never()
    }

    /// What acknowledges this incarnation's deliveries, and no other's.
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger {
            channel: self.channel.clone(),
        }
    }

    /// Whether the connection is there, as far as lapin knows.
    pub fn is_connected(&self) -> bool {
        self.connection.is_connected() && self.channel.status().connected()
    }

    /// Closes cleanly; what is unacknowledged goes back to its place in the queue. Without `basic.cancel` before, which lapin
    /// sends for a consumer that is dropped: RabbitMQ (seen with 3.10.8) then turns to the standby at once and gives back what
    /// the cancelled one held only after, so that later events would overtake it.
    pub async fn close(self) {
        self.connection.close(&self.channel).await;
    }
}

/// Returns when a consumer has ended; never, where there is none.
async fn end(consumer: &mut Option<lapin::Consumer>) {
    match consumer {
        Some(consumer) => while let Some(Ok(_)) = consumer.next().await {},
        None => std::future::pending().await,
    }
}

async fn consume(
    channel: &Channel,
    queue: String,
    prefetch: u16,
) -> Result<lapin::Consumer, BrokerError> {
    let consuming = async {
        channel
            .basic_qos(prefetch, BasicQosOptions { global: false })
            .await?;
        let options = BasicConsumeOptions::default();
        Ok(channel
            .basic_consume(queue.into(), "".into(), options, FieldTable::default())
            .await?)
    };
    within(DECLARE_TIMEOUT, "beginning to consume", consuming).await
}

/// Acknowledges the deliveries of one incarnation of a consumer.
pub struct Acknowledger {
    channel: Channel,
}

impl std::fmt::Debug for Acknowledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acknowledger").finish_non_exhaustive()
    }
}

impl Acknowledger {
    /// Acknowledges this delivery and every one before it.
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

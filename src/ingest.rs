//! Stores deliveries as notifications: batch, append, fan-out, acknowledge.
//!
//! The deliveries of some partitions come in. Notifications and dead letters go to Postgres, and
//! hints to the fan-out. The deliveries that arrive while a batch is stored are the next batch, so
//! no timer delays them.
//!
//! A batch is acknowledged only when it is stored and its hints are published or dropped, and only on
//! the incarnation that delivered it. Until then, RabbitMQ keeps its deliveries. Meanwhile the
//! sessions of this replica have its notifications, and the next batch is stored.
//!
//! Ingest never sends a nack, never cancels its consumer, and never waits for sessions.

mod batch;
mod claims;
pub mod dead_letters;
pub mod held_feeds;
mod hints;
mod publishing;
mod storing;
pub mod traces;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::batch::{Batch, CountedConsumer};
pub use self::claims::{claims, connections};
use self::hints::{current_time, hints};
use self::publishing::STORED_MAX;
use self::storing::Abandoned;
use self::traces::TraceKeeper;
use crate::amqp::consumer::{Claim, Consumer};
use crate::amqp::publisher::Publisher;
use crate::amqp::{Broker, BrokerError};
use crate::fanout::Fanout;
use crate::fanout::publisher::{HintPublisher, StoredBatch};
use crate::fanout::stream::Stream;
use crate::model::event::{Limits, Reason};
use crate::model::feed::Feed;
use crate::retry::{self, Retry};
use crate::store;
use crate::store::append::Fate;
use crate::store::pool::Pool;
use crate::telemetry::health::Health;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::BatchTrace;

/// Most unacknowledged deliveries of a connection that consumes up to four partitions: the batch that
/// is stored and the one that forms meanwhile. With more partitions, each has
/// [`PREFETCH_OF_PARTITION_MIN`].
///
/// RabbitMQ bounds their number and not their bytes; its `max_message_size` bounds each. Never 1:
/// with that, RabbitMQ 3.10.8 sometimes reorders deliveries that an earlier consumer gave back. It
/// broke the order of a feed in 3 of 18 restarts under load.
const PREFETCH: u16 = 2 * batch::EVENTS_MAX as u16;

/// Least prefetch of a partition, if a connection consumes several: the deliveries that are acknowledged
/// together. So a busy partition waits for no timer.
const PREFETCH_OF_PARTITION_MIN: u16 = publishing::EVENTS_PER_ACKNOWLEDGEMENT as u16;

/// The reason for which an incarnation ended.
#[derive(Debug, thiserror::Error)]
enum IncarnationError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Abandoned(#[from] Abandoned),
}

/// Ingest of some partitions by one connection. RabbitMQ lets one replica consume a partition; the
/// others stand by.
#[derive(Debug, Clone)]
pub struct Ingest {
    /// The RabbitMQ that delivers events.
    pub broker: Broker,
    /// The partitions to consume, with the claims of this replica to them.
    pub claims: Vec<Claim>,
    /// The database for notifications and dead letters.
    pub pool: Pool,
    /// Receives the hints of stored notifications.
    pub fanout: Arc<Fanout>,
    /// The numbers of the hints.
    pub stream: Arc<Stream>,
    /// The limits of events.
    pub limits: Limits,
    /// The feed that everyone reads. No order is stored in it.
    pub broadcast_feed: Feed,
    /// Stores the traces of notifications.
    pub traces: TraceKeeper,
    /// Wakes [`dead_letters::DeadLetterPublisher`] when a dead letter is stored.
    pub dead_letter_stored: Arc<Notify>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Reports whether these partitions are consumed.
    pub health: Arc<Health>,
}

impl Ingest {
    /// Ingests until `stop`, then finishes the batch that is being stored.
    pub async fn run(&self, stop: CancellationToken) {
        self.metrics
            .events_dead_lettered
            .begin(&Reason::ALL.map(Reason::as_str));
        self.metrics
            .events_dead_lettered
            .begin(&[dead_letters::FEED_DAMAGED]);
        let mut retry = Retry::new(Retried::Ingest, &self.metrics);
        while !stop.is_cancelled() {
            match self.run_incarnation(&stop, &mut retry).await {
                Ok(()) => return,
                Err(error) => {
                    // A batch may be stored whose hints were not published.
                    self.stream.skip();
                    let wait = retry.failed("the connection of ingest ended", &error);
                    retry::sleep(wait, &stop).await;
                }
            }
        }
    }

    async fn run_incarnation(
        &self,
        stop: &CancellationToken,
        retry: &mut Retry<'_>,
    ) -> Result<(), IncarnationError> {
        // Deliveries count towards the delivery limit, also if the database is away.
        if !self.wait_for_database(stop).await {
            return Ok(());
        }
        // Connects with the first hint: an alarm of RabbitMQ must not keep ingest from consuming.
        let publisher = Publisher::lazy(&self.broker);
        let consumer = Consumer::ingest(&self.broker, &self.claims, self.prefetch()).await?;
        let mut consumer = CountedConsumer::new(consumer, self.metrics.clone());
        let acknowledger = consumer.acknowledger();
        let _up = self.health.ingest.up();
        tracing::info!(names = %self.broker.names, partitions = ?self.partitions(), "ingest consumes or stands by");
        let (done, stored) = mpsc::channel(STORED_MAX);
        let processing = self.process_batches(&mut consumer, done, stop, retry);
        let hints = HintPublisher::new(self.fanout.clone(), publisher, self.stream.clone());
        let collected_max = self.collected_max();
        let publishing = async {
            let publishing =
                publishing::publish_and_acknowledge(stored, hints, &acknowledger, collected_max);
            Ok(publishing.await?)
        };
        let ended = tokio::try_join!(processing, publishing);
        // Also after an error: lapin cancels a dropped consumer, and then its deliveries come back
        // in another order.
        consumer.close().await;
        ended.map(drop)
    }

    /// Most unacknowledged deliveries of each partition.
    fn prefetch(&self) -> u16 {
        let partitions = u16::try_from(self.claims.len()).unwrap_or(u16::MAX);
        (PREFETCH / partitions.max(1)).max(PREFETCH_OF_PARTITION_MIN)
    }

    /// Most events that wait for the publish of lean hints: half of the prefetch of a partition, so that
    /// RabbitMQ goes on with the rest. With less than are acknowledged together, a busy partition would
    /// wait for a timer.
    fn collected_max(&self) -> u64 {
        u64::from(self.prefetch() / 2).max(publishing::EVENTS_PER_ACKNOWLEDGEMENT)
    }

    /// The partitions in the order of their numbers.
    fn partitions(&self) -> BTreeSet<u8> {
        self.claims.iter().map(|claim| claim.partition).collect()
    }

    /// The name in traces of the place that delivers: the queue, or the exchange before several.
    fn destination(&self) -> String {
        match self.claims.as_slice() {
            [claim] => self.broker.names.partition(claim.partition),
            _ => self.broker.names.partitions(),
        }
    }

    /// Processes batches until `stop`.
    async fn process_batches(
        &self,
        consumer: &mut CountedConsumer,
        done: mpsc::Sender<StoredBatch>,
        stop: &CancellationToken,
        retry: &mut Retry<'_>,
    ) -> Result<(), IncarnationError> {
        loop {
            let first = tokio::select! {
                first = consumer.next() => first?,
                () = stop.cancelled() => return Ok(()),
            };
            let batch = Batch::collect(first, consumer)?;
            if let Some(stored) = self.process(batch, consumer, stop).await? {
                // The channel closes only if publishing failed, and then this future ends too.
                let _ = done.send(stored).await;
            }
            // Not earlier: an event that ends each incarnation must not return without a wait.
            retry.reset();
        }
    }

    /// Waits until the database answers. Returns false if `stop` is cancelled first.
    async fn wait_for_database(&self, stop: &CancellationToken) -> bool {
        let mut retry = Retry::new(Retried::Ingest, &self.metrics);
        while let Err(error) = store::check(&self.pool).await {
            let wait = retry.failed("ingest cannot use the database", &error);
            if !retry::sleep(wait, stop).await {
                return false;
            }
        }
        true
    }

    /// Stores a batch with its dead letters, and publishes it to the sessions of this replica. If
    /// the process dies before the acknowledgement, RabbitMQ delivers the batch again. Each step is
    /// safe to repeat.
    async fn process(
        &self,
        batch: Batch,
        consumer: &CountedConsumer,
        stop: &CancellationToken,
    ) -> Result<Option<StoredBatch>, IncarnationError> {
        let received_at = current_time();
        let _holding = self.metrics.holding.begin();
        let pending = batch.parse(self.limits, &self.broadcast_feed);
        self.metrics.batch_events.observe(pending.len() as f64);
        let traceparents = pending.iter().filter_map(|pending| match &pending.fate {
            Fate::Notify(event) => event.traceparent.as_deref(),
            Fate::DeadLetter(_) | Fate::Hold(_) => None,
        });
        let trace = BatchTrace::begin(|| self.destination(), pending.len(), traceparents);
        let begun = SystemTime::now();
        let committed = self
            .store_batch(pending, received_at, consumer, stop)
            .await?;
        if let Some(trace) = &trace {
            trace.committed(begun);
        }
        let hints = hints(committed.placed(), received_at, trace.as_ref());
        self.fanout.publish_locally(&hints);
        if trace.is_some() {
            self.traces.keep(&hints);
        }
        Ok(StoredBatch::new(committed, hints))
    }
}

//! Deliveries become stored notifications: batch → append → fan-out → acknowledge, in the order that the promise needs.
//!
//! Whatever has arrived while the last batch was being committed is the next batch; nothing waits for a timer. A batch is
//! acknowledged only when it is stored and handed on, on the incarnation that delivered it; until then RabbitMQ has it too.
//! While one batch is handed on, the next is stored already: the sessions of this replica have it by then.

mod batch;
mod handing_on;
mod storing;
pub mod traces;

use std::sync::Arc;
use std::time::SystemTime;

use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::batch::{Batch, Parsed};
use self::handing_on::STORED_MAX;
use self::storing::{Abandoned, Refused};
use self::traces::TraceKeeper;
use crate::amqp::consumer::Consumer;
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::Publisher;
use crate::amqp::{Broker, BrokerError, dead_letter};
use crate::backoff::Backoff;
use crate::event::{Limits, Reason, Rejection};
use crate::fanout::{Fanout, HintPublisher, Hints, Stored};
use crate::feed::Feed;
use crate::health::Health;
use crate::notification::Notification;
use crate::store;
use crate::store::append::Placed;
use crate::store::pools::Pool;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Batch as BatchTrace;

/// Most deliveries unacknowledged at once: the batches in work and the one that forms meanwhile. RabbitMQ bounds their number
/// and not their bytes; what one may have at most is its `max_message_size`. Never 1: RabbitMQ 3.10.8 then delivers what
/// an earlier consumer gave back out of order now and then, which broke a feed's order in 3 of 18 restarts under load.
const PREFETCH: u16 = 2 * batch::EVENTS_MAX as u16;

/// Why an incarnation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Abandoned(#[from] Abandoned),
}

/// Ingest of one partition. RabbitMQ lets one replica consume it; the others stand by.
#[derive(Debug, Clone)]
pub struct Ingest {
    /// Where events come from.
    pub broker: Broker,
    /// From which of its partitions, counted from 1.
    pub partition: u8,
    /// Where they are stored.
    pub pool: Pool,
    /// What every replica is told.
    pub fanout: Arc<Fanout>,
    /// What is taken from publishers.
    pub limits: Limits,
    /// The feed that everyone reads: no order is stored in it.
    pub broadcast_feed: Feed,
    /// Where traces are kept for who reads later.
    pub traces: TraceKeeper,
    /// The books.
    pub metrics: Arc<Metrics>,
    /// Whether it works.
    pub health: Arc<Health>,
}

impl Ingest {
    /// Ingests until told to stop, then finishes the batch in work.
    pub async fn run(&self, stop: CancellationToken) {
        self.metrics.events_dead_lettered.begin(&Reason::ALL.map(Reason::as_str));
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            match self.one_incarnation(&stop, &mut backoff).await {
                Ok(()) => return,
                Err(error) => {
                    let wait = backoff.next_wait();
                    self.metrics.retries.inc("ingest");
                    tracing::warn!(%error, wait_ms = wait.as_millis(), "ingest ended; it is opened again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    async fn one_incarnation(&self, stop: &CancellationToken, backoff: &mut Backoff) -> Result<(), Ended> {
        // Deliveries that cannot be stored only use up their delivery limit: first the database, then the queue.
        if !self.wait_for_database(stop).await {
            return Ok(());
        }
        let publisher = Publisher::open(&self.broker).await?;
        let mut consumer = Consumer::ingest(&self.broker, self.partition, PREFETCH).await?;
        let acknowledger = consumer.acknowledger();
        let _up = self.health.ingest.up();
        tracing::info!(names = %self.broker.names, partition = self.partition, "ingest consumes or stands by");
        let (done, stored) = mpsc::channel(STORED_MAX);
        let storing = self.store_batches(&mut consumer, done, stop, backoff);
        let hints = HintPublisher::new(self.fanout.clone(), publisher);
        let handing_on = async { Ok(handing_on::hand_on(stored, hints, &acknowledger).await?) };
        let ended = tokio::try_join!(storing, handing_on);
        // Also after an error: one that is dropped is cancelled, and what it holds comes back in another order.
        consumer.close().await;
        ended.map(drop)
    }

    /// Stores what comes until told to stop.
    async fn store_batches(
        &self,
        consumer: &mut Consumer,
        done: mpsc::Sender<Stored>,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<(), Ended> {
        let mut dead_letters = Publisher::lazy(&self.broker);
        loop {
            let first = tokio::select! {
                first = consumer.next() => first?,
                () = stop.cancelled() => break,
            };
            let batch = Batch::collect(first, consumer)?;
            let stored = self.take_in(batch, &mut dead_letters, consumer, stop).await?;
            // Closed only by an error, which then ends this future too.
            let _ = done.send(stored).await;
            // Not before: an event that ends every incarnation must not be delivered again at full speed.
            backoff.reset();
        }
        dead_letters.close().await;
        Ok(())
    }

    /// Returns whether it is there; not, when told to stop.
    async fn wait_for_database(&self, stop: &CancellationToken) -> bool {
        let mut backoff = Backoff::default();
        while let Err(error) = store::check(&self.pool).await {
            let wait = backoff.next_wait();
            self.metrics.retries.inc("ingest");
            tracing::warn!(%error, wait_ms = wait.as_millis(), "ingest waits for the database");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return false,
            }
        }
        true
    }

    /// One batch, until it is stored.
    async fn take_in(
        &self,
        batch: Batch,
        dead_letters: &mut Publisher,
        consumer: &Consumer,
        stop: &CancellationToken,
    ) -> Result<Stored, Ended> {
        let received_at = microseconds(OffsetDateTime::now_utc());
        let _held = self.metrics.holding.begin(self.partition);
        let parsed = batch.parse(self.limits, &self.broadcast_feed);
        let deliveries = parsed.events.len() + parsed.rejected.len();
        self.metrics.batch_events.observe(deliveries as f64);
        let traceparents = parsed.events.iter().filter_map(|(_, event)| event.traceparent.as_deref());
        let queue = || self.broker.names.partition(self.partition);
        let trace = BatchTrace::begin(queue, deliveries, traceparents);
        self.settle(parsed, received_at, trace, dead_letters, consumer, stop).await
    }

    /// What can never be stored is dead-lettered, the rest stored and told to the sessions of this replica. Dying between any
    /// two steps, until all is acknowledged, makes RabbitMQ deliver it again, and each step is safe to repeat.
    async fn settle(
        &self,
        parsed: Parsed,
        received_at: OffsetDateTime,
        trace: Option<BatchTrace>,
        dead_letters: &mut Publisher,
        consumer: &Consumer,
        stop: &CancellationToken,
    ) -> Result<Stored, Ended> {
        self.bury(dead_letters, &parsed.rejected).await?;

        let (deliveries, events) = parsed.events.into_iter().unzip();
        let begun = SystemTime::now();
        let (placed, refused) = self.store(events, received_at, consumer, stop).await?;
        if let Some(trace) = &trace {
            trace.committed(begun);
        }
        self.bury(dead_letters, &of_deliveries(deliveries, refused)).await?;

        let hints = hints(&placed, received_at, trace.as_ref());
        let duplicates = placed.iter().filter(|placed| placed.duplicate).count();
        self.metrics.events_received.inc_by(placed.len() as u64);
        self.metrics.events_stored.inc_by((placed.len() - duplicates) as u64);
        self.metrics.events_duplicate.inc_by(duplicates as u64);
        self.fanout.announce(&hints);
        if trace.is_some() {
            self.traces.keep(&hints);
        }
        Ok(Stored { through: parsed.through, hints })
    }

    /// Publishes dead letters and waits until the broker has them.
    async fn bury(&self, dead_letters: &mut Publisher, rejected: &[(Delivery, Rejection)]) -> Result<(), BrokerError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = rejected.iter().map(|_| Uuid::now_v7().simple().to_string()).collect();
        let letters: Vec<_> = rejected
            .iter()
            .zip(&ids)
            .map(|((delivery, rejection), id)| dead_letter::bury(&self.broker.names, id, delivery, rejection))
            .collect();
        dead_letters.publish(&letters).await?;
        for ((delivery, rejection), dead_letter) in rejected.iter().zip(ids) {
            let (reason, routing_key) = (rejection.reason.as_str(), delivery.routing_key());
            tracing::warn!(dead_letter, reason, detail = %rejection.detail, routing_key, "an event was dead-lettered");
            self.metrics.events_received.inc();
            self.metrics.events_dead_lettered.inc(reason);
        }
        Ok(())
    }
}

/// The deliveries of the events that Postgres refused, by their place in the batch.
fn of_deliveries(deliveries: Vec<Delivery>, refused: Vec<Refused>) -> Vec<(Delivery, Rejection)> {
    let mut deliveries: Vec<Option<Delivery>> = deliveries.into_iter().map(Some).collect();
    let take = |refused: Refused| Some((deliveries.get_mut(refused.place)?.take()?, refused.rejection));
    refused.into_iter().filter_map(take).collect()
}

/// What every replica is told of the batch. Of a duplicate not the event that came, which may differ from the stored one. If the
/// epoch changed between two parts of the batch, sessions read what was stored before: they begin again anyway.
fn hints(placed: &[Placed], received_at: OffsetDateTime, trace: Option<&BatchTrace>) -> Hints {
    let newest_epoch = placed.last().map(|placed| placed.epoch.clone());
    let mut hints = Hints { epoch: newest_epoch, stored: Vec::with_capacity(placed.len()), ..Hints::default() };
    for Placed { event, seq, duplicate, progress, epoch } in placed {
        if hints.epoch.as_ref() != Some(epoch) {
            continue;
        }
        if *duplicate {
            hints.again.push((event.recipient.clone(), *seq));
        } else {
            let mut notification = Notification::of_event(event, *seq, received_at, *progress);
            notification.origin = trace.zip(event.traceparent.as_deref()).and_then(|(trace, traceparent)| {
                trace.stored(traceparent, &event.id, event.recipient.as_str(), seq.get())
            });
            hints.stored.push(Arc::new(notification));
        }
    }
    hints
}

/// As precise as Postgres keeps it, so that a frame is the same live and replayed.
fn microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.microsecond() * 1_000).unwrap_or(time)
}

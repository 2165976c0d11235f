//! Deliveries become stored notifications: batch → append → fan-out → acknowledge, in the order that the promise needs.
//!
//! Whatever has arrived while the last batch was being committed is the next batch; nothing waits for a timer. A batch is
//! acknowledged only when it is stored and handed on, on the incarnation that delivered it; until then RabbitMQ has it too.
//! While one batch is handed on, the next is stored already: the sessions of this replica have it by then.

mod batch;
pub mod dead_letters;
pub mod holds;
mod publishing;
mod storing;
pub mod traces;

use std::sync::Arc;
use std::time::SystemTime;

use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::batch::{Arrivals, Batch};
use self::publishing::STORED_MAX;
use self::storing::Abandoned;
use self::traces::TraceKeeper;
use crate::amqp::consumer::Consumer;
use crate::amqp::publisher::Publisher;
use crate::amqp::{Broker, BrokerError};
use crate::fanout::publisher::{HintPublisher, StoredBatch};
use crate::fanout::{Fanout, Hints};
use crate::model::event::{Limits, Reason};
use crate::model::feed::Feed;
use crate::model::notification::Notification;
use crate::retry::Backoff;
use crate::store;
use crate::store::append::{Fate, Placed};
use crate::store::pools::Pool;
use crate::telemetry::health::Health;
use crate::telemetry::labels::Retried;
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
    /// Wakes [`dead_letters::DeadLetterPublisher`].
    pub letters: Arc<Notify>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether it works.
    pub health: Arc<Health>,
}

impl Ingest {
    /// Ingests until told to stop, then finishes the batch in work.
    pub async fn run(&self, stop: CancellationToken) {
        self.metrics
            .events_dead_lettered
            .begin(&Reason::ALL.map(Reason::as_str));
        self.metrics
            .events_dead_lettered
            .begin(&[dead_letters::FEED_DAMAGED]);
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            match self.one_incarnation(&stop, &mut backoff).await {
                Ok(()) => return,
                Err(error) => {
                    let wait = backoff.next_wait();
                    self.metrics.retries.inc(Retried::Ingest);
                    tracing::warn!(%error, wait_ms = wait.as_millis(), "ingest ended; it is opened again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    async fn one_incarnation(
        &self,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<(), Ended> {
        // Deliveries that cannot be stored only use up their delivery limit: first the database, then the queue.
        if !self.wait_for_database(stop).await {
            return Ok(());
        }
        // Opens with the first hint: an alarm of RabbitMQ must not keep the consumer from draining the queue.
        let publisher = Publisher::lazy(&self.broker);
        let consumer = Consumer::ingest(&self.broker, self.partition, PREFETCH).await?;
        let mut arrivals = Arrivals::new(consumer, self.metrics.clone());
        let acknowledger = arrivals.acknowledger();
        let _up = self.health.ingest.up();
        tracing::info!(names = %self.broker.names, partition = self.partition, "ingest consumes or stands by");
        let (done, stored) = mpsc::channel(STORED_MAX);
        let storing = self.store_batches(&mut arrivals, done, stop, backoff);
        let hints = HintPublisher::new(self.fanout.clone(), publisher);
        let publishing = async { Ok(publishing::publish(stored, hints, &acknowledger).await?) };
        let ended = tokio::try_join!(storing, publishing);
        // Also after an error: one that is dropped is cancelled, and what it holds comes back in another order.
        arrivals.close().await;
        ended.map(drop)
    }

    /// Stores what comes until told to stop.
    async fn store_batches(
        &self,
        arrivals: &mut Arrivals,
        done: mpsc::Sender<StoredBatch>,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<(), Ended> {
        loop {
            let first = tokio::select! {
                first = arrivals.next() => first?,
                () = stop.cancelled() => return Ok(()),
            };
            let batch = Batch::collect(first, arrivals)?;
            if let Some(stored) = self.process(batch, arrivals, stop).await? {
                // Closed only by an error, which then ends this future too.
                let _ = done.send(stored).await;
            }
            // Not before: an event that ends every incarnation must not be delivered again at full speed.
            backoff.reset();
        }
    }

    /// Returns whether it is there; not, when told to stop.
    async fn wait_for_database(&self, stop: &CancellationToken) -> bool {
        let mut backoff = Backoff::default();
        while let Err(error) = store::check(&self.pool).await {
            let wait = backoff.next_wait();
            self.metrics.retries.inc(Retried::Ingest);
            tracing::warn!(%error, wait_ms = wait.as_millis(), "ingest waits for the database");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return false,
            }
        }
        true
    }

    /// Stores one batch, dead letters among it, and announces it to the sessions of this replica. Dying between any two steps,
    /// until all is acknowledged, makes RabbitMQ deliver it again, and each step is safe to repeat.
    async fn process(
        &self,
        batch: Batch,
        arrivals: &Arrivals,
        stop: &CancellationToken,
    ) -> Result<Option<StoredBatch>, Ended> {
        let received_at = microseconds(OffsetDateTime::now_utc());
        let _held = self.metrics.holding.begin(self.partition);
        let pending = batch.parse(self.limits, &self.broadcast_feed);
        self.metrics.batch_events.observe(pending.len() as f64);
        let traceparents = pending.iter().filter_map(|pending| match &pending.fate {
            Fate::Notify(event) => event.traceparent.as_deref(),
            Fate::DeadLetter(_) => None,
        });
        let queue = || self.broker.names.partition(self.partition);
        let trace = BatchTrace::begin(queue, pending.len(), traceparents);
        let begun = SystemTime::now();
        let committed = self.store(pending, received_at, arrivals, stop).await?;
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

/// What every replica is told of the batch. Of a duplicate not the event that came, which may differ from the stored one. If the
/// epoch changed between two parts of the batch, sessions read what was stored before: they begin again anyway.
fn hints<'a>(
    placed: impl DoubleEndedIterator<Item = &'a Placed> + Clone,
    received_at: OffsetDateTime,
    trace: Option<&BatchTrace>,
) -> Hints {
    let newest_epoch = placed
        .clone()
        .next_back()
        .map(|placed| placed.epoch.clone());
    let mut hints = Hints {
        epoch: newest_epoch,
        ..Hints::default()
    };
    for Placed {
        event,
        seq,
        duplicate,
        progress,
        epoch,
    } in placed
    {
        if hints.epoch.as_ref() != Some(epoch) {
            continue;
        }
        if *duplicate {
            hints.duplicates.push((event.recipient.clone(), *seq));
        } else {
            let mut notification = Notification::of_event(event, *seq, received_at, *progress);
            notification.trace =
                trace
                    .zip(event.traceparent.as_deref())
                    .and_then(|(trace, traceparent)| {
                        trace.stored(traceparent, &event.id, event.recipient.as_str(), seq.get())
                    });
            hints.stored.push(Arc::new(notification));
        }
    }
    hints
}

/// As precise as Postgres keeps it, so that a frame is the same live and replayed.
fn microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.microsecond() * 1_000)
        .unwrap_or(time)
}

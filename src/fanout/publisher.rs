//! Publishes hints to the other replicas, and gives the proof that ingest needs to acknowledge a batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::{Fanout, Hints, wire};
use crate::amqp::BrokerError;
use crate::amqp::consumer::Acknowledger;
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::store::append::Committed;
use crate::telemetry::health::HintsRefused;
use crate::telemetry::traces;

/// Longest wait for RabbitMQ to confirm hints. RabbitMQ confirms none during an alarm, and an alarm that the ingest queue
/// caused ends only if ingest goes on.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which a count of the gateways is used again. A replica that starts meanwhile relies on its sweep.
const COUNT_MAX_AGE: Duration = Duration::from_secs(1);

/// A stored batch: its hints, and the tag that acknowledges it and all deliveries before it. Only made from the proof that
/// the store returns.
#[derive(Debug)]
pub struct StoredBatch {
    hints: Hints,
    through: u64,
}

impl StoredBatch {
    /// Takes committed deliveries; `None` if there are none.
    pub fn new(committed: Committed<Delivery>, hints: Hints) -> Option<Self> {
        let through = committed.origins().map(Delivery::tag).max()?;
        Some(Self { hints, through })
    }
}

/// Proof that batches are committed, and their hints published or dropped. Only
/// [`HintPublisher::publish`] makes it.
#[derive(Debug)]
pub struct Published {
    through: u64,
}

impl Published {
    /// The tag of the last delivery.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Acknowledges all deliveries up to the tag.
    ///
    /// # Errors
    /// The connection to RabbitMQ is lost.
    pub async fn acknowledge(self, acknowledger: &Acknowledger) -> Result<(), BrokerError> {
        acknowledger.acknowledge_through(self.through).await
    }
}

/// Publishes hints over one connection.
#[derive(Debug)]
pub struct HintPublisher {
    fanout: Arc<Fanout>,
    publisher: Publisher,
    /// Whether this replica is the only gateway, and when that was counted.
    alone: Option<(bool, Instant)>,
    /// Set while RabbitMQ does not confirm hints.
    refused: Option<HintsRefused>,
}

impl HintPublisher {
    /// Publishes through `publisher`.
    pub fn new(fanout: Arc<Fanout>, publisher: Publisher) -> Self {
        Self {
            fanout,
            publisher,
            alone: None,
            refused: None,
        }
    }

    /// Publishes the hints of stored batches, and returns the proof. If RabbitMQ does not confirm them, the hints are lost
    /// and the proof is returned all the same. Returns `None` without a batch.
    pub async fn publish(&mut self, stored: &[StoredBatch]) -> Option<Published> {
        let through = stored.last()?.through;
        let batches: Vec<&Hints> = stored
            .iter()
            .map(|batch| &batch.hints)
            .filter(|hints| hints.len() > 0)
            .collect();
        if !batches.is_empty() {
            match self.publish_hints(&batches).await {
                Ok(()) => self.refused = None,
                Err(error) if self.refused.is_none() => {
                    tracing::warn!(%error, "RabbitMQ does not take hints; other replicas find notifications by their sweep");
                    self.refused = Some(HintsRefused::begin(self.fanout.health.clone()));
                }
                Err(_) => {}
            }
        }
        Some(Published { through })
    }

    /// Publishes hints if there are other gateways.
    ///
    /// # Errors
    /// RabbitMQ did not confirm the hints within [`PUBLISH_TIMEOUT`].
    pub async fn publish_hints(&mut self, batches: &[&Hints]) -> Result<(), BrokerError> {
        let count: usize = batches.iter().map(|hints| hints.len()).sum();
        if count == 0 || self.is_alone().await {
            return Ok(());
        }
        let Fanout {
            metrics,
            exchange,
            replica,
            ..
        } = &*self.fanout;
        let body = wire::encode(batches).into_bytes();
        let begun = SystemTime::now();
        let published = self
            .publisher
            .try_publish(
                PUBLISH_TIMEOUT,
                Outgoing::hint(exchange.clone(), replica, body),
            )
            .await;
        if published.is_ok() {
            metrics.hints.published.inc_by(count as u64);
            let stored = batches.iter().flat_map(|hints| &hints.stored);
            for trace in stored.filter_map(|stored| stored.trace.as_ref()) {
                traces::published(trace, exchange, begun);
            }
        } else {
            metrics.hints.refused.inc_by(count as u64);
        }
        published
    }

    /// Whether RabbitMQ counts no gateway but this replica. If RabbitMQ does not answer, it returns false.
    ///
    /// If RabbitMQ has closed this replica's fan-out connection and the replica has not noticed, the count is one too low
    /// and another gateway gets no hints. Its sweep covers the time until a heartbeat is missed here.
    async fn is_alone(&mut self) -> bool {
        if let Some((alone, at)) = self.alone
            && at.elapsed() < COUNT_MAX_AGE
        {
            return alone;
        }
        let own = u32::from(self.fanout.receives.load(Ordering::Relaxed));
        let counted = self.publisher.count_gateways(PUBLISH_TIMEOUT).await;
        let alone = counted.is_ok_and(|gateways| gateways <= own);
        self.alone = Some((alone, Instant::now()));
        alone
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.publisher.close().await;
    }
}

//! Publishes stored dead letters to RabbitMQ, each at least once. Ingest does not wait for it:
//! while an alarm of RabbitMQ lasts, dead letters stay in Postgres.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::amqp::dead_letter::{DeadLetter, Undecodable};
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::amqp::{Broker, BrokerError};
use crate::store::StoreError;
use crate::store::dead_letters;
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the attempts, which also publish the dead letters of replicas that died.
const INTERVAL: Duration = Duration::from_secs(5);
/// Most dead letters that are published together.
const TOGETHER_MAX: i64 = 64;
/// Seconds for which a dead letter that RabbitMQ rejects lets others go first.
const POSTPONED_SECONDS: i64 = 10;

/// The reason for which dead letters stay unpublished in Postgres.
#[derive(Debug, thiserror::Error)]
enum NotPublished {
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Publishes stored dead letters.
#[derive(Debug)]
pub struct DeadLetterPublisher {
    /// The RabbitMQ with the dead-letter queue.
    pub broker: Broker,
    /// The database with the stored dead letters.
    pub pool: Pool,
    /// Wakes it when a dead letter is stored.
    pub stored: Arc<Notify>,
    /// Counts failed attempts.
    pub metrics: Arc<Metrics>,
}

impl DeadLetterPublisher {
    /// Publishes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut publisher = Publisher::lazy(&self.broker);
        let mut together_max = TOGETHER_MAX;
        // While RabbitMQ has an alarm, they stay in Postgres.
        while stop
            .run_until_cancelled(publisher.unblocked())
            .await
            .is_some()
        {
            match self.publish(&mut publisher, &mut together_max).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    self.metrics.retries.inc(Retried::DeadLetters);
                    tracing::warn!(%error, "stored dead letters could not be read; the next attempt follows");
                }
            }
            tokio::select! {
                () = self.stored.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => {}
            }
        }
        publisher.close().await;
    }

    /// Publishes some dead letters. Returns whether more can be published at once.
    ///
    /// If RabbitMQ rejects several, it may have rejected one of them. So each is then published
    /// alone, and one that is rejected alone lets the others go first.
    async fn publish(
        &self,
        publisher: &mut Publisher,
        together_max: &mut i64,
    ) -> Result<bool, StoreError> {
        let stored = dead_letters::lease(&self.pool, *together_max).await?;
        let ids: Vec<String> = stored.iter().map(|stored| stored.id.clone()).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let outgoing: Result<Vec<Outgoing>, Undecodable> = stored
            .into_iter()
            .map(|stored| {
                let dead_letter = DeadLetter::decode(&stored.properties, stored.body)?;
                Ok(dead_letter.to_outgoing(&self.broker.names))
            })
            .collect();
        let published = match outgoing {
            Ok(outgoing) => publisher
                .publish(&outgoing)
                .await
                .map_err(NotPublished::from),
            Err(error) => Err(error.into()),
        };
        match published {
            Ok(()) => {
                *together_max = TOGETHER_MAX;
                dead_letters::set_published(&self.pool, &ids).await?;
                Ok(true)
            }
            Err(error) => {
                self.metrics.retries.inc(Retried::DeadLetters);
                tracing::warn!(%error, dead_letters = ids.len(), "dead letters could not be published; they stay in Postgres");
                let is_blocked = matches!(error, NotPublished::Broker(BrokerError::Blocked));
                let rejected_alone = ids.len() == 1 && !is_blocked;
                *together_max = 1;
                let seconds = if rejected_alone { POSTPONED_SECONDS } else { 0 };
                dead_letters::postpone(&self.pool, &ids, seconds).await?;
                Ok(false)
            }
        }
    }
}

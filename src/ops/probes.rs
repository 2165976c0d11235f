//! Looks every few seconds at what nobody tells of by itself, for the metrics: whether Postgres and RabbitMQ answer, what waits
//! in the queues, and what lies undelivered for merchants who are here.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::amqp::depths::DepthProbe;
use crate::fanout::hub::Hub;
use crate::store;
use crate::store::StoreError;
use crate::store::damage::{Damaged, Parts};
use crate::store::dead_letters::Counts;
use crate::store::pools::Pool;
use crate::store::undelivered::Undelivered;
use crate::telemetry::labels::{DeadLetterState, Retried};
use crate::telemetry::metrics::Metrics;

/// Often enough for an alert that waits a minute, seldom enough to cost nothing.
const INTERVAL: Duration = Duration::from_secs(5);
/// Soon, but when the queues of a new broker are there.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// How long a stop waits for a look that has begun.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Most feeds asked for in one statement.
const FEEDS_PER_QUERY_MAX: usize = 5_000;
/// How often such a statement is split at one time, to find feeds that cannot be read.
const SPLITS_MAX: usize = 40;

/// Looks at Postgres.
pub async fn database(pool: Pool, hub: Arc<Hub>, metrics: Arc<Metrics>) {
    let (damaged, mut interval) = (Damaged::default(), interval());
    loop {
        interval.tick().await;
        let checked = store::check(&pool).await;
        metrics.database_up.set(i64::from(checked.is_ok()));
        let looked = match checked {
            Ok(()) => look(&pool, &hub, &damaged).await,
            Err(error) => Err(error),
        };
        match looked {
            Ok((undelivered, letters)) => {
                for (state, count) in [
                    (DeadLetterState::Stored, letters.stored),
                    (DeadLetterState::Unpublished, letters.unpublished),
                    (DeadLetterState::Held, letters.held),
                ] {
                    metrics.dead_letters.set(state, count);
                }
                metrics.feeds_held.set(letters.feeds_held);
                metrics.undelivered.set(undelivered.count);
                metrics.oldest_undelivered.set(undelivered.oldest_seconds);
                metrics.late_feeds.set(undelivered.late_feeds);
            }
            // What was undelivered still is, as far as anybody knows.
            Err(error) => {
                metrics.retries.inc(Retried::Probes);
                tracing::warn!(%error, "the database could not be looked at");
            }
        }
    }
}

/// A feed that cannot be read is left out.
async fn look(
    pool: &Pool,
    hub: &Hub,
    damaged: &Damaged,
) -> Result<(Undelivered, Counts), StoreError> {
    let mut all = Undelivered::default();
    for feeds in hub.feeds().chunks(FEEDS_PER_QUERY_MAX) {
        let mut parts = Parts::new(damaged.others(feeds), SPLITS_MAX);
        while let Some(part) = parts.take() {
            match store::undelivered::read(pool, &part).await {
                Ok(undelivered) => all = all.and(undelivered),
                // The sweep reads the same row, and counts it.
                Err(error) => _ = parts.failed(part, error, damaged)?,
            }
        }
    }
    Ok((all, store::dead_letters::count(pool).await?))
}

/// Looks at RabbitMQ until told to stop, then closes the connection.
pub async fn broker(mut watcher: DepthProbe, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut interval = interval();
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let looked = tokio::select! {
            looked = watcher.measure() => looked,
            // A look that RabbitMQ does not answer must not delay the stop.
            () = patience(&stop) => return,
        };
        metrics.broker_up.set(i64::from(looked.is_ok()));
        match looked {
            Ok(depths) => {
                for (queue, depth) in depths {
                    metrics
                        .queue_messages
                        .set_or_remove(queue, depth.map(|depth| depth.messages.into()));
                    metrics
                        .queue_consumers
                        .set_or_remove(queue, depth.map(|depth| depth.consumers.into()));
                }
            }
            Err(error) => {
                // A number that is no longer known is none, rather than an old one.
                metrics.queue_messages.clear();
                metrics.queue_consumers.clear();
                metrics.retries.inc(Retried::Probes);
                tracing::warn!(%error, "RabbitMQ could not be looked at");
            }
        }
    }
    watcher.close().await;
}

/// Returns some time after the stop.
async fn patience(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
}

fn interval() -> Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + FIRST_AFTER, INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

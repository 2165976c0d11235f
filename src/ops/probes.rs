//! Probes: periodic measurements for the metrics. They check that Postgres and RabbitMQ answer, count messages in queues, and
//! count the undelivered notifications of feeds with a session on this replica.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::amqp::depths::DepthProbe;
use crate::fanout::hub::Hub;
use crate::model::feed::{Feed, Newest};
use crate::store;
use crate::store::StoreError;
use crate::store::damage::{Damaged, Halves};
use crate::store::dead_letters::Counts;
use crate::store::pool::Pool;
use crate::store::undelivered::Undelivered;
use crate::telemetry::labels::{DeadLetterState, Retried};
use crate::telemetry::metrics::Metrics;

/// Short enough for an alert that waits a minute, long enough to cost little.
const INTERVAL: Duration = Duration::from_secs(5);
/// A new RabbitMQ needs some time to create its queues.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// Most time that a stop waits for a measurement.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Most feeds in one statement.
const FEEDS_PER_QUERY_MAX: usize = 5_000;
/// Most splits of a failed statement to find feeds that cannot be read.
const SPLITS_MAX: usize = 40;

/// Measures Postgres, forever.
pub async fn database(pool: Pool, hub: Arc<Hub>, metrics: Arc<Metrics>) {
    let (damaged, mut interval) = (Damaged::default(), interval());
    loop {
        interval.tick().await;
        let checked = store::check(&pool).await;
        metrics.probed.database_up.set(i64::from(checked.is_ok()));
        let measured = match checked {
            Ok(()) => measure(&pool, &hub, &damaged).await,
            Err(error) => Err(error),
        };
        match measured {
            Ok((undelivered, letters, receipts_late)) => {
                metrics.receipts.late.set(receipts_late.as_secs_f64());
                for (state, count) in [
                    (DeadLetterState::Stored, letters.stored),
                    (DeadLetterState::Unpublished, letters.unpublished),
                    (DeadLetterState::Held, letters.held),
                ] {
                    metrics.probed.dead_letters.set(state, count);
                }
                metrics.probed.feeds_held.set(letters.feeds_held);
                metrics.probed.undelivered.set(undelivered.count);
                metrics
                    .probed
                    .oldest_undelivered
                    .set(undelivered.oldest_seconds);
                metrics.probed.late_feeds.set(undelivered.late_feeds);
            }
            // The last values stay, because nothing newer is known.
            Err(error) => {
                metrics.retries.inc(Retried::Probes);
                tracing::warn!(%error, "a probe could not read the database");
            }
        }
    }
}

/// Reads the feeds that may have undelivered notifications. A feed of which all is acked is read
/// again when a notification is published to it, so an idle session costs nothing. Leaves out feeds
/// that cannot be read.
async fn measure(
    pool: &Pool,
    hub: &Hub,
    damaged: &Damaged,
) -> Result<(Undelivered, Counts, Duration), StoreError> {
    let mut all = Undelivered::default();
    let published: HashMap<Feed, Newest> = hub.undelivered().into_iter().collect();
    let feeds: Vec<Feed> = published.keys().cloned().collect();
    for feeds in feeds.chunks(FEEDS_PER_QUERY_MAX) {
        let mut parts = Halves::new(damaged.others(feeds), SPLITS_MAX);
        while let Some(part) = parts.take().filter(|part| !part.is_empty()) {
            match store::undelivered::read(pool, &part).await {
                Ok((undelivered, delivered)) => {
                    all = all.and(undelivered);
                    let before = |feed: Feed| Some((feed.clone(), *published.get(&feed)?));
                    let delivered: Vec<_> = delivered.into_iter().filter_map(before).collect();
                    hub.delivered(&delivered);
                }
                // The sweep reads the same row, and counts it.
                Err(error) => _ = parts.failed(part, error, damaged)?,
            }
        }
    }
    let letters = store::dead_letters::count(pool).await?;
    Ok((all, letters, store::receipts::lateness(pool).await?))
}

/// Measures RabbitMQ until `stop`, then closes the connection.
pub async fn broker(mut probe: DepthProbe, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut interval = interval();
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let measured = tokio::select! {
            measured = probe.measure() => measured,
            // If RabbitMQ does not answer, the stop does not wait.
            () = patience(&stop) => return,
        };
        metrics.probed.broker_up.set(i64::from(measured.is_ok()));
        match measured {
            Ok(depths) => {
                for (queue, depth) in depths {
                    metrics
                        .probed
                        .queue_messages
                        .set_or_remove(queue, depth.map(|depth| depth.messages.into()));
                    metrics
                        .probed
                        .queue_consumers
                        .set_or_remove(queue, depth.map(|depth| depth.consumers.into()));
                }
            }
            Err(error) => {
                // Without an answer, the series are removed instead of showing old values.
                metrics.probed.queue_messages.clear();
                metrics.probed.queue_consumers.clear();
                metrics.retries.inc(Retried::Probes);
                tracing::warn!(%error, "a probe could not read the queues of RabbitMQ");
            }
        }
    }
    probe.close().await;
}

/// Returns [`STOP_PATIENCE`] after the stop.
async fn patience(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
}

fn interval() -> Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + FIRST_AFTER, INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

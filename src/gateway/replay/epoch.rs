//! Follows the epoch: reads it every few seconds, lowers cursors in each new epoch, and ends the
//! sessions of an earlier one.

use std::sync::Arc;
use std::time::Duration;

use crate::fanout::hub::Hub;
use crate::retry::Retry;
use crate::store;
use crate::store::epoch::known::Epochs;
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the read. It is one statement for all sessions.
const INTERVAL: Duration = Duration::from_secs(2);

/// Reads the epoch for ever, and lowers cursors in each new epoch. Neither waits for the other.
pub async fn run(pool: Pool, epochs: Arc<Epochs>, metrics: Arc<Metrics>) {
    tokio::join!(
        check(&pool, &epochs, &metrics),
        lower_cursors(&pool, &epochs, &metrics)
    );
}

/// Reads the epoch at the interval, and whenever a part of the replica asks for it.
async fn check(pool: &Pool, epochs: &Epochs, metrics: &Metrics) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = epochs.asked() => {}
        };
        if let Err(error) = store::epoch::check(pool, epochs).await {
            metrics.retries.inc(Retried::Sweep);
            tracing::warn!(%error, "the epoch could not be read; the next read follows");
        }
    }
}

/// Lowers the cursors that are above the last number of their feed, once in each epoch. A restore
/// of single tables leaves such cursors, and their subscribers would miss the notifications that
/// get these numbers.
async fn lower_cursors(pool: &Pool, epochs: &Epochs, metrics: &Metrics) {
    let mut changes = epochs.changes();
    let mut retry = Retry::new(Retried::Sweep, metrics);
    loop {
        let lowered = match epochs.current() {
            Some(epoch) => store::epoch::lower_cursors(pool, &epoch).await,
            None => Ok(()),
        };
        match lowered {
            Ok(()) => {
                retry.reset();
                changes.next().await;
            }
            Err(error) => {
                let wait = retry.failed("cursors could not be lowered", &error);
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Follows the epoch for ever, so that all sessions of an earlier epoch end.
pub async fn follow(hub: Arc<Hub>, epochs: Arc<Epochs>, metrics: Arc<Metrics>) {
    let (mut changes, mut known) = (epochs.changes(), epochs.current());
    loop {
        changes.next().await;
        if known.is_some() {
            metrics.epoch_changes.inc();
        }
        known = epochs.current();
        hub.follow_epoch();
    }
}

//! The sweep: every few seconds, it reads the newest numbers of the feeds that have a session here,
//! and the epoch.
//!
//! So a session finds a gap even if its hint was lost. The sweep never reads a notification.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::fanout::hub::Hub;
use crate::model::feed::{Feed, Newest};
use crate::retry::Retry;
use crate::store;
use crate::store::damage::{Damaged, Halves};
use crate::store::epoch::known::Epochs;
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the sweep. A lost hint delays a notification by about this time.
const INTERVAL: Duration = Duration::from_secs(2);
/// Most feeds in one statement. Thirteen splits find a damaged feed among them.
const FEEDS_PER_QUERY_MAX: usize = 5_000;
/// Most splits of statements in one sweep. They find three damaged feeds, which the next sweep
/// leaves out.
const SPLITS_PER_SWEEP_MAX: usize = 40;

/// Sweeps for ever, and lowers cursors in each new epoch. Neither waits for the other.
pub async fn run(pool: Pool, hub: Arc<Hub>, epochs: Arc<Epochs>, metrics: Arc<Metrics>) {
    tokio::join!(
        sweep(&pool, &hub, &epochs, &metrics),
        lower_cursors(&pool, &epochs, &metrics)
    );
}

/// Sweeps every few seconds. Reads the epoch then, and whenever a part of the replica asks for it.
async fn sweep(pool: &Pool, hub: &Hub, epochs: &Epochs, metrics: &Metrics) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let damaged = Damaged::default();
    loop {
        let is_due = tokio::select! {
            _ = interval.tick() => true,
            () = epochs.asked() => false,
        };
        if let Err(error) = store::epoch::check(pool, epochs).await {
            metrics.retries.inc(Retried::Sweep);
            tracing::warn!(%error, "the sweep could not read the epoch; the next sweep reads it");
        } else if is_due {
            sweep_once(pool, hub, epochs, metrics, &damaged).await;
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

/// Reads the newest numbers and publishes them. Compares them with the numbers that were published
/// before the read, because higher ones may be published meanwhile.
async fn sweep_once(pool: &Pool, hub: &Hub, epochs: &Epochs, metrics: &Metrics, damaged: &Damaged) {
    let (Some(epoch), published) = hub.published() else {
        return;
    };
    let feeds: Vec<Feed> = published.keys().cloned().collect();
    for feeds in feeds.chunks(FEEDS_PER_QUERY_MAX) {
        let mut parts = Halves::new(damaged.others(feeds), SPLITS_PER_SWEEP_MAX);
        while let Some(part) = parts.take().filter(|part| !part.is_empty()) {
            let failed = match store::pages::newest(pool, &part).await {
                // Another replica has just renewed the epoch.
                Ok((stored_in, _)) if stored_in.as_ref() != Some(&epoch) => return epochs.ask(),
                Ok((_, newest)) => {
                    if let Some((feed, _)) =
                        newest.iter().find(|stored| is_set_back(&published, stored))
                    {
                        let feed = feed.as_str();
                        tracing::error!(
                            feed,
                            "a feed ends below a number that was sent; the database was restored"
                        );
                        return epochs.doubt(&epoch, "a feed ended below a number that was sent");
                    }
                    hub.publish_newest(&epoch, &newest);
                    continue;
                }
                Err(error) => parts.failed(part, error, damaged),
            };
            match failed {
                Ok(feed) => _ = metrics.damaged_reads.inc_by(u64::from(feed.is_some())),
                Err(error) => {
                    metrics.retries.inc(Retried::Sweep);
                    tracing::warn!(%error, "the sweep could not read the newest numbers; the next sweep reads them");
                }
            }
        }
    }
}

/// Whether a feed has lost numbers that were published. The feed of a canary is deleted on purpose.
fn is_set_back(published: &HashMap<Feed, Newest>, (feed, stored): &(Feed, Newest)) -> bool {
    let is_less = |sent: &Newest| stored.seq < sent.seq || stored.version < sent.version;
    published.get(feed).is_some_and(is_less) && !feed.is_of_a_canary()
}

/// Follows the epoch for ever, so that all sessions of an earlier epoch end.
pub async fn follow_epoch(hub: Arc<Hub>, epochs: Arc<Epochs>, metrics: Arc<Metrics>) {
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

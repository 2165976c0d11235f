//! The slow sweep behind every hint: it asks the database every few seconds what the feeds of this replica's sessions hold, and
//! whether the epoch is still the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::fanout::hub::Hub;
use crate::model::feed::Feed;
use crate::model::notification::Newest;
use crate::retry::Backoff;
use crate::store::damage::{Damaged, Parts};
use crate::store::epoch::known::Epochs;
use crate::store::{self, pools::Pool};
use crate::telemetry::metrics::Metrics;

/// How long a lost hint can delay a notification, about.
const INTERVAL: Duration = Duration::from_secs(2);
/// Most feeds asked for in one statement.
const FEEDS_PER_QUERY_MAX: usize = 5_000;
/// How often that statement is split in one sweep: enough to find three damaged feeds, which the next sweep leaves out.
const SPLITS_PER_SWEEP_MAX: usize = 40;

/// Sweeps, and lowers cursors in each new epoch. Neither waits for the other.
pub async fn run(pool: Pool, hub: Arc<Hub>, epochs: Arc<Epochs>, metrics: Arc<Metrics>) {
    tokio::join!(
        sweep(&pool, &hub, &epochs, &metrics),
        lower(&pool, &epochs, &metrics)
    );
}

/// Tells sessions what their feeds hold, every few seconds: whatever hint was lost, they notice the gap and read it. Asks for the
/// epoch then, and whenever a part of the replica wants it.
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
            metrics.retries.inc("sweep");
            tracing::warn!(%error, "the sweep could not read the epoch; it reads again");
        } else if is_due {
            look(pool, hub, epochs, metrics, &damaged).await;
        }
    }
}

/// Moves back the cursors that stand above the last number of their feed, once in each epoch: a restore of some tables leaves
/// them, and their subscribers would miss the orders that get these numbers.
async fn lower(pool: &Pool, epochs: &Epochs, metrics: &Metrics) {
    let (mut changes, mut backoff) = (epochs.changes(), Backoff::default());
    loop {
        let lowered = match epochs.current() {
            Some(epoch) => store::epoch::lower_cursors(pool, &epoch).await,
            None => Ok(()),
        };
        match lowered {
            Ok(()) => {
                backoff.reset();
                changes.next().await;
            }
            Err(error) => {
                let wait = backoff.next_wait();
                metrics.retries.inc("sweep");
                tracing::warn!(%error, wait_ms = wait.as_millis(), "cursors could not be lowered; trying again");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Compares what is stored with what sessions were told before the question, not with what they are told meanwhile.
async fn look(pool: &Pool, hub: &Hub, epochs: &Epochs, metrics: &Metrics, damaged: &Damaged) {
    let (Some(epoch), announced) = hub.published() else {
        return;
    };
    let feeds: Vec<Feed> = announced.keys().cloned().collect();
    for feeds in feeds.chunks(FEEDS_PER_QUERY_MAX) {
        let mut parts = Parts::new(damaged.others(feeds), SPLITS_PER_SWEEP_MAX);
        while let Some(part) = parts.take().filter(|part| !part.is_empty()) {
            let failed = match store::pages::newest(pool, &part).await {
                // Another replica renewed it just now.
                Ok((stored_in, _)) if stored_in.as_ref() != Some(&epoch) => return epochs.ask(),
                Ok((_, newest)) => {
                    if let Some((feed, _)) =
                        newest.iter().find(|stored| is_set_back(&announced, stored))
                    {
                        let feed = feed.as_str();
                        tracing::error!(
                            feed,
                            "the database has less than sessions were told of: it was set back"
                        );
                        return epochs
                            .doubt(&epoch, "a feed ended before what sessions were told of");
                    }
                    hub.publish_newest(&epoch, &newest);
                    continue;
                }
                Err(error) => parts.failed(part, error, damaged),
            };
            match failed {
                Ok(feed) => _ = metrics.damaged_reads.inc_by(feed.iter().len() as u64),
                Err(error) => {
                    metrics.retries.inc("sweep");
                    tracing::warn!(%error, "the sweep could not read what feeds hold; it reads again");
                }
            }
        }
    }
}

/// A canary's feed is forgotten on purpose.
fn is_set_back(announced: &HashMap<Feed, Newest>, (feed, stored): &(Feed, Newest)) -> bool {
    let is_less = |told: &Newest| stored.seq < told.seq || stored.version < told.version;
    announced.get(feed).is_some_and(is_less) && !feed.is_of_a_canary()
}

/// Tells all sessions as soon as the epoch has changed.
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

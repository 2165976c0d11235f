//! The sweep: a slow poll of the newest numbers of all feeds that have a session here.
//!
//! It finds hints that were lost without evidence. It reads a few feeds at a time, so that Postgres has no
//! burst of work.

use std::time::Duration;

use super::newest::{NewestReader, Unread};
use crate::telemetry::labels::Retried;

/// Most feeds in one statement. It takes about two milliseconds.
const FEEDS_PER_PORTION_MAX: usize = 500;

/// Reads each feed once in `every`, for ever.
pub async fn run(reader: NewestReader, every: Duration) {
    loop {
        let mut feeds = reader.hub.feeds();
        // The order stays, so that the time between two reads of a feed does.
        feeds.sort_unstable();
        let portions = feeds.len().div_ceil(FEEDS_PER_PORTION_MAX).max(1);
        let pause = every / u32::try_from(portions).unwrap_or(u32::MAX);
        let size = feeds.len().div_ceil(portions).max(1);
        let mut pauses = tokio::time::interval(pause);
        pauses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pauses.tick().await;
        for feeds in feeds.chunks(size) {
            pauses.tick().await;
            match reader.read(feeds).await {
                // In a new epoch, all sessions begin again.
                Ok(()) | Err(Unread::EpochOver) => {}
                Err(Unread::Store(error)) => {
                    reader.metrics.retries.inc(Retried::Sweep);
                    tracing::warn!(%error, "the sweep could not read the newest numbers; the next sweep reads them");
                }
            }
        }
        if feeds.is_empty() {
            pauses.tick().await;
        }
    }
}

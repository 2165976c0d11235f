//! Housekeeping: deletes expired rows every hour.

use std::time::{Duration, Instant};

use crate::store::StoreError;
use crate::store::pool::Pool;
use crate::store::{canaries, dead_letters, imports, traces};

const INTERVAL: Duration = Duration::from_secs(3_600);
/// Longest pause between two statements. A pause is as long as its statement, so that half of the time
/// belongs to the others.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Runs on every replica with ingest. The deletes are safe to run on several replicas.
pub async fn run(pool: Pool) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if let Err(error) = once(&pool).await {
            tracing::warn!(%error, "housekeeping failed; it runs again in an hour");
        }
    }
}

async fn once(pool: &Pool) -> Result<(), StoreError> {
    let mut begun = Instant::now();
    while traces::delete_expired(pool).await? > 0 {
        begun = pause(begun).await;
    }
    while imports::delete_expired_items(pool).await? > 0 {
        begun = pause(begun).await;
    }
    let mut deleted = 0;
    loop {
        let step = dead_letters::trim(pool).await?;
        if step == 0 {
            break;
        }
        deleted += step;
        begun = pause(begun).await;
    }
    if deleted > 0 {
        tracing::warn!(
            letters = deleted,
            "the oldest published dead letters were deleted from Postgres, which keeps 1 GiB and 90 days; the queue in RabbitMQ has them"
        );
    }
    canaries::end_abandoned(pool).await
}

/// Pauses after a statement that began at `begun`; returns the begin of the next one.
async fn pause(begun: Instant) -> Instant {
    tokio::time::sleep(begun.elapsed().min(PAUSE_MAX)).await;
    Instant::now()
}

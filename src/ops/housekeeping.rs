//! Housekeeping: deletes expired rows every hour.

use std::time::Duration;

use crate::store::StoreError;
use crate::store::pool::Pool;
use crate::store::{canaries, dead_letters, imports, traces};

const INTERVAL: Duration = Duration::from_secs(3_600);

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
    while traces::delete_expired(pool).await? > 0 {}
    while imports::delete_expired_items(pool).await? > 0 {}
    let mut deleted = 0;
    loop {
        let step = dead_letters::trim(pool).await?;
        if step == 0 {
            break;
        }
        deleted += step;
    }
    if deleted > 0 {
        tracing::warn!(
            letters = deleted,
            "the oldest published dead letters were deleted from Postgres, which keeps 1 GiB and 90 days; the queue in RabbitMQ has them"
        );
    }
    canaries::end_abandoned(pool).await
}

//! Housekeeping: deletes expired rows every hour.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::retry;
use crate::store::StoreError;
use crate::store::pool::Pool;
use crate::store::{canaries, dead_letters, imports, presence, receipts, settlements, traces};

const INTERVAL: Duration = Duration::from_secs(3_600);
/// Longest pause between two statements.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Runs on every replica with ingest. The deletes are safe to run on several replicas.
pub async fn run(pool: Pool) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        step("traces", delete_traces(&pool)).await;
        step("import_items", delete_import_items(&pool)).await;
        step("dead_letters", delete_dead_letters(&pool)).await;
        step("receipts", delete_receipts(&pool)).await;
        step("early_settlements", delete_settlements(&pool)).await;
        step("canaries", canaries::end_abandoned(&pool)).await;
        step("presences", delete_presences(&pool)).await;
    }
}

/// Runs a step, and logs its failure. The other steps do not depend on it.
async fn step(table: &'static str, deleting: impl Future<Output = Result<(), StoreError>>) {
    if let Err(error) = deleting.await {
        tracing::warn!(
            table,
            %error,
            "a step of housekeeping failed; it runs again in an hour, and the other steps run. If it fails each time, \
             the table grows: run `shopbell doctor`, then check the rights of the role and the indexes of the table"
        );
    }
}

async fn delete_traces(pool: &Pool) -> Result<(), StoreError> {
    let mut begun = Instant::now();
    while traces::delete_expired(pool).await? > 0 {
        begun = pause(begun).await;
    }
    Ok(())
}

async fn delete_presences(pool: &Pool) -> Result<(), StoreError> {
    let mut begun = Instant::now();
    while presence::delete_dead(pool).await? {
        begun = pause(begun).await;
    }
    Ok(())
}

async fn delete_receipts(pool: &Pool) -> Result<(), StoreError> {
    let mut begun = Instant::now();
    while receipts::delete_old(pool).await? > 0 {
        begun = pause(begun).await;
    }
    Ok(())
}

async fn delete_settlements(pool: &Pool) -> Result<(), StoreError> {
    let mut begun = Instant::now();
    while settlements::delete_old(pool).await? > 0 {
        begun = pause(begun).await;
    }
    Ok(())
}

/// Visits all imports with items.
async fn delete_import_items(pool: &Pool) -> Result<(), StoreError> {
    let (mut begun, mut after) = (Instant::now(), None);
    loop {
        let (old, last) = imports::old_with_items(pool, after.as_ref()).await?;
        begun = pause(begun).await;
        if !old.is_empty() {
            while imports::delete_items(pool, &old).await? > 0 {
                begun = pause(begun).await;
            }
        }
        if last.is_none() {
            return Ok(());
        }
        after = last;
    }
}

async fn delete_dead_letters(pool: &Pool) -> Result<(), StoreError> {
    let (mut begun, mut deleted) = (Instant::now(), 0);
    loop {
        let count = dead_letters::trim(pool).await?;
        if count == 0 {
            break;
        }
        deleted += count;
        begun = pause(begun).await;
    }
    if deleted > 0 {
        tracing::warn!(
            letters = deleted,
            "the oldest published dead letters were deleted from Postgres, which keeps 1 GiB and 90 days; the queue in RabbitMQ has them"
        );
    }
    Ok(())
}

/// Pauses after a statement that began at `begun`; returns the begin of the next one.
async fn pause(begun: Instant) -> Instant {
    retry::pause_after(begun, PAUSE_MAX).await;
    Instant::now()
}

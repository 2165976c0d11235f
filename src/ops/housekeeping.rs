//! Forgets, every hour, what is of no use any more and that nobody else takes away.

use std::time::Duration;

use crate::store::StoreError;
use crate::store::pools::Pool;
use crate::store::{canaries, dead_letters, imports, traces};

const INTERVAL: Duration = Duration::from_secs(3_600);

/// Runs in every replica that ingests: what one has taken away, another does not find.
pub async fn run(pool: Pool) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if let Err(error) = once(&pool).await {
            tracing::warn!(%error, "what is of no use any more could not be forgotten; it is tried in an hour");
        }
    }
}

async fn once(pool: &Pool) -> Result<(), StoreError> {
    while traces::delete_expired(pool).await? > 0 {}
    while imports::delete_expired_items(pool).await? > 0 {}
    let trimmed = dead_letters::trim(pool).await?;
    if trimmed > 0 {
        tracing::warn!(
            letters = trimmed,
            "the oldest published dead letters were removed from Postgres, which keeps a gigabyte; RabbitMQ's queue has them"
        );
    }
    canaries::end_abandoned(pool).await
}

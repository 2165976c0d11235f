//! Measures the lag of the outbox for the metrics, on a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use super::OutboxError;
use super::database::Database;
use crate::telemetry::labels::RelayFailure;
use crate::telemetry::metrics::RelayMetrics;

/// Short enough for an alert that waits a minute, long enough to cost little.
const INTERVAL: Duration = Duration::from_secs(5);

/// Measures for ever. The standby measures too, so that the lag is known while no relay works.
pub async fn run(options: PgConnectOptions, metrics: Arc<RelayMetrics>) {
    let mut database = None;
    loop {
        if let Err(error) = measure(&options, &mut database, &metrics).await {
            // The last values stay, because nothing newer is known.
            metrics.failures.inc(RelayFailure::Probe);
            tracing::warn!(%error, "a probe could not read the outbox");
            database = None;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn measure(
    options: &PgConnectOptions,
    database: &mut Option<Database>,
    metrics: &RelayMetrics,
) -> Result<(), OutboxError> {
    let database = match database {
        Some(database) => database,
        None => database.insert(Database::open(options).await?),
    };
    let lag = database.measure().await?;
    metrics.rows.set(lag.rows);
    metrics.oldest_age.set(lag.oldest_age_seconds);
    metrics.set_aside.set(lag.set_aside);
    Ok(())
}

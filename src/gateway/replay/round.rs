//! A round reads the newest numbers of all feeds that have a session here, because there is evidence
//! that a hint was lost.

use std::sync::Arc;
use std::time::Duration;

use super::newest::{FEEDS_PER_READ_MAX, NewestReader, Unread};
use crate::fanout::evidence::Found;
use crate::retry::Retry;
use crate::telemetry::labels::Retried;

/// Rest after a round, so that much evidence costs one round a second.
const REST: Duration = Duration::from_secs(1);

/// Waits for evidence and reads, for ever. Evidence that is found during a round causes another.
pub async fn run(reader: NewestReader, evidence: Arc<Found>) {
    let mut retry = Retry::new(Retried::Sweep, &reader.metrics);
    loop {
        let found = evidence.take().await;
        tracing::debug!(?found, "hints may be lost; the newest numbers are read");
        found
            .iter()
            .for_each(|one| reader.metrics.hints.rounds.inc(*one));
        while let Err(unread) = read_all(&reader).await {
            let wait = match unread {
                Unread::EpochOver => REST,
                Unread::Store(error) => {
                    retry.failed("the newest numbers could not be read", &error)
                }
            };
            tokio::time::sleep(wait).await;
        }
        retry.reset();
        tokio::time::sleep(REST).await;
    }
}

async fn read_all(reader: &NewestReader) -> Result<(), Unread> {
    for feeds in reader.hub.feeds().chunks(FEEDS_PER_READ_MAX) {
        reader.read(feeds).await?;
    }
    Ok(())
}

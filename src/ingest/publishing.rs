//! Publishes the hints of stored batches to the other replicas, and acknowledges their deliveries
//! together a moment later. Meanwhile the next batch is stored. Hints are published at once, except
//! lean ones, which are collected for as long as an acknowledgement is delayed anyway.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::amqp::BrokerError;
use crate::amqp::consumer::Acknowledger;
use crate::fanout::publisher::{HintPublisher, Published, StoredBatch};
use crate::retry;

/// Most stored batches that wait for the publish of their hints.
pub(super) const STORED_MAX: usize = 4;
/// Events after which they are acknowledged at once. RabbitMQ writes each acknowledgement to disk,
/// so one covers many events. It is a part of the prefetch, so that RabbitMQ goes on with the rest.
pub(super) const EVENTS_PER_ACKNOWLEDGEMENT: u64 = 64;
/// Longest delay of an acknowledgement. If the process dies before it, RabbitMQ delivers again.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(10);

/// Published batches that are not acknowledged yet.
struct Unacknowledged {
    published: Published,
    due: Instant,
}

/// Publishes and acknowledges stored batches until the channel closes. `collected_max` bounds the
/// events that wait for the publish of lean hints, and so for their acknowledgement.
///
/// # Errors
/// The connection of the consumer is lost.
pub(super) async fn publish_and_acknowledge(
    mut stored: mpsc::Receiver<StoredBatch>,
    mut hints: HintPublisher,
    acknowledger: &Acknowledger,
    collected_max: u64,
) -> Result<(), BrokerError> {
    let mut batches = Vec::with_capacity(STORED_MAX);
    let mut unacknowledged: Option<Unacknowledged> = None;
    let mut acknowledged = 0;
    loop {
        let due = unacknowledged.as_ref().map(|waiting| waiting.due);
        let is_closed = tokio::select! {
            received = stored.recv_many(&mut batches, STORED_MAX) => received == 0,
            () = retry::until(due) => false,
        };
        if is_closed {
            break;
        }
        let is_full = |batches: &[StoredBatch]| {
            let last = batches.last();
            last.is_none_or(|last| last.through() - acknowledged >= collected_max)
        };
        hints.collect(&mut stored, &mut batches, is_full).await;
        if let Some(published) = hints.publish(&batches).await {
            let due = due.unwrap_or_else(|| Instant::now() + ACKNOWLEDGE_AFTER);
            unacknowledged = Some(Unacknowledged { published, due });
            batches.clear();
        }
        let is_due = |waiting: &mut Unacknowledged| {
            waiting.due <= Instant::now()
                || waiting.published.through() - acknowledged >= EVENTS_PER_ACKNOWLEDGEMENT
        };
        if let Some(Unacknowledged { published, .. }) = unacknowledged.take_if(is_due) {
            acknowledged = published.through();
            published.acknowledge(acknowledger).await?;
        }
    }
    if let Some(Unacknowledged { published, .. }) = unacknowledged {
        published.acknowledge(acknowledger).await?;
    }
    hints.close().await;
    Ok(())
}

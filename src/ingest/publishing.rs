//! What becomes of a batch that is stored: the other replicas are told at once, and RabbitMQ that it is done a moment later,
//! of many events together. Nobody waits for either; meanwhile the next batch is stored.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::amqp::BrokerError;
use crate::amqp::consumer::Acknowledger;
use crate::fanout::publisher::{HintPublisher, Published, StoredBatch};

/// Most batches that are stored and not yet handed on.
pub(super) const STORED_MAX: usize = 4;
/// RabbitMQ writes an acknowledgement to its disk, like an event. So it gets one for so many events, a part of the prefetch
/// small enough for the rest to be on its way meanwhile …
const EVENTS_PER_ACKNOWLEDGEMENT: u64 = 64;
/// … or for those of so long a time; a crash before it makes RabbitMQ deliver them again.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(10);

/// Batches that RabbitMQ is to be told of.
struct Unacknowledged {
    published: Published,
    due: Instant,
}

/// Hands on what is stored, until no more comes.
pub(super) async fn publish(
    mut stored: mpsc::Receiver<StoredBatch>,
    mut hints: HintPublisher,
    acknowledger: &Acknowledger,
) -> Result<(), BrokerError> {
    let mut batches = Vec::with_capacity(STORED_MAX);
    let mut unacknowledged: Option<Unacknowledged> = None;
    let mut acknowledged = 0;
    loop {
        let due = unacknowledged.as_ref().map(|waiting| waiting.due);
        let ended = tokio::select! {
            received = stored.recv_many(&mut batches, STORED_MAX) => received == 0,
            () = at(due) => false,
        };
        if ended {
            break;
        }
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

/// Never, where there is nothing due.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

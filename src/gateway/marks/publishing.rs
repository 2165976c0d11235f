//! Publishes new marks to the other replicas, apart from the writes, which must not wait for
//! RabbitMQ.

use tokio::sync::mpsc;

use super::UNPUBLISHED_MAX;
use crate::fanout::Hints;
use crate::fanout::publisher::HintPublisher;

/// Publishes until the channel is closed. If RabbitMQ refuses hints, they are lost, and the sweeps
/// of other replicas find the marks.
pub(super) async fn publish_all(
    mut unpublished: mpsc::Receiver<Hints>,
    mut publisher: HintPublisher,
) {
    let (mut waiting, mut was_refused) = (Vec::new(), false);
    while unpublished.recv_many(&mut waiting, UNPUBLISHED_MAX).await > 0 {
        let hints: Vec<_> = waiting.iter().collect();
        let published = publisher.publish_hints(&hints).await;
        // Only the first of consecutive failures is logged, because clients choose the number of
        // marks.
        if let Err(error) = &published
            && !was_refused
        {
            tracing::warn!(%error, "RabbitMQ refuses hints; the sweeps of other replicas find marks");
        }
        was_refused = published.is_err();
        waiting.clear();
    }
    publisher.close().await;
}

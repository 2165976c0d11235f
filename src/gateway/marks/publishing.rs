//! Publishes new marks to the other replicas, apart from the writes, which must not wait for
//! RabbitMQ.

use tokio::sync::mpsc;

use super::UNPUBLISHED_MAX;
use crate::fanout::Hints;
use crate::fanout::publisher::HintPublisher;

/// Publishes until the channel is closed. If RabbitMQ refuses hints, they are lost, and the
/// other replicas read the marks.
pub(super) async fn publish_all(
    mut unpublished: mpsc::Receiver<Hints>,
    mut publisher: HintPublisher,
) {
    let mut waiting = Vec::new();
    while unpublished.recv_many(&mut waiting, UNPUBLISHED_MAX).await > 0 {
        let is_full = |waiting: &[Hints]| waiting.len() >= UNPUBLISHED_MAX;
        publisher
            .collect(&mut unpublished, &mut waiting, is_full)
            .await;
        let hints: Vec<_> = waiting.iter().collect();
        publisher.publish_hints(&hints).await;
        waiting.clear();
    }
    publisher.close().await;
}

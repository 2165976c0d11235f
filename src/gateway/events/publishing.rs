//! Publishes the events of requests to RabbitMQ, and reports to each request when RabbitMQ has
//! confirmed its events.
//!
//! The events of the requests that arrive during one round of confirms are the next round, so no timer
//! delays them. One task publishes, because lapin may swap the confirms of two tasks on a channel.
//! So events of one client, sent one request after another, keep their order.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::amqp::publisher::{Outgoing, Publisher};

/// Most requests that wait for a round. Their bodies have a bound of their own.
const WAITING_MAX: usize = 1_024;
/// Events after which a round takes no more requests.
const ROUND_EVENTS: usize = 500;
/// Most time from a request to its confirm. After it the state of its events is unknown.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(35);

/// The events of a request are not confirmed, so its publisher repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "RabbitMQ did not confirm the events: send the request again. An event that was published twice is stored once"
)]
pub struct NotPublished;

/// Gives events to the [`EventWorker`].
#[derive(Debug, Clone)]
pub struct EventPublisher {
    requests: mpsc::Sender<Waiting>,
}

/// Publishes the events of all requests.
#[derive(Debug)]
pub struct EventWorker {
    requests: mpsc::Receiver<Waiting>,
    publisher: Publisher,
}

#[derive(Debug)]
struct Waiting {
    events: Vec<Outgoing>,
    confirmed: oneshot::Sender<bool>,
}

impl EventPublisher {
    /// Makes the two ends of the queue of requests.
    pub fn new(publisher: Publisher) -> (Self, EventWorker) {
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let worker = EventWorker {
            requests,
            publisher,
        };
        (Self { requests: sender }, worker)
    }

    /// Publishes events in their order, and returns when RabbitMQ has confirmed all.
    ///
    /// # Errors
    /// RabbitMQ did not confirm all. Some may have arrived.
    pub(super) async fn publish(&self, events: Vec<Outgoing>) -> Result<(), NotPublished> {
        let (confirmed, outcome) = oneshot::channel();
        let waiting = Waiting { events, confirmed };
        self.requests.try_send(waiting).map_err(|_| NotPublished)?;
        match tokio::time::timeout(CONFIRM_TIMEOUT, outcome).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false) | Err(_)) | Err(_) => Err(NotPublished),
        }
    }
}

impl EventWorker {
    /// Publishes until `stop`, then the requests that wait.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                first = self.requests.recv() => first,
                () = stop.cancelled(), if !self.requests.is_closed() => {
                    self.requests.close();
                    continue;
                }
            };
            let Some(first) = first else { break };
            self.round(first).await;
        }
        self.publisher.close().await;
    }

    /// Publishes the events of `first` and of the requests that have arrived.
    async fn round(&mut self, first: Waiting) {
        let mut events = first.events;
        let mut confirmed = vec![first.confirmed];
        while events.len() < ROUND_EVENTS
            && let Ok(next) = self.requests.try_recv()
        {
            // A client that left gets no response, but its events may be published already.
            events.extend(next.events);
            confirmed.push(next.confirmed);
        }
        let published = self.publisher.publish(&events).await;
        if let Err(error) = &published {
            tracing::warn!(%error, events = events.len(), "events of POST /v1/events are not confirmed; their publishers repeat them");
        }
        for confirmed in confirmed {
            // The request may have ended.
            let _ = confirmed.send(published.is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_requests_than_may_wait_are_not_published() {
        // Nobody takes requests from this queue.
        let (requests, _queue) = mpsc::channel(1);
        let publisher = EventPublisher { requests };
        let waiting = publisher.publish(Vec::new());
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(publisher.publish(Vec::new()).await, Err(NotPublished));
    }
}

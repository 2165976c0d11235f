//! Dead letters: made here of deliveries, and published from Postgres to RabbitMQ, at least once, after their commit. Ingest
//! does not wait for that: in an alarm RabbitMQ takes no publishes, and the letters wait in Postgres.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::amqp::dead_letter::{DeadLetter, Undecodable};
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::amqp::{Broker, BrokerError};
use crate::model::event::Rejection;
use crate::model::feed::Feed;
use crate::store::StoreError;
use crate::store::dead_letters::{self, Letter};
use crate::store::pools::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// The reason of an event that waits for a damaged feed.
pub(super) const FEED_DAMAGED: &str = "feed_damaged";
/// How often letters are published that other replicas have left.
const INTERVAL: Duration = Duration::from_secs(5);
/// Most letters that are published together.
const LETTERS_MAX: i64 = 64;
/// How long a letter that RabbitMQ does not take lets others go first.
const POSTPONED_SECONDS: i64 = 10;

/// The letter of an event that can never be stored.
pub(super) fn rejected(delivery: &Delivery, rejection: &Rejection) -> Letter {
    of(delivery, rejection.reason.as_str(), &rejection.detail, None)
}

/// The letter of an event that waits for a damaged feed.
pub(super) fn held(delivery: &Delivery, feed: &Feed, detail: &str) -> Letter {
    of(delivery, FEED_DAMAGED, detail, Some(feed.clone()))
}

fn of(delivery: &Delivery, reason: &str, detail: &str, feed: Option<Feed>) -> Letter {
    let id = Uuid::now_v7().simple().to_string();
    let mut letter = DeadLetter::new(id, delivery, reason, detail);
    let body = Letter::body_of(delivery.body());
    if body.len() < delivery.body().len() {
        letter.set_original_body_bytes(delivery.body().len());
    }
    Letter {
        properties: letter.encode(),
        content_type: letter.content_type().map(ToOwned::to_owned),
        id: letter.id,
        reason: letter.reason,
        detail: letter.detail,
        exchange: letter.exchange,
        routing_key: letter.routing_key,
        body,
        bytes: i64::try_from(delivery.body().len()).unwrap_or(i64::MAX),
        feed,
    }
}

/// Dead letters that stay unpublished in Postgres.
#[derive(Debug, thiserror::Error)]
enum NotPublished {
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Publishes what is stored.
#[derive(Debug)]
pub struct DeadLetterPublisher {
    /// Where they are published.
    pub broker: Broker,
    /// Where they are stored.
    pub pool: Pool,
    /// Wakes it.
    pub stored: Arc<Notify>,
    /// What cannot be done is counted.
    pub metrics: Arc<Metrics>,
}

impl DeadLetterPublisher {
    /// Runs until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut publisher = Publisher::lazy(&self.broker);
        let mut most = LETTERS_MAX;
        while !stop.is_cancelled() {
            match self.publish(&mut publisher, &mut most).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    self.metrics.retries.inc(Retried::DeadLetters);
                    tracing::warn!(%error, "stored dead letters could not be read; they are published later");
                }
            }
            tokio::select! {
                () = self.stored.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => {}
            }
        }
        publisher.close().await;
    }

    /// Publishes some; returns whether there may be more to publish at once.
    async fn publish(&self, publisher: &mut Publisher, most: &mut i64) -> Result<bool, StoreError> {
        let letters = dead_letters::lease(&self.pool, *most).await?;
        let ids: Vec<String> = letters.iter().map(|letter| letter.id.clone()).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let outgoing: Result<Vec<Outgoing>, Undecodable> = letters
            .into_iter()
            .map(|letter| {
                Ok(DeadLetter::decode(&letter.properties, letter.body)?
                    .to_outgoing(&self.broker.names))
            })
            .collect();
        let published = match outgoing {
            Ok(outgoing) => publisher
                .publish(&outgoing)
                .await
                .map_err(NotPublished::from),
            Err(error) => Err(NotPublished::from(error)),
        };
        match published {
            Ok(()) => {
                *most = LETTERS_MAX;
                dead_letters::set_published(&self.pool, &ids).await?;
                Ok(true)
            }
            Err(error) => {
                self.metrics.retries.inc(Retried::DeadLetters);
                tracing::warn!(%error, letters = ids.len(), "RabbitMQ took no dead letters; they stay in Postgres until it does");
                // RabbitMQ may refuse one of them: each is tried alone, and one that is refused lets the others go first.
                let alone =
                    ids.len() == 1 && !matches!(error, NotPublished::Broker(BrokerError::Blocked));
                *most = 1;
                dead_letters::postpone(&self.pool, &ids, if alone { POSTPONED_SECONDS } else { 0 })
                    .await?;
                Ok(false)
            }
        }
    }
}

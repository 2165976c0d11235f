//! Makes dead letters of deliveries. [`DeadLetterPublisher`] publishes them after their commit.

mod publisher;

use uuid::Uuid;

pub use self::publisher::DeadLetterPublisher;
use crate::amqp::dead_letter::DeadLetter;
use crate::amqp::delivery::Delivery;
use crate::model::event::Rejection;
use crate::model::feed::Feed;
use crate::store::dead_letters::StoredDeadLetter;

/// The reason of an event that waits for a damaged feed.
pub(super) const FEED_DAMAGED: &str = "feed_damaged";

/// Makes the dead letter of an event that can never be stored.
pub(super) fn rejected(delivery: &Delivery, rejection: &Rejection) -> StoredDeadLetter {
    dead_letter(delivery, rejection.reason.as_str(), &rejection.detail, None)
}

/// Makes the row of an event that waits for a damaged feed.
pub(super) fn held(delivery: &Delivery, feed: &Feed, detail: &str) -> StoredDeadLetter {
    dead_letter(delivery, FEED_DAMAGED, detail, Some(feed.clone()))
}

fn dead_letter(
    delivery: &Delivery,
    reason: &str,
    detail: &str,
    feed: Option<Feed>,
) -> StoredDeadLetter {
    let id = Uuid::now_v7().simple().to_string();
    let mut dead_letter = DeadLetter::new(id, delivery, reason, detail);
    let body = StoredDeadLetter::body_of(delivery.body());
    if body.len() < delivery.body().len() {
        dead_letter.set_original_body_bytes(delivery.body().len());
    }
    StoredDeadLetter {
        properties: dead_letter.encode(),
        content_type: dead_letter.content_type().map(ToOwned::to_owned),
        id: dead_letter.id,
        reason: dead_letter.reason,
        detail: dead_letter.detail,
        exchange: dead_letter.exchange,
        routing_key: dead_letter.routing_key,
        body,
        bytes: i64::try_from(delivery.body().len()).unwrap_or(i64::MAX),
        feed,
    }
}

//! Stores a batch. If the database is away, this waits for it. If Postgres rejects a value, this
//! finds the event and makes a dead letter of it. If a feed is damaged, this repairs it or holds
//! its events. The other events of the batch are stored in each case.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::batch::CountedConsumer;
use super::{Ingest, dead_letters};
use crate::amqp::delivery::Delivery;
use crate::model::event::{Reason, Rejection};
use crate::model::feed::Feed;
use crate::retry::{self, Retry};
use crate::store::StoreError;
use crate::store::append::{Blame, Committed, Fate, NotAppended, Outcome, Pending, append};
use crate::store::damage::Halves;
use crate::store::holds;
use crate::telemetry::health::WaitingAppend;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Longest time for which deliveries are held while the database is away. RabbitMQ ends a consumer
/// after its `consumer_timeout` of 30 minutes, and some versions do not recover from that.
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// Most characters of an error of Postgres in a dead letter, and in the detail of `/readyz`.
const DETAIL_CHARS_MAX: usize = 300;

/// The reason for which a batch is given up. RabbitMQ delivers it again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Abandoned {
    #[error("the replica stops while the database is away; RabbitMQ delivers the batch again")]
    Stopping,
    #[error("the connection to RabbitMQ was lost while the database was away")]
    BrokerGone,
    #[error("the database was away for {0:?}; RabbitMQ delivers the batch again when it is back")]
    TooLong(Duration),
}

type Part = Vec<Pending<Delivery>>;

/// The end of an append that Postgres accepted or rejected.
enum Appended {
    Committed(Committed<Delivery>),
    Rejected(NotAppended<Delivery>),
}

/// Deliveries that are neither stored nor dead-lettered yet. If they are dropped, also because
/// their incarnation ends, they count as abandoned.
struct Undecided<'a> {
    deliveries: usize,
    metrics: &'a Metrics,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        self.metrics.events_abandoned.inc_by(self.deliveries as u64);
    }
}

impl Ingest {
    /// Stores all of a batch in order, and counts it. If Postgres rejects a part, halves it until
    /// the failing event is alone.
    ///
    /// # Errors
    /// The batch is given up because the database is away.
    pub(super) async fn store_batch(
        &self,
        batch: Part,
        received_at: OffsetDateTime,
        consumer: &CountedConsumer,
        stop: &CancellationToken,
    ) -> Result<Committed<Delivery>, Abandoned> {
        let mut committed = Committed::default();
        let mut undecided = Undecided {
            deliveries: batch.len(),
            metrics: &self.metrics,
        };
        let mut parts = Halves::new(batch, usize::MAX);
        while let Some(part) = parts.take() {
            if part.is_empty() {
                continue;
            }
            let deliveries = part.len();
            match self.append_part(part, received_at, consumer, stop).await? {
                Appended::Committed(part) => {
                    self.count(&part);
                    undecided.deliveries -= deliveries;
                    committed.join(part);
                }
                Appended::Rejected(part) => self.replace(part, &mut parts).await,
            }
        }
        Ok(committed)
    }

    /// Appends a part, as often as needed while the database is away.
    async fn append_part(
        &self,
        mut part: Part,
        received_at: OffsetDateTime,
        consumer: &CountedConsumer,
        stop: &CancellationToken,
    ) -> Result<Appended, Abandoned> {
        let held_since = Instant::now();
        let mut retry = Retry::new(Retried::Append, &self.metrics);
        let mut waiting = None;
        loop {
            let begun = Instant::now();
            let appended = append(&self.pool, part, received_at).await;
            self.metrics.append.observe(begun.elapsed().as_secs_f64());
            let not_appended = match appended {
                Ok(committed) => return Ok(Appended::Committed(committed)),
                Err(not_appended) => not_appended,
            };
            if not_appended.blame() != Blame::Nothing {
                return Ok(Appended::Rejected(not_appended));
            }
            let NotAppended { pending, error } = not_appended;
            part = pending;
            waiting
                .get_or_insert_with(|| WaitingAppend::begin(self.health.clone()))
                .failed(detail(&error));
            let wait = retry.failed("a batch could not be stored", &error);
            if !retry::sleep(wait, stop).await {
                return Err(Abandoned::Stopping);
            }
            if !consumer.is_connected() {
                return Err(Abandoned::BrokerGone);
            }
            if held_since.elapsed() > HOLD_MAX {
                return Err(Abandoned::TooLong(HOLD_MAX));
            }
        }
    }

    /// Puts the parts back that are stored instead of a rejected part, in order.
    async fn replace(
        &self,
        rejected: NotAppended<Delivery>,
        parts: &mut Halves<Pending<Delivery>>,
    ) {
        let blame = rejected.blame();
        let NotAppended {
            pending: part,
            error,
        } = rejected;
        let feeds: BTreeSet<Feed> = part.iter().filter_map(Pending::feed).cloned().collect();
        match (blame, feeds.first()) {
            (Blame::Held, _) => {
                // If this read fails, the next append fails too, and waits for the database.
                let held = holds::among(&self.pool, &feeds.iter().collect::<Vec<_>>())
                    .await
                    .unwrap_or_default();
                let detail = "the feed is held: earlier events of it wait";
                parts.put_back(hold(part, &held, detail));
            }
            (Blame::Feed, Some(feed)) if feeds.len() == 1 => {
                if self.repair(feed).await {
                    parts.put_back(part);
                    return;
                }
                tracing::error!(%error, %feed, events = part.len(), "a feed is damaged; its events wait in Postgres");
                parts.put_back(hold(part, &feeds, &detail(&error)));
            }
            _ => {
                if let Err(alone) = parts.split(part) {
                    let dead_letter = |event| dead_letter(event, &error);
                    parts.put_back(alone.into_iter().map(dead_letter).collect());
                }
            }
        }
    }

    /// Repairs a feed. Returns whether its events can be stored now.
    async fn repair(&self, feed: &Feed) -> bool {
        match holds::repair(&self.pool, feed).await {
            Ok(true) => {
                self.metrics.feeds_repaired.inc();
                tracing::error!(%feed, "the counters of a feed were behind its rows and were repaired");
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(%feed, %error, "a damaged feed could not be repaired");
                false
            }
        }
    }

    fn count(&self, committed: &Committed<Delivery>) {
        for outcome in committed.outcomes() {
            match outcome {
                Outcome::Notified(placed) if placed.duplicate => {
                    _ = self.metrics.events_duplicate.inc()
                }
                Outcome::Notified(_) => _ = self.metrics.events_stored.inc(),
                Outcome::DeadLettered(dead_letter) => {
                    tracing::warn!(
                        dead_letter = dead_letter.id,
                        reason = dead_letter.reason,
                        detail = dead_letter.detail,
                        routing_key = dead_letter.routing_key,
                        "an event was dead-lettered"
                    );
                    self.count_dead_letter(&dead_letter.reason);
                }
                Outcome::Held(waiting) => {
                    tracing::warn!(
                        dead_letter = waiting.id,
                        feed = waiting.feed.as_ref().map(Feed::as_str),
                        reason = waiting.reason,
                        detail = waiting.detail,
                        routing_key = waiting.routing_key,
                        "an event waits for its held feed"
                    );
                    self.count_dead_letter(&waiting.reason);
                }
            }
        }
    }

    /// Counts a dead letter, or an event that waits, so that the counters balance.
    fn count_dead_letter(&self, reason: &str) {
        let reason = Reason::ALL
            .into_iter()
            .map(Reason::as_str)
            .find(|word| *word == reason);
        self.metrics
            .events_dead_lettered
            .inc(reason.unwrap_or(dead_letters::FEED_DAMAGED));
        self.dead_letter_stored.notify_one();
    }
}

/// Makes a dead letter of an event that Postgres rejects alone. If it is a dead letter or waits
/// already, omits the parts that Postgres may have rejected.
fn dead_letter(pending: Pending<Delivery>, error: &StoreError) -> Pending<Delivery> {
    let Pending { origin, fate } = pending;
    let fate = match fate {
        Fate::Notify(_) => {
            let rejection = Rejection {
                reason: Reason::InvalidData,
                detail: detail(error),
            };
            Fate::DeadLetter(Box::new(dead_letters::rejected(&origin, &rejection)))
        }
        Fate::DeadLetter(dead_letter) => Fate::DeadLetter(Box::new(dead_letter.least())),
        Fate::Hold(waiting) => Fate::Hold(Box::new(waiting.least())),
    };
    Pending { origin, fate }
}

/// Makes the events of these feeds wait in Postgres.
fn hold(part: Part, feeds: &BTreeSet<Feed>, detail: &str) -> Part {
    let held = |pending: Pending<Delivery>| match pending.feed() {
        Some(feed) if feeds.contains(feed) => {
            let fate = Fate::Hold(Box::new(dead_letters::held(&pending.origin, feed, detail)));
            Pending {
                origin: pending.origin,
                fate,
            }
        }
        _ => pending,
    };
    part.into_iter().map(held).collect()
}

fn detail(error: &StoreError) -> String {
    error.to_string().chars().take(DETAIL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_of_a_dead_letter_is_bounded() {
        let error = StoreError::Schema("é".repeat(DETAIL_CHARS_MAX));
        assert_eq!(detail(&error).chars().count(), DETAIL_CHARS_MAX);
    }
}

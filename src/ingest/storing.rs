//! Storing a batch whatever it takes: a database that is away is waited for in place, a value that it refuses is found and
//! becomes a dead letter, a feed that is damaged is repaired or held, and neither harms its neighbours.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::batch::Arrivals;
use super::{Ingest, dead_letters};
use crate::amqp::delivery::Delivery;
use crate::model::event::{Reason, Rejection};
use crate::model::feed::Feed;
use crate::retry::Backoff;
use crate::store::StoreError;
use crate::store::append::{Blame, Committed, Fate, NotAppended, Outcome, Pending, append};
use crate::store::holds;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// How long deliveries are held for a database that is away. RabbitMQ ends a consumer that holds longer than its
/// `consumer_timeout` (30 minutes), and some versions do not recover from that: so we give back at half of it.
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest text of Postgres in a dead letter.
const DETAIL_CHARS_MAX: usize = 300;

/// Why a batch was given back, unacknowledged, to be delivered again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Abandoned {
    #[error("the replica stops while the database is away; the batch goes back to RabbitMQ")]
    Stopping,
    #[error("RabbitMQ went away while the database was away; the batch is delivered again")]
    BrokerGone,
    #[error("the database was away for {0:?}; the batch goes back to RabbitMQ until it returns")]
    TooLong(Duration),
}

type Part = Vec<Pending<Delivery>>;

/// Deliveries of which it is not known what became of them. However the work on them ends, also where its incarnation drops it
/// halfway, RabbitMQ delivers them again.
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
    /// Stores all of a batch in order, and counts it. A part that is refused is halved until the culprit stands alone.
    pub(super) async fn store(
        &self,
        batch: Part,
        received_at: OffsetDateTime,
        arrivals: &Arrivals,
        stop: &CancellationToken,
    ) -> Result<Committed<Delivery>, Abandoned> {
        let mut committed = Committed::default();
        let mut undecided = Undecided {
            deliveries: batch.len(),
            metrics: &self.metrics,
        };
        let mut parts = VecDeque::from([batch]);
        while let Some(part) = parts.pop_front() {
            if part.is_empty() {
                continue;
            }
            let deliveries = part.len();
            match self
                .append_when_possible(part, received_at, arrivals, stop)
                .await?
            {
                Ok(part) => {
                    self.count(&part);
                    undecided.deliveries -= deliveries;
                    committed.join(part);
                }
                Err(refused) => self
                    .resolve(refused)
                    .await
                    .into_iter()
                    .rev()
                    .for_each(|part| parts.push_front(part)),
            }
        }
        Ok(committed)
    }

    /// Tries until the database takes the part, or refuses something of it. The inner error gives it back.
    async fn append_when_possible(
        &self,
        mut part: Part,
        received_at: OffsetDateTime,
        arrivals: &Arrivals,
        stop: &CancellationToken,
    ) -> Result<Result<Committed<Delivery>, NotAppended<Delivery>>, Abandoned> {
        let held_since = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let appended = append(&self.pool, part, received_at).await;
            self.metrics.append.observe(begun.elapsed().as_secs_f64());
            let not_appended = match appended {
                Ok(committed) => return Ok(Ok(committed)),
                Err(not_appended) => not_appended,
            };
            if not_appended.blame() != Blame::Nothing {
                return Ok(Err(not_appended));
            }
            let NotAppended { pending, error } = not_appended;
            part = pending;
            let wait = backoff.next_wait();
            self.metrics.retries.inc(Retried::Append);
            tracing::warn!(%error, events = part.len(), wait_ms = wait.as_millis(), "a batch could not be stored; trying again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Err(Abandoned::Stopping),
            }
            if !arrivals.is_connected() {
                return Err(Abandoned::BrokerGone);
            }
            if held_since.elapsed() > HOLD_MAX {
                return Err(Abandoned::TooLong(HOLD_MAX));
            }
        }
    }

    /// What to store instead of a part that was refused, in order.
    async fn resolve(&self, refused: NotAppended<Delivery>) -> Vec<Part> {
        let blame = refused.blame();
        let NotAppended {
            pending: mut part,
            error,
        } = refused;
        let feeds: BTreeSet<Feed> = part.iter().filter_map(Pending::feed).cloned().collect();
        let damaged = if feeds.len() == 1 {
            feeds.first()
        } else {
            None
        };
        match (blame, damaged) {
            (Blame::Held, _) => {
                // An error shows again at the next append, which waits for the database.
                let held = holds::among(&self.pool, &feeds.iter().collect::<Vec<_>>())
                    .await
                    .unwrap_or_default();
                return vec![set_aside(
                    part,
                    &held,
                    "the feed is held: earlier events of it wait",
                )];
            }
            (Blame::Feed, Some(feed)) => {
                if !self.repair(feed).await {
                    tracing::error!(%error, events = part.len(), "a feed is damaged; its events wait until it is repaired");
                    part = set_aside(part, &feeds, &detail(&error));
                }
                return vec![part];
            }
            _ => {}
        }
        match part.pop() {
            Some(Pending { origin, fate }) if part.is_empty() => {
                let letter = match fate {
                    Fate::Notify(_) => {
                        let rejection = Rejection {
                            reason: Reason::InvalidData,
                            detail: detail(&error),
                        };
                        dead_letters::rejected(&origin, &rejection)
                    }
                    Fate::DeadLetter(letter) => letter.least(),
                };
                vec![vec![Pending {
                    origin,
                    fate: Fate::DeadLetter(Box::new(letter)),
                }]]
            }
            last => {
                part.extend(last);
                let second = part.split_off(part.len() / 2);
                vec![part, second]
            }
        }
    }

    /// Returns whether the feed was repaired, so that its events can be stored after all.
    async fn repair(&self, feed: &Feed) -> bool {
        match holds::repair(&self.pool, feed).await {
            Ok(true) => {
                self.metrics.feeds_repaired.inc();
                tracing::error!(%feed, "the counters of a feed were behind its rows; they were set to what the rows say");
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
                Outcome::DeadLettered(letter) => {
                    let (dead_letter, reason, detail) =
                        (&letter.id, &letter.reason, &letter.detail);
                    tracing::warn!(
                        dead_letter,
                        reason,
                        detail,
                        routing_key = letter.routing_key,
                        "an event was dead-lettered"
                    );
                    let reason = Reason::ALL
                        .into_iter()
                        .map(Reason::as_str)
                        .find(|word| *word == letter.reason);
                    self.metrics
                        .events_dead_lettered
                        .inc(reason.unwrap_or(dead_letters::FEED_DAMAGED));
                    self.letters.notify_one();
                }
            }
        }
    }
}

/// Makes letters of the events for these feeds, which wait there for the feed.
fn set_aside(part: Part, feeds: &BTreeSet<Feed>, detail: &str) -> Part {
    let aside = |pending: Pending<Delivery>| match pending.feed() {
        Some(feed) if feeds.contains(feed) => {
            let fate =
                Fate::DeadLetter(Box::new(dead_letters::held(&pending.origin, feed, detail)));
            Pending {
                origin: pending.origin,
                fate,
            }
        }
        _ => pending,
    };
    part.into_iter().map(aside).collect()
}

fn detail(error: &StoreError) -> String {
    error.to_string().chars().take(DETAIL_CHARS_MAX).collect()
}

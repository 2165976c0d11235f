//! Storing a batch whatever it takes: a database that is away is waited for in place, a value that it refuses is found and
//! taken out, its neighbours unharmed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::Ingest;
use crate::amqp::consumer::Consumer;
use crate::backoff::Backoff;
use crate::event::{Event, Reason, Rejection};
use crate::store::StoreError;
use crate::store::append::{NotAppended, Placed, append};

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

/// An event that Postgres never takes, though the parser did.
#[derive(Debug)]
pub(super) struct Refused {
    /// Its place among the events given.
    pub(super) place: usize,
    pub(super) rejection: Rejection,
}

impl Ingest {
    /// Stores all events in order. A batch that is refused is halved until the culprit stands alone.
    pub(super) async fn store(
        &self,
        events: Vec<Event>,
        received_at: OffsetDateTime,
        consumer: &Consumer,
        stop: &CancellationToken,
    ) -> Result<(Vec<Placed>, Vec<Refused>), Abandoned> {
        let (mut placed, mut refused) = (Vec::with_capacity(events.len()), Vec::new());
        let mut parts = VecDeque::from([(0, events)]);
        while let Some((place, mut events)) = parts.pop_front() {
            if events.is_empty() {
                continue;
            }
            match self.append_when_possible(events, received_at, consumer, stop).await? {
                Ok(mut stored) => placed.append(&mut stored),
                Err((error, culprit)) if culprit.len() == 1 => {
                    refused.push(Refused { place, rejection: rejection(&error) })
                }
                Err((_, halves)) => {
                    events = halves;
                    let second = events.split_off(events.len() / 2);
                    parts.push_front((place + events.len(), second));
                    parts.push_front((place, events));
                }
            }
        }
        Ok((placed, refused))
    }

    /// Tries until the database takes the events or refuses them. The inner error gives them back.
    async fn append_when_possible(
        &self,
        mut events: Vec<Event>,
        received_at: OffsetDateTime,
        consumer: &Consumer,
        stop: &CancellationToken,
    ) -> Result<Result<Vec<Placed>, (StoreError, Vec<Event>)>, Abandoned> {
        let held_since = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let appended = append(&self.pool, events, received_at).await;
            self.metrics.append.observe(begun.elapsed().as_secs_f64());
            let error = match appended {
                Ok(placed) => return Ok(Ok(placed)),
                Err(NotAppended { events, error: error @ StoreError::Refused(_) }) => return Ok(Err((error, events))),
                Err(not_appended) => {
                    events = not_appended.events;
                    not_appended.error
                }
            };
            let wait = backoff.next_wait();
            self.metrics.retries.inc("append");
            tracing::warn!(%error, events = events.len(), wait_ms = wait.as_millis(), "a batch could not be stored; trying again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Err(Abandoned::Stopping),
            }
            if !consumer.is_connected() {
                return Err(Abandoned::BrokerGone);
            }
            if held_since.elapsed() > HOLD_MAX {
                return Err(Abandoned::TooLong(HOLD_MAX));
            }
        }
    }
}

fn rejection(error: &StoreError) -> Rejection {
    Rejection { reason: Reason::InvalidData, detail: error.to_string().chars().take(DETAIL_CHARS_MAX).collect() }
}

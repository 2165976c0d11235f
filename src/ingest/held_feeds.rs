//! Stores the events of held feeds. While a feed is damaged, its events wait in Postgres. When the
//! feed can be appended to again, they are stored in the order of their arrival.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::batch::parse_event;
use super::dead_letters::FEED_DAMAGED;
use super::hints::{current_time, hints};
use crate::amqp::dead_letter::{DeadLetter, Undecodable};
use crate::amqp::publisher::Publisher;
use crate::fanout::Fanout;
use crate::fanout::publisher::HintPublisher;
use crate::fanout::stream::Stream;
use crate::model::event::{Event, Limits, Reason, Rejection};
use crate::model::feed::Feed;
use crate::retry;
use crate::store::StoreError;
use crate::store::append::{Blame, release};
use crate::store::dead_letters::StoredDeadLetter;
use crate::store::holds::{self, WaitingEvent};
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the attempts to store the events of a held feed.
const INTERVAL: Duration = Duration::from_secs(5);
/// Most events that are stored together.
const EVENTS_MAX: i64 = 128;

/// Stores the events of held feeds.
#[derive(Debug)]
pub struct HeldFeeds {
    /// The database with the waiting events.
    pub pool: Pool,
    /// Receives the hints of stored notifications.
    pub fanout: Arc<Fanout>,
    /// The numbers of the hints.
    pub stream: Arc<Stream>,
    /// The limits of events.
    pub limits: Limits,
    /// The feed that everyone reads.
    pub broadcast_feed: Feed,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// The reason for which a feed stays held.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
}

/// The events that waited, and the ids of their rows.
type Events = (Vec<Event>, Vec<String>);

impl HeldFeeds {
    /// Tries all held feeds at each interval, until `stop`. Publishes hints to other replicas through
    /// `publisher`.
    pub async fn run(self, publisher: Publisher, stop: CancellationToken) {
        let mut hints = HintPublisher::new(self.fanout.clone(), publisher, self.stream.clone());
        while retry::sleep(INTERVAL, &stop).await {
            if let Err(error) = self.try_all(&mut hints).await {
                self.metrics.retries.inc(Retried::HeldFeeds);
                tracing::warn!(%error, "held feeds could not be read; the next attempt follows");
            }
        }
        hints.close().await;
    }

    async fn try_all(&self, hints: &mut HintPublisher) -> Result<(), StoreError> {
        let mut feeds = holds::held_after(&self.pool, None).await?;
        while let Some(last) = feeds.last() {
            for feed in &feeds {
                if let Err(error) = self.try_release(feed, hints).await {
                    tracing::error!(%feed, %error, "a feed is damaged; its events wait in Postgres");
                }
            }
            feeds = holds::held_after(&self.pool, Some(last)).await?;
        }
        Ok(())
    }

    /// Stores the events that wait for a feed, then ends its hold.
    async fn try_release(
        &self,
        feed: &Feed,
        hints: &mut HintPublisher,
    ) -> Result<(), ReleaseError> {
        let mut events_max = EVENTS_MAX;
        loop {
            let waiting = holds::waiting(&self.pool, feed, events_max).await?;
            if waiting.is_empty() {
                if holds::end(&self.pool, feed).await? {
                    tracing::info!(%feed, "a held feed stores events again");
                }
                return Ok(());
            }
            // Another replica may release events meanwhile, so this keeps the one that it tries.
            let only = waiting
                .first()
                .filter(|_| events_max == 1)
                .map(|waiting| waiting.dead_letter.clone());
            let Some(events) = self.parse(waiting).await? else {
                continue;
            };
            match self.release(feed, events, hints).await {
                Ok(()) => events_max = EVENTS_MAX,
                Err(error) if Blame::of(&error) == Blame::Value => {
                    events_max = match only {
                        Some(event) => {
                            let rejection = Rejection {
                                reason: Reason::InvalidData,
                                detail: error.to_string(),
                            };
                            self.dead_letter(event, &rejection).await?;
                            EVENTS_MAX
                        }
                        None => 1,
                    };
                }
                Err(error)
                    if Blame::of(&error) == Blame::Feed
                        && holds::repair(&self.pool, feed).await? =>
                {
                    self.metrics.feeds_repaired.inc();
                    tracing::error!(%feed, "the counters of a feed were behind its rows and were repaired");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Parses the events again. If one is rejected now, because a limit was changed, it becomes a
    /// dead letter and this returns `None`.
    async fn parse(&self, waiting: Vec<WaitingEvent>) -> Result<Option<Events>, ReleaseError> {
        let (mut events, mut ids) = (
            Vec::with_capacity(waiting.len()),
            Vec::with_capacity(waiting.len()),
        );
        for WaitingEvent {
            dead_letter,
            received_at,
        } in waiting
        {
            let parsed = {
                let decoded =
                    DeadLetter::decode(&dead_letter.properties, dead_letter.body.clone())?;
                parse_event(&decoded.message(), self.limits, &self.broadcast_feed)
            };
            match parsed {
                Ok(mut event) => {
                    event.time.get_or_insert(received_at);
                    events.push(event);
                    ids.push(dead_letter.id);
                }
                Err(rejection) => {
                    self.dead_letter(dead_letter, &rejection).await?;
                    return Ok(None);
                }
            }
        }
        Ok(Some((events, ids)))
    }

    async fn release(
        &self,
        feed: &Feed,
        (events, ids): Events,
        publisher: &mut HintPublisher,
    ) -> Result<(), StoreError> {
        let now: OffsetDateTime = current_time();
        let released = release(&self.pool, events, &ids, now).await;
        if let Err(error) = &released
            && error.may_be_stored()
        {
            // No later attempt has these hints.
            self.fanout.suspect_write(&self.stream);
        }
        let placed = released?;
        let hints = hints(placed.iter(), now, None);
        // The events were counted as received and dead-lettered before, so they are received again.
        self.metrics.events_received.inc_by(placed.len() as u64);
        let duplicates = placed.iter().filter(|placed| placed.duplicate).count() as u64;
        self.metrics
            .events_stored
            .inc_by(placed.len() as u64 - duplicates);
        self.metrics.events_duplicate.inc_by(duplicates);
        self.fanout.publish_locally(&hints);
        publisher.publish_hints(&[&hints]).await;
        tracing::info!(%feed, events = placed.len(), reason = FEED_DAMAGED, "events that waited for a feed were stored");
        Ok(())
    }

    /// Turns an event that waits for its feed into a dead letter.
    async fn dead_letter(
        &self,
        waiting: StoredDeadLetter,
        rejection: &Rejection,
    ) -> Result<(), ReleaseError> {
        let dead_letter = DeadLetter::decode(&waiting.properties, Vec::new())?.rejected(rejection);
        let rejected = StoredDeadLetter {
            properties: dead_letter.encode(),
            reason: dead_letter.reason,
            detail: dead_letter.detail,
            ..waiting
        };
        Ok(holds::dead_letter(&self.pool, &rejected).await?)
    }
}

//! Feeds that are held: as soon as a feed can be appended to again, its events are stored in the order in which they came.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::batch::read;
use super::dead_letters::FEED_DAMAGED;
use super::{hints, microseconds};
use crate::amqp::dead_letter::{DeadLetter, Undecodable};
use crate::fanout::Fanout;
use crate::model::event::{Event, Limits, Reason, Rejection};
use crate::model::feed::Feed;
use crate::store::StoreError;
use crate::store::append::{Blame, release};
use crate::store::dead_letters::Letter;
use crate::store::holds::{self, Waiting};
use crate::store::pools::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// How often a held feed is tried.
const INTERVAL: Duration = Duration::from_secs(5);
/// Most events that are stored together.
const EVENTS_MAX: i64 = 128;

/// Stores the events of held feeds.
#[derive(Debug)]
pub struct HeldFeeds {
    /// Where they are stored.
    pub pool: Pool,
    /// Who is told.
    pub fanout: Arc<Fanout>,
    /// What is taken from publishers.
    pub limits: Limits,
    /// The feed that everyone reads.
    pub broadcast_feed: Feed,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// Why a feed is still held.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
}

impl HeldFeeds {
    /// Runs until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(INTERVAL))
            .await
            .is_some()
        {
            let tried = async {
                let mut feeds = holds::held_after(&self.pool, None).await?;
                while let Some(last) = feeds.last() {
                    for feed in &feeds {
                        if let Err(trouble) = self.try_release(feed).await {
                            tracing::error!(%feed, error = %trouble, "a feed is damaged and takes no events; they wait in Postgres");
                        }
                    }
                    feeds = holds::held_after(&self.pool, Some(last)).await?;
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = tried.await {
                self.metrics.retries.inc(Retried::HeldFeeds);
                tracing::warn!(%error, "held feeds could not be read; they are tried again");
            }
        }
    }

    /// Stores what waits for a feed, and then ends its hold.
    async fn try_release(&self, feed: &Feed) -> Result<(), ReleaseError> {
        let mut most = EVENTS_MAX;
        loop {
            let waiting = holds::waiting(&self.pool, feed, most).await?;
            if waiting.is_empty() {
                if holds::end(&self.pool, feed).await? {
                    tracing::info!(%feed, "a feed that was held takes events again");
                }
                return Ok(());
            }
            // The one that is tried, because another replica may release it meanwhile.
            let only = waiting
                .first()
                .filter(|_| most == 1)
                .map(|waiting| waiting.letter.clone());
            let Some((events, letters)) = self.read(waiting).await? else {
                continue;
            };
            match self.release(feed, events, letters).await {
                Ok(()) => most = EVENTS_MAX,
                Err(error) if Blame::of(&error) == Blame::Value => {
                    most = match only {
                        Some(letter) => {
                            let rejection = Rejection {
                                reason: Reason::InvalidData,
                                detail: error.to_string(),
                            };
                            self.bury(letter, &rejection).await?;
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
                    tracing::error!(%feed, "the counters of a feed were behind its rows; they were set to what the rows say");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Parses them again. One that is no event now, because a limit was changed, is a dead letter: then `None`, to begin anew.
    async fn read(
        &self,
        waiting: Vec<Waiting>,
    ) -> Result<Option<(Vec<Event>, Vec<String>)>, ReleaseError> {
        let (mut events, mut ids) = (
            Vec::with_capacity(waiting.len()),
            Vec::with_capacity(waiting.len()),
        );
        for Waiting {
            letter,
            received_at,
        } in waiting
        {
            let parsed = {
                let dead_letter = DeadLetter::decode(&letter.properties, letter.body.clone())?;
                read(&dead_letter.message(), self.limits, &self.broadcast_feed)
            };
            match parsed {
                Ok(mut event) => {
                    event.time.get_or_insert(received_at);
                    events.push(event);
                    ids.push(letter.id);
                }
                Err(rejection) => {
                    self.bury(letter, &rejection).await?;
                    return Ok(None);
                }
            }
        }
        Ok(Some((events, ids)))
    }

    async fn release(
        &self,
        feed: &Feed,
        events: Vec<Event>,
        letters: Vec<String>,
    ) -> Result<(), StoreError> {
        let now = microseconds(OffsetDateTime::now_utc());
        let placed = release(&self.pool, events, &letters, now).await?;
        let hints = hints(placed.iter(), now, None);
        // They were dead letters of the same counters before.
        self.metrics.events_received.inc_by(placed.len() as u64);
        self.metrics.events_stored.inc_by(hints.stored.len() as u64);
        self.metrics
            .events_duplicate
            .inc_by(hints.duplicates.len() as u64);
        // Other replicas read them by their sweep.
        self.fanout.publish_locally(&hints);
        tracing::info!(%feed, events = placed.len(), reason = FEED_DAMAGED, "events that waited for a feed were stored");
        Ok(())
    }

    /// Makes an ordinary dead letter of one that waited.
    async fn bury(&self, letter: Letter, rejection: &Rejection) -> Result<(), ReleaseError> {
        let dead_letter = DeadLetter::decode(&letter.properties, Vec::new())?.rejected(rejection);
        let letter = Letter {
            properties: dead_letter.encode(),
            reason: dead_letter.reason,
            detail: dead_letter.detail,
            ..letter
        };
        Ok(holds::dead_letter(&self.pool, &letter).await?)
    }
}

//! Reads the newest numbers of feeds that have a session here, and publishes them to the hub. So a
//! session finds a gap even if its hint was lost. Never reads a notification.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fanout::hub::Hub;
use crate::model::feed::{Feed, Newest};
use crate::store;
use crate::store::StoreError;
use crate::store::damage::{Damaged, Halves};
use crate::store::epoch::known::Epochs;
use crate::store::pool::Pool;
use crate::telemetry::metrics::Metrics;

/// Most feeds in one read. Thirteen splits find a damaged feed among them.
pub(super) const FEEDS_PER_READ_MAX: usize = 5_000;
/// Most splits of the statement in one read. They find three damaged feeds, which the next read
/// leaves out.
const SPLITS_MAX: usize = 40;

/// Reads the newest numbers.
#[derive(Debug, Clone)]
pub struct NewestReader {
    /// The database.
    pub pool: Pool,
    /// The sessions.
    pub hub: Arc<Hub>,
    /// The epoch of the numbers.
    pub epochs: Arc<Epochs>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Feeds that are left out.
    pub damaged: Arc<Damaged>,
}

/// The reason for which not all feeds were read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the epoch of the database is not known, or it changes")]
    EpochOver,
}

impl NewestReader {
    /// Reads these feeds. Compares the numbers with those that were published before the read,
    /// because higher ones may be published meanwhile.
    pub(super) async fn read(&self, feeds: &[Feed]) -> Result<(), Unread> {
        let (Some(epoch), published) = self.hub.published(feeds) else {
            return Err(Unread::EpochOver);
        };
        let mut parts = Halves::new(self.damaged.others(feeds), SPLITS_MAX);
        while let Some(part) = parts.take().filter(|part| !part.is_empty()) {
            let newest = match store::pages::newest(&self.pool, &part).await {
                // Another replica has just renewed the epoch.
                Ok((stored_in, _)) if stored_in.as_ref() != Some(&epoch) => {
                    self.epochs.ask();
                    return Err(Unread::EpochOver);
                }
                Ok((_, newest)) => newest,
                Err(error) => {
                    let damaged = parts.failed(part, error, &self.damaged)?;
                    self.metrics
                        .damaged_reads
                        .inc_by(u64::from(damaged.is_some()));
                    continue;
                }
            };
            self.metrics.hints.feeds_read.inc_by(newest.len() as u64);
            if let Some((feed, _)) = newest.iter().find(|stored| is_set_back(&published, stored)) {
                let feed = feed.as_str();
                tracing::error!(
                    feed,
                    "a feed ends below a number that was sent; the database was restored"
                );
                self.epochs
                    .doubt(&epoch, "a feed ended below a number that was sent");
                return Err(Unread::EpochOver);
            }
            self.hub.publish_newest(&epoch, &newest);
        }
        Ok(())
    }
}

/// Whether a feed has lost numbers that were published. The feed of a canary is deleted on purpose.
fn is_set_back(published: &HashMap<Feed, Newest>, (feed, stored): &(Feed, Newest)) -> bool {
    let is_less = |sent: &Newest| stored.seq < sent.seq || stored.version < sent.version;
    published.get(feed).is_some_and(is_less) && !feed.is_of_a_canary()
}

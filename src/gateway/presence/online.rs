//! The presence of recipients, for publishers: read together and remembered for a moment, so that a
//! publisher of many events causes few reads.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::feed::Feed;
use crate::store::pool::Pool;
use crate::store::presence as rows;

/// Time for which a read counts.
const FRESH: Duration = Duration::from_secs(1);
/// Longest wait of a publisher. The confirm of its events takes longer on most disks.
const TIMEOUT: Duration = Duration::from_millis(250);
/// Most feeds that are remembered.
const FEEDS_MAX: usize = 10_000;

/// Reads which feeds are online.
#[derive(Debug)]
pub(super) struct Online {
    pool: Pool,
    /// Locked for map accesses only.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    feeds: HashMap<Feed, (Instant, bool)>,
    /// The database did not answer: nothing is read until then.
    away_until: Option<Instant>,
}

impl Online {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            known: Mutex::default(),
        }
    }

    /// Returns whether each feed is online; `None` if the database does not answer in time.
    pub(super) async fn of(&self, feeds: &[Feed]) -> Vec<Option<bool>> {
        let now = Instant::now();
        let (mut unknown, is_away) = {
            let known = self.lock();
            let is_unknown = |feed: &&Feed| known.fresh(feed, now).is_none();
            let unknown: Vec<_> = feeds.iter().filter(is_unknown).cloned().collect();
            (unknown, known.away_until.is_some_and(|until| now < until))
        };
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() && !is_away {
            let read = tokio::time::timeout(TIMEOUT, rows::online(&self.pool, &unknown)).await;
            let mut known = self.lock();
            match read {
                Ok(Ok(online)) => known.add(unknown, &online, now),
                _ => known.away_until = Some(Instant::now() + FRESH),
            }
        }
        let known = self.lock();
        feeds.iter().map(|feed| known.fresh(feed, now)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn fresh(&self, feed: &Feed, now: Instant) -> Option<bool> {
        let (read_at, is_online) = self.feeds.get(feed)?;
        (now.saturating_duration_since(*read_at) < FRESH).then_some(*is_online)
    }

    fn add(&mut self, read: Vec<Feed>, online: &[Feed], now: Instant) {
        if self.feeds.len() + read.len() > FEEDS_MAX {
            self.feeds
                .retain(|_, (read_at, _)| now.saturating_duration_since(*read_at) < FRESH);
        }
        if self.feeds.len() + read.len() > FEEDS_MAX {
            self.feeds.clear();
        }
        for feed in read {
            let is_online = online.contains(&feed);
            self.feeds.insert(feed, (now, is_online));
        }
        self.away_until = None;
    }
}

//! Retention: removes old notifications in small steps, under load. It walks over all feeds every
//! hour. One ingest replica at a time works, and any other continues if that one is killed. The hints
//! of a step have the new numbers of its feeds, because their counts may have changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::fanout::Fanout;
use crate::fanout::publisher::HintPublisher;
use crate::fanout::stream::Stream;
use crate::model::feed::{Epoch, Feed, Seq};
use crate::retry;
use crate::store::StoreError;
use crate::store::pool::Pool;
use crate::store::retention::{self, Due, DueFeed, Locks, Part, Trimmed};
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the question whether a part of the walk is due: one small statement.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Feeds in one step. Their rows are locked for the step, so a few appends wait.
const FEEDS_PER_STEP_MAX: usize = 50;
/// Well below the lease in `store/retention`.
const EXTEND_EVERY: Duration = Duration::from_secs(20);
/// Longest pause after a step.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Removes old notifications.
#[derive(Debug)]
pub struct Retention {
    /// The database.
    pub pool: Pool,
    /// `SHOPBELL_RETENTION_DAYS`.
    pub kept: Duration,
    /// The feed that everyone reads.
    pub broadcast_feed: Feed,
    /// Receives the new numbers of feeds.
    pub fanout: Arc<Fanout>,
    /// The numbers of the hints.
    pub stream: Arc<Stream>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

impl Retention {
    /// Removes until `stop`, which may come at any time, because each step is one statement. Publishes
    /// hints to other replicas through `hints`.
    pub async fn run(self, mut hints: HintPublisher, stop: CancellationToken) {
        stop.run_until_cancelled(self.walk(&mut hints)).await;
        // The last step may be stored without hints.
        self.stream.skip();
        hints.close().await;
    }

    async fn walk(&self, hints: &mut HintPublisher) {
        loop {
            match self.next_part(hints).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(error) => {
                    self.metrics.retries.inc(Retried::Retention);
                    tracing::warn!(%error, "old notifications could not be removed; the next attempt follows");
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
        }
    }

    /// Processes the next part of the walk; returns whether there was one.
    async fn next_part(&self, hints: &mut HintPublisher) -> Result<bool, StoreError> {
        let (part, state) = retention::lease(&self.pool).await?;
        self.metrics.retention.late.set(state.late_seconds);
        self.metrics.retention.held_back.set(state.held_back);
        let Some(part) = part else {
            return Ok(false);
        };
        let (mut lease, mut held_back) = (Lease::new(part), 0);
        if let Some(due) = self.due(&mut lease).await? {
            let (removable, kept): (Vec<_>, Vec<_>) =
                due.feeds.into_iter().partition(|feed| feed.is_removable);
            held_back = kept.len();
            self.trim_all(&mut lease, &due.epoch, &removable, hints)
                .await?;
        }
        // If another replica has the lease, this changes nothing.
        retention::finish(&self.pool, &lease.part, held_back).await?;
        Ok(true)
    }

    /// Reads the due feeds of a part. Halves the part if Postgres cannot read it, until the damaged feed
    /// is alone, and leaves that one out.
    async fn due(&self, lease: &mut Lease) -> Result<Option<Due>, StoreError> {
        let mut waiting = vec![lease.part.clone()];
        let mut all: Option<Due> = None;
        while let Some(part) = waiting.pop().filter(|part| !part.is_end()) {
            let reading = retention::due(&self.pool, &part, self.kept, &self.broadcast_feed);
            match (reading.await, &mut all) {
                (Ok(due), Some(all)) => all.feeds.extend(due.feeds),
                (Ok(due), None) => all = Some(due),
                (Err(error), _) if error.may_pass_in_parts() => {
                    match retention::halve(&self.pool, &part).await? {
                        Some([first, second]) => waiting.extend([second, first]),
                        None => self.leave_out(part.last(), &error),
                    }
                }
                (Err(error), _) => return Err(error),
            }
            if !lease.extend(&self.pool).await? {
                return Ok(None);
            }
        }
        Ok(all)
    }

    /// Removes all due notifications of these feeds.
    async fn trim_all(
        &self,
        lease: &mut Lease,
        epoch: &Epoch,
        feeds: &[DueFeed],
        hints: &mut HintPublisher,
    ) -> Result<(), StoreError> {
        let mut steps = Steps::new(feeds);
        while let Some((step, locks)) = steps.next() {
            let begun = Instant::now();
            let trimmed = retention::trim(&self.pool, epoch, &step, self.kept, locks).await;
            if let Err(error) = &trimmed
                && error.may_be_stored()
            {
                self.fanout.suspect_write(&self.stream);
            }
            match trimmed {
                Ok(trimmed) => {
                    self.publish_numbers(&trimmed, hints).await;
                    let removed = trimmed.iter().map(|one| one.removed).sum();
                    self.metrics.retention.removed.inc_by(removed);
                    steps.done(&step, locks, &trimmed);
                }
                Err(error) if error.may_concern_one_row() => {
                    if let Some(feed) = steps.failed(&step) {
                        self.leave_out(feed.as_str(), &error);
                    }
                }
                Err(error) => return Err(error),
            }
            retry::pause_after(begun, PAUSE_MAX).await;
            if !lease.extend(&self.pool).await? {
                break;
            }
        }
        Ok(())
    }

    /// Publishes the newest numbers of the feeds that have lost notifications. Sessions read their counts
    /// if the version is new.
    async fn publish_numbers(&self, trimmed: &[Trimmed], publisher: &mut HintPublisher) {
        let changed = trimmed.iter().filter(|one| one.removed > 0);
        let feeds: Vec<Feed> = changed.map(|one| one.feed.clone()).collect();
        publisher.publish_newest(&self.pool, &feeds).await;
    }

    /// Leaves a feed to the next walk.
    fn leave_out(&self, feed: &str, error: &StoreError) {
        self.metrics.retries.inc(Retried::Retention);
        tracing::warn!(%feed, %error, "old notifications of a feed could not be removed; the next walk tries again");
    }
}

/// The lease of a part, which is extended in time.
struct Lease {
    part: Part,
    extended_at: Instant,
}

impl Lease {
    fn new(part: Part) -> Self {
        Self {
            part,
            extended_at: Instant::now(),
        }
    }

    /// Returns false if another replica has leased the part meanwhile.
    async fn extend(&mut self, pool: &Pool) -> Result<bool, StoreError> {
        if self.extended_at.elapsed() <= EXTEND_EVERY {
            return Ok(true);
        }
        self.extended_at = Instant::now();
        retention::extend(pool, &mut self.part).await
    }
}

/// The feeds that wait for a step.
#[derive(Debug)]
struct Steps<'a> {
    /// In C order.
    waiting: Vec<(&'a Feed, Seq)>,
    /// Feeds that get a step of their own, which waits for their lock.
    alone: Vec<(&'a Feed, Seq)>,
    /// Feeds of the next step. A step that a limit ends has locked feeds in vain, so the next one has
    /// fewer.
    count: usize,
}

impl<'a> Steps<'a> {
    fn new(feeds: &'a [DueFeed]) -> Self {
        Self {
            waiting: feeds.iter().map(|due| (&due.feed, due.floor)).collect(),
            alone: Vec::new(),
            count: FEEDS_PER_STEP_MAX,
        }
    }

    fn next(&mut self) -> Option<(Vec<(&'a Feed, Seq)>, Locks)> {
        if self.waiting.is_empty() {
            return Some((vec![self.alone.pop()?], Locks::Wait));
        }
        let count = self.waiting.len().min(self.count);
        Some((self.waiting.drain(..count).collect(), Locks::Skip))
    }

    /// Puts those feeds of a step back that may have more to remove, or that were locked.
    fn done(&mut self, step: &[(&'a Feed, Seq)], locks: Locks, trimmed: &[Trimmed]) {
        let result = |feed: &Feed| trimmed.iter().find(|one| one.feed == *feed);
        let is_cut = |feed: &Feed| result(feed).is_some_and(|one| one.is_cut);
        let cut: Vec<_> = step
            .iter()
            .filter(|(feed, _)| is_cut(feed))
            .copied()
            .collect();
        match locks {
            Locks::Skip => {
                self.count = match cut.len() {
                    0 => FEEDS_PER_STEP_MAX.min(self.count * 2),
                    1 => self.count,
                    _ => (self.count / 2).max(1),
                };
                self.waiting.splice(..0, cut);
                let locked = step.iter().filter(|(feed, _)| result(feed).is_none());
                self.alone.extend(locked);
            }
            Locks::Wait => self.alone.extend(cut),
        }
    }

    /// Splits a failed step into single feeds. Returns the feed of a step with only one.
    fn failed(&mut self, step: &[(&'a Feed, Seq)]) -> Option<&'a Feed> {
        if let [(feed, _)] = step {
            return Some(feed);
        }
        self.alone.extend(step);
        None
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn due(count: usize) -> Vec<DueFeed> {
        let feed = |number| DueFeed {
            feed: Feed::parse(&format!("m-{number:03}")).unwrap(),
            floor: Seq::ZERO,
            is_removable: true,
        };
        (0..count).map(feed).collect()
    }

    fn names(step: &[(&Feed, Seq)]) -> Vec<String> {
        step.iter().map(|(feed, _)| feed.to_string()).collect()
    }

    fn trimmed(feed: &Feed, is_cut: bool) -> Trimmed {
        Trimmed {
            feed: feed.clone(),
            removed: 1,
            is_cut,
        }
    }

    #[test]
    fn a_cut_feed_comes_first_and_a_locked_one_comes_last_and_waits() {
        let feeds = due(3);
        let mut steps = Steps::new(&feeds);
        let (step, locks) = steps.next().unwrap();
        assert_eq!((step.len(), locks), (3, Locks::Skip));
        // The first was locked, and a limit ended the step in the second.
        let results = [trimmed(step[1].0, true), trimmed(step[2].0, true)];
        steps.done(&step, locks, &results);
        let (step, locks) = steps.next().unwrap();
        assert_eq!(
            (names(&step), locks),
            (vec!["m-001".into(), "m-002".into()], Locks::Skip)
        );
        let results = [trimmed(step[0].0, false), trimmed(step[1].0, false)];
        steps.done(&step, locks, &results);
        let (step, locks) = steps.next().unwrap();
        assert_eq!((names(&step), locks), (vec!["m-000".into()], Locks::Wait));
        steps.done(&step, locks, &[trimmed(step[0].0, true)]);
        assert_eq!(names(&steps.next().unwrap().0), ["m-000"]);
        assert!(steps.next().is_none());
    }

    #[test]
    fn steps_that_a_limit_ends_get_fewer_feeds() {
        let feeds = due(FEEDS_PER_STEP_MAX * 2);
        let mut steps = Steps::new(&feeds);
        let mut counts = Vec::new();
        for is_cut in [true, true, false, false] {
            let (step, locks) = steps.next().unwrap();
            counts.push(step.len());
            let results: Vec<_> = step.iter().map(|(feed, _)| trimmed(feed, is_cut)).collect();
            steps.done(&step, locks, &results);
        }
        assert_eq!(counts, [50, 25, 12, 24]);
    }

    #[test]
    fn a_failed_step_is_split_into_single_feeds() {
        let feeds = due(FEEDS_PER_STEP_MAX + 1);
        let mut steps = Steps::new(&feeds);
        let (step, _) = steps.next().unwrap();
        assert!(steps.failed(&step).is_none());
        let mut count = 0;
        while let Some((step, _)) = steps.next() {
            assert_eq!(steps.failed(&step), Some(step[0].0));
            count += 1;
        }
        assert_eq!(count, feeds.len());
    }
}

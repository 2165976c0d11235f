//! Cursors: a session reads them when it connects, and its acks move them.
//!
//! Acks come in and are merged: each write has the highest number of each cursor since the last
//! write. A write changes only cursors; the rows of feeds follow seldom. If the replica crashes
//! before a write, or Postgres crashes soon after it, a few notifications are replayed, and none is
//! skipped. This module never moves a cursor back.

mod highest;
mod opening;
mod unwritten;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::opening::Openings;
pub use self::opening::{CursorReader, NotOpened, SEEN_AFTER};
use self::unwritten::UnwrittenAcks;
use crate::model::feed::{Epoch, Seq};
use crate::retry::{self, Retry};
use crate::store::StoreError;
use crate::store::cursors::{CursorKey, FeedStanding, advance, raise};
use crate::store::damage::Halves;
use crate::store::epoch::{self, known::Epochs};
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Most acks in one statement, if few acks wait. An append waits at most for one if both need the same
/// processor. The statement also locks their cursors until it commits.
const ACKS_PER_WRITE: usize = 200;
/// Most acks in one statement, if many acks wait or the replica stops. A large statement needs less time
/// for each ack.
const ACKS_PER_WRITE_MAX: usize = 2_000;
/// Statements for the acks that wait. So their number grows before their size.
const WRITES_PER_BACKLOG: usize = 10;
/// Longest pause between two statements of a write.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Rest after a write, in multiples of its duration, so that acks cost a small part of the
/// database's time. If the database is busy, more acks are merged.
const REST_TIMES: u32 = 20;
/// Shortest rest. The acks of a busy client are merged meanwhile.
const REST_MIN: Duration = Duration::from_millis(100);
/// Longest rest. After a crash, the notifications of this time are replayed. The same happens if a
/// client loses its network and reconnects through another replica.
const REST_MAX: Duration = Duration::from_secs(1);
/// Longest time for the last write when the replica stops. Notifications whose acks are not written
/// by then are replayed.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most statements of one batch that may fail while it is halved. Twelve find one bad row
/// among 2,000. If more fail, the round waits and begins again without the acks that it held, so
/// that a locked table costs little.
const FAILURES_PER_BATCH_MAX: usize = 32;
/// Most held acks that may fail after one batch. Each may wait for a lock.
const HELD_FAILURES_MAX: usize = 4;
/// The same if new acks wait meanwhile.
const HELD_FAILURES_MAX_IN_A_BACKLOG: usize = 1;

/// The cursors of all sessions of this replica.
#[derive(Debug)]
pub struct Cursors {
    /// Acks that are not written. Locked for an insert or a take, never across an await.
    unwritten: Mutex<UnwrittenAcks>,
    acked: Notify,
    soon: Notify,
    /// Wakes the requests that wait until their acks are written.
    written: Notify,
    openings: Openings,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
}

impl Cursors {
    /// Makes the cursors and their reader. The caller runs the reader and [`Cursors::write`].
    pub fn new(
        reads: Pool,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, CursorReader) {
        let (openings, waiting) = Openings::new();
        let cursors = Arc::new(Self {
            unwritten: Mutex::default(),
            acked: Notify::new(),
            soon: Notify::new(),
            written: Notify::new(),
            openings,
            epochs,
            metrics,
        });
        let reader = CursorReader::new(cursors.clone(), waiting, reads);
        (cursors, reader)
    }

    /// Adds an ack of a session of `epoch`. It is written later, but sessions that connect to this
    /// replica read it at once. If `epoch` is not the present epoch, the ack is dropped.
    pub fn ack(&self, key: CursorKey, seq: Seq, epoch: &Epoch) {
        let mut unwritten = self.lock();
        let is_waiting = unwritten.is_of(epoch) && unwritten.add(key, seq);
        drop(unwritten);
        if is_waiting {
            self.acked.notify_one();
        }
    }

    /// Ends the rest of the writer if acks wait. A session calls it when it ends, because its
    /// subscriber may reconnect to another replica.
    pub fn write_soon(&self) {
        if self.lock().waiting_count() > 0 {
            self.soon.notify_one();
        }
    }

    /// Returns when these acks are written, or dropped because the epoch changed.
    pub async fn written(&self, acks: &[(CursorKey, Seq)]) {
        loop {
            let mut written = pin!(self.written.notified());
            // A write from now on counts.
            written.as_mut().enable();
            let is_waiting = {
                let unwritten = self.lock();
                let waits = |(key, seq): &(CursorKey, Seq)| {
                    unwritten.newest(key).is_some_and(|newest| newest >= *seq)
                };
                acks.iter().any(waits)
            };
            if !is_waiting {
                return;
            }
            written.await;
        }
    }

    /// Opens the cursors of a session and returns their standings, in the order of the keys. Each
    /// key comes with whether everyone reads its feed. If the database is away, this waits for it:
    /// the caller sets the timeout.
    pub async fn open(&self, keys: Vec<(CursorKey, bool)>) -> Result<Vec<FeedStanding>, NotOpened> {
        self.openings.open(keys).await
    }

    /// Stores later that these devices were connected until now.
    pub fn note_seen(&self, keys: Vec<CursorKey>) {
        self.openings.note_seen(keys);
    }

    /// Writes acks until `stop`, then once more. If the database is away, acks wait. There is one
    /// for each cursor, so the sessions bound their number.
    pub async fn write(&self, pool: &Pool, stop: CancellationToken) {
        let mut retry = Retry::new(Retried::Acks, &self.metrics);
        while !stop.is_cancelled() {
            let wake_at = self.lock().wake_at();
            tokio::select! {
                () = self.acked.notified() => {}
                () = retry::until(wake_at) => {}
                () = stop.cancelled() => break,
            }
            let begun = Instant::now();
            let (rest, may_hurry) = match self.write_waiting(pool, &stop, Duration::ZERO).await {
                Ok(()) => {
                    retry.reset();
                    (
                        (begun.elapsed() * REST_TIMES).clamp(REST_MIN, REST_MAX),
                        true,
                    )
                }
                Err(error) => {
                    self.acked.notify_one();
                    let wait = retry.failed("acks could not be written", &error);
                    (wait, false)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.soon.notified(), if may_hurry => {}
                () = stop.cancelled() => {}
            }
        }
        let never = CancellationToken::new();
        match tokio::time::timeout(
            LAST_FLUSH_TIMEOUT,
            self.write_waiting(pool, &never, LAST_FLUSH_TIMEOUT),
        )
        .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last acks could not be written; their notifications are replayed")
            }
            Err(_) => tracing::warn!(
                timeout_ms = LAST_FLUSH_TIMEOUT.as_millis(),
                "the last acks could not be written in time; their notifications are replayed"
            ),
        }
    }

    /// Writes the acks that wait. After each batch, writes the held acks that are due within `early`,
    /// and raises rows of feeds, so that neither waits for the end of a backlog. If the replica stops
    /// meanwhile, leaves the rest for the last write.
    async fn write_waiting(
        &self,
        pool: &Pool,
        stop: &CancellationToken,
        early: Duration,
    ) -> Result<(), StoreError> {
        loop {
            // The last write has no time to pause or to raise rows.
            let is_last = !early.is_zero();
            let (epoch, acks, mut more) = self.next_write(is_last);
            let Some(epoch) = epoch else { return Ok(()) };
            let begun = Instant::now();
            self.write_in_parts(pool, &epoch, acks, stop).await?;
            let failures_max = match more {
                true => HELD_FAILURES_MAX_IN_A_BACKLOG,
                false => HELD_FAILURES_MAX,
            };
            self.write_held(pool, stop, early, failures_max).await?;
            if !is_last {
                more |= self.raise_due(pool).await;
            }
            if !more || stop.is_cancelled() {
                return Ok(());
            }
            if !is_last {
                retry::pause_after(begun, PAUSE_MAX).await;
            }
        }
    }

    /// Writes the held acks that are due within `early`, each alone, until `failures_max` have failed.
    async fn write_held(
        &self,
        pool: &Pool,
        stop: &CancellationToken,
        early: Duration,
        failures_max: usize,
    ) -> Result<(), StoreError> {
        let (epoch, due) = {
            let unwritten = self.lock();
            (
                unwritten.epoch().cloned(),
                unwritten.due(Instant::now() + early),
            )
        };
        let Some(epoch) = epoch else { return Ok(()) };
        let mut failures = 0;
        for ack in due {
            if failures == failures_max || stop.is_cancelled() {
                break;
            }
            let acks = [ack];
            match self.write_once(pool, &epoch, &acks).await {
                Ok(()) => {}
                Err(error) if error.may_concern_one_row() => {
                    failures += 1;
                    let [ack] = acks;
                    self.hold_or_drop(&epoch, ack, &error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes a batch. If it fails because of a value or a row, halves it until the failing acks
    /// are alone.
    async fn write_in_parts(
        &self,
        pool: &Pool,
        epoch: &Epoch,
        acks: Vec<(CursorKey, Seq)>,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let (mut parts, mut failures) = (Halves::new(acks, usize::MAX), 0);
        while let Some(part) = parts.take() {
            if part.is_empty() || stop.is_cancelled() {
                continue;
            }
            match self.write_once(pool, epoch, &part).await {
                Ok(()) => {}
                Err(error) if error.may_concern_one_row() => {
                    if let Err(alone) = parts.split(part) {
                        for ack in alone {
                            self.hold_or_drop(epoch, ack, &error);
                        }
                    }
                    failures += 1;
                    if failures == FAILURES_PER_BATCH_MAX && !parts.is_empty() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write_once(
        &self,
        pool: &Pool,
        epoch: &Epoch,
        acks: &[(CursorKey, Seq)],
    ) -> Result<(), StoreError> {
        let advanced = advance(pool, epoch, acks).await?;
        if advanced.is_stored {
            self.epochs.note_flushed(epoch, advanced.flushed);
            let mut unwritten = self.lock();
            if unwritten.is_of(epoch) {
                unwritten.written(acks, Instant::now());
            }
            drop(unwritten);
            self.written.notify_waiters();
        }
        if advanced.is_beyond {
            let reason = "an ack was above the last number of its feed";
            self.epochs.doubt(epoch, reason);
        }
        if advanced.is_beyond || !advanced.is_stored {
            // The acks of an epoch that is over are dropped.
            epoch::check(pool, &self.epochs).await?;
        }
        Ok(())
    }

    /// Raises rows of feeds that are due, in one statement, and returns whether more are due. A row
    /// that is locked is raised later.
    async fn raise_due(&self, pool: &Pool) -> bool {
        let (epoch, mut highest, more) = {
            let mut unwritten = self.lock();
            let (highest, more) = unwritten.take_highest(Instant::now());
            (unwritten.epoch().cloned(), highest, more)
        };
        let Some(epoch) = epoch.filter(|_| !highest.is_empty()) else {
            return false;
        };
        match raise(pool, &epoch, &highest).await {
            Ok(left) => highest.retain(|(feed, _)| left.contains(feed)),
            Err(error) => {
                tracing::debug!(%error, feeds = highest.len(), "the highest acks of feeds could not be raised");
            }
        }
        let mut unwritten = self.lock();
        if unwritten.is_of(&epoch) {
            unwritten.put_highest_back(highest, Instant::now());
        }
        more
    }

    /// Drops an ack that Postgres refuses, because it refuses the value each time; its
    /// notifications are replayed. Holds any other ack that failed alone, to write it again later
    /// without others.
    fn hold_or_drop(&self, epoch: &Epoch, ack: (CursorKey, Seq), error: &StoreError) {
        let mut unwritten = self.lock();
        if !unwritten.is_of(epoch) {
            return;
        }
        let (feed, seq) = (ack.0.feed.clone(), ack.1.get());
        if matches!(error, StoreError::Refused(_)) {
            unwritten.remove(&[ack]);
            drop(unwritten);
            tracing::error!(%error, %feed, seq, "Postgres refused an ack; it was dropped, and its notifications are replayed");
            return;
        }
        let is_first = unwritten.hold(ack, Instant::now());
        drop(unwritten);
        self.metrics.retries.inc(Retried::Acks);
        if is_first {
            tracing::warn!(%error, %feed, seq, "an ack could not be written; it is written again without others");
        }
    }

    /// Returns the acks of the next statement, and whether more wait.
    fn next_write(&self, is_last: bool) -> (Option<Epoch>, Vec<(CursorKey, Seq)>, bool) {
        let mut unwritten = self.lock();
        let acks_max = match is_last {
            true => ACKS_PER_WRITE_MAX,
            false => acks_per_write(unwritten.waiting_count()),
        };
        let acks = unwritten.next_write(acks_max);
        let more = unwritten.waiting_count() > 0;
        (unwritten.epoch().cloned(), acks, more)
    }

    /// Returns the newest ack of each key that the database may not have, and the epoch of these
    /// acks.
    fn not_written(&self, keys: &[CursorKey]) -> (Option<Epoch>, Vec<Option<Seq>>) {
        let unwritten = self.lock();
        (
            unwritten.epoch().cloned(),
            keys.iter().map(|key| unwritten.newest(key)).collect(),
        )
    }

    /// Locks the acks. Drops them if the epoch has changed.
    fn lock(&self) -> MutexGuard<'_, UnwrittenAcks> {
        let mut unwritten = self
            .unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = self.epochs.current()
            && !unwritten.is_of(&epoch)
        {
            *unwritten = UnwrittenAcks::of(epoch);
        }
        unwritten
    }
}

/// Most acks in the next statement if so many wait.
fn acks_per_write(waiting: usize) -> usize {
    (waiting / WRITES_PER_BACKLOG).clamp(ACKS_PER_WRITE, ACKS_PER_WRITE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_more_acks_if_many_wait() {
        let sizes = [0, 2_000, 5_000, 20_000, 100_000].map(acks_per_write);
        assert_eq!(sizes, [200, 200, 500, 2_000, 2_000]);
    }
}

//! Where subscribers stand: read at connect, moved by acks after.
//!
//! Acks are coalesced: whatever was acknowledged while the last write ran and rested is the next write, the highest number
//! for each cursor. A crash before the write replays a few notifications; it never skips one.

mod opening;
mod pending;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::opening::{CursorReader, NotOpened, SEEN_AFTER};
use self::opening::{Halves, Openings, halves};
use self::pending::Pending;
use crate::model::feed::{Epoch, Seq};
use crate::retry::Backoff;
use crate::store::StoreError;
use crate::store::cursors::{CursorKey, Standing, advance};
use crate::store::epoch::known::Epochs;
use crate::store::pools::Pool;
use crate::telemetry::metrics::Metrics;

/// Most cursors moved by one statement.
const ACKS_PER_WRITE_MAX: usize = 2_000;
/// After a write the writer rests so many times as long as the write took, so that acks never cost more than a small part of
/// the database's time: the busier it is, the more acks become one …
const REST_TIMES: u32 = 20;
/// … but at least so long, in which one busy client's acks become one, and at most so long, which is what is
/// replayed after a crash, or to a client that lost its network and returns through another replica before this one knows.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(1);
/// How long the last flush may take when the replica stops; what is not written by then is replayed.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most statements of one round that may fail while a batch is halved: eleven find one bad row among 2,000. After that the round
/// waits and begins again without the acks that it found, so that a locked table costs little.
const FAILURES_PER_ROUND_MAX: usize = 32;
/// Most held acks that may fail in one round: each may wait for a lock, and new acks wait behind it.
const HELD_FAILURES_PER_ROUND_MAX: usize = 4;

/// Acks that are not written yet, and where sessions ask for their cursors.
#[derive(Debug)]
pub struct Cursors {
    /// Held for an insert or a take, never across an await.
    pending: Mutex<Pending>,
    acked: Notify,
    hurried: Notify,
    openings: Openings,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
}

impl Cursors {
    /// Nothing runs yet: run the reader, and [`Cursors::write`].
    pub fn new(
        reads: Pool,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, CursorReader) {
        let (openings, waiting) = Openings::new();
        let cursors = Arc::new(Self {
            pending: Mutex::default(),
            acked: Notify::new(),
            hurried: Notify::new(),
            openings,
            epochs,
            metrics,
        });
        let reader = CursorReader::new(cursors.clone(), waiting, reads);
        (cursors, reader)
    }

    /// Notes an ack of a session of this epoch. It is written soon; a connect on this replica sees it at once. Drops it if that
    /// is not the present epoch.
    pub fn ack(&self, key: CursorKey, seq: Seq, epoch: &Epoch) {
        let mut pending = self.lock();
        let is_waiting = pending.is_of(epoch) && pending.add(key, seq);
        drop(pending);
        if is_waiting {
            self.acked.notify_one();
        }
    }

    /// Has what waits written without further rest: a session ended, and its subscriber may come back on another replica.
    pub fn hurry(&self) {
        if self.lock().has_waiting() {
            self.hurried.notify_one();
        }
    }

    /// Opens the cursors of a session: where each key stands, in the order given, and whether everyone reads its feed. Waits for
    /// a database that is away, so the caller sets the limit.
    pub async fn open(&self, keys: Vec<(CursorKey, bool)>) -> Result<Vec<Standing>, NotOpened> {
        self.openings.open(keys).await
    }

    /// Notes that the devices of a session that ends were connected until now.
    pub fn seen(&self, keys: Vec<CursorKey>) {
        self.openings.seen(keys);
    }

    /// Writes acks until told to stop, then once more. A database that is away is waited for: acks only grow, and there is
    /// one for each cursor, so what waits is bounded by the sessions.
    pub async fn write(&self, pool: &Pool, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let retry_at = self.lock().retry_at();
            tokio::select! {
                () = self.acked.notified() => {}
                () = at(retry_at) => {}
                () = stop.cancelled() => break,
            }
            let begun = Instant::now();
            let (rest, may_hurry) = match self.write_waiting(pool, &stop, Duration::ZERO).await {
                Ok(()) => {
                    backoff.reset();
                    (
                        (begun.elapsed() * REST_TIMES).clamp(REST_MIN, REST_MAX),
                        true,
                    )
                }
                Err(error) => {
                    self.acked.notify_one();
                    let wait = backoff.next_wait();
                    self.metrics.retries.inc("acks");
                    tracing::warn!(%error, wait_ms = wait.as_millis(), "acks could not be written; trying again");
                    (wait, false)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.hurried.notified(), if may_hurry => {}
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
                tracing::warn!(%error, "the last acks could not be written; they are replayed")
            }
            Err(_) => tracing::warn!(
                timeout_ms = LAST_FLUSH_TIMEOUT.as_millis(),
                "the last acks took too long; they are replayed"
            ),
        }
    }

    /// Writes the acks that wait now, then the held ones that are due, or are due within `early`. Leaves the rest for the last
    /// flush once the replica stops.
    async fn write_waiting(
        &self,
        pool: &Pool,
        stop: &CancellationToken,
        early: Duration,
    ) -> Result<(), StoreError> {
        loop {
            let (epoch, acks, more) = self.next_write();
            let Some(epoch) = epoch else { return Ok(()) };
            self.write_in_parts(pool, &epoch, acks, stop).await?;
            if !more || stop.is_cancelled() {
                break;
            }
        }
        let (epoch, due) = {
            let pending = self.lock();
            (
                pending.epoch().cloned(),
                pending.due(Instant::now() + early),
            )
        };
        let Some(epoch) = epoch else { return Ok(()) };
        let mut failures = 0;
        for ack in due {
            if failures == HELD_FAILURES_PER_ROUND_MAX || stop.is_cancelled() {
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

    /// Writes a batch. One that fails because of a value or a row is halved, down to the acks that fail alone.
    async fn write_in_parts(
        &self,
        pool: &Pool,
        epoch: &Epoch,
        acks: Vec<(CursorKey, Seq)>,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let (mut parts, mut failures) = (vec![acks], 0);
        while let Some(part) = parts.pop() {
            if part.is_empty() || stop.is_cancelled() {
                continue;
            }
            match self.write_once(pool, epoch, &part).await {
                Ok(()) => {}
                Err(error) if error.may_concern_one_row() => {
                    match halves(part) {
                        Halves::Two(first, second) => parts.extend([second, first]),
                        Halves::One(ack) => self.hold_or_drop(epoch, ack, &error),
                    }
                    failures += 1;
                    if failures == FAILURES_PER_ROUND_MAX && !parts.is_empty() {
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
        let (present, flushed) = advance(pool, epoch, acks).await?;
        // If the epoch is another one, nothing was written, and nothing may be.
        let mut pending = self.lock();
        if pending.is_of(epoch) {
            pending.done(acks);
        }
        drop(pending);
        if self.epochs.learn(&present) {
            self.epochs.note_flushed(&present, flushed);
        }
        Ok(())
    }

    /// A value that is refused is refused again: that ack is dropped, and its notifications are replayed. Any other ack that
    /// fails alone is tried again later, apart from the others.
    fn hold_or_drop(&self, epoch: &Epoch, ack: (CursorKey, Seq), error: &StoreError) {
        let mut pending = self.lock();
        if !pending.is_of(epoch) {
            return;
        }
        let (feed, seq) = (ack.0.feed.clone(), ack.1.get());
        if matches!(error, StoreError::Refused(_)) {
            pending.done(&[ack]);
            drop(pending);
            tracing::error!(%error, %feed, seq, "an ack was refused and dropped; its notifications are replayed");
            return;
        }
        let is_first = pending.hold(ack, Instant::now());
        drop(pending);
        self.metrics.retries.inc("acks");
        if is_first {
            tracing::warn!(%error, %feed, seq, "an ack could not be written; it is tried again apart from the others");
        }
    }

    /// As much as one statement takes, and whether that leaves some.
    fn next_write(&self) -> (Option<Epoch>, Vec<(CursorKey, Seq)>, bool) {
        let mut pending = self.lock();
        let acks = pending.next_write(ACKS_PER_WRITE_MAX);
        (pending.epoch().cloned(), acks, pending.has_waiting())
    }

    /// The newest ack of a key that the database may not have yet, and the epoch of all of them.
    fn not_written(&self, keys: &[CursorKey]) -> (Option<Epoch>, Vec<Option<Seq>>) {
        let pending = self.lock();
        (
            pending.epoch().cloned(),
            keys.iter().map(|key| pending.newest(key)).collect(),
        )
    }

    /// Locks the acks, and drops those of an epoch that is over.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = self.epochs.current()
            && !pending.is_of(&epoch)
        {
            *pending = Pending::of(epoch);
        }
        pending
    }
}

/// Never, if there is nothing to retry.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

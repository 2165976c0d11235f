//! Where subscribers stand: read at connect, moved by acks after.
//!
//! Acks are coalesced: whatever was acknowledged while the last write ran and rested is the next write, the highest number
//! for each cursor. A crash before the write replays a few notifications; it never skips one.

mod opening;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::opening::Openings;
pub use self::opening::{CursorReader, NotOpened, SEEN_AFTER};
use crate::backoff::Backoff;
use crate::epoch::Epochs;
use crate::feed::{Epoch, Seq};
use crate::store::StoreError;
use crate::store::cursors::{CursorKey, Standing, advance};
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

#[derive(Debug, Default)]
struct Pending {
    /// The epoch of all of them. What is of an earlier one is dropped: its numbers may be those of other notifications now.
    epoch: Option<Epoch>,
    /// Ordered, so that a write locks rows in one order.
    waiting: BTreeMap<CursorKey, Seq>,
    /// Being written: still the newest word for who connects meanwhile.
    writing: BTreeMap<CursorKey, Seq>,
}

impl Cursors {
    /// Nothing runs yet: run the reader, and [`Cursors::write`].
    pub fn new(reads: Pool, epochs: Arc<Epochs>, metrics: Arc<Metrics>) -> (Arc<Self>, CursorReader) {
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
        if pending.epoch.as_ref() != Some(epoch) {
            return;
        }
        let waiting = pending.waiting.entry(key).or_insert(seq);
        *waiting = seq.max(*waiting);
        drop(pending);
        self.acked.notify_one();
    }

    /// Has what waits written without further rest: a session ended, and its subscriber may come back on another replica.
    pub fn hurry(&self) {
        if !self.lock().waiting.is_empty() {
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
            tokio::select! {
                () = self.acked.notified() => {}
                () = stop.cancelled() => break,
            }
            let begun = Instant::now();
            let (rest, may_hurry) = match self.write_waiting(pool).await {
                Ok(()) => {
                    backoff.reset();
                    ((begun.elapsed() * REST_TIMES).clamp(REST_MIN, REST_MAX), true)
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
        match tokio::time::timeout(LAST_FLUSH_TIMEOUT, self.write_waiting(pool)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last acks could not be written; they are replayed"),
            Err(_) => tracing::warn!(
                timeout_ms = LAST_FLUSH_TIMEOUT.as_millis(),
                "the last acks took too long; they are replayed"
            ),
        }
    }

    /// Writes what waits now; what comes meanwhile is for the next time.
    async fn write_waiting(&self, pool: &Pool) -> Result<(), StoreError> {
        loop {
            let (epoch, acks, more) = self.next_write();
            let Some(epoch) = epoch.filter(|_| !acks.is_empty()) else { return Ok(()) };
            match advance(pool, &epoch, &acks).await {
                // If the epoch is another one, nothing was written, and nothing may be.
                Ok((present, flushed)) => {
                    self.lock().writing.clear();
                    if self.epochs.learn(&present) {
                        self.epochs.note_flushed(&present, flushed);
                    }
                }
                // Refused values are refused again: they are dropped, and the notifications replayed.
                Err(error @ StoreError::Refused(_)) => {
                    tracing::error!(%error, acks = acks.len(), "acks were refused and dropped");
                    self.lock().writing.clear();
                }
                Err(error) => return Err(error),
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// As much as one statement takes, beginning with what was not written the last time; and whether that leaves some.
    fn next_write(&self) -> (Option<Epoch>, Vec<(CursorKey, Seq)>, bool) {
        let mut pending = self.lock();
        let Pending { epoch, waiting, writing } = &mut *pending;
        while writing.len() < ACKS_PER_WRITE_MAX
            && let Some((key, seq)) = waiting.pop_first()
        {
            let newest = writing.entry(key).or_insert(seq);
            *newest = seq.max(*newest);
        }
        let acks = writing.iter().map(|(key, seq)| (key.clone(), *seq)).collect();
        (epoch.clone(), acks, !waiting.is_empty())
    }

    /// The newest ack of a key that the database may not have yet, and the epoch of all of them.
    fn not_written(&self, keys: &[CursorKey]) -> (Option<Epoch>, Vec<Option<Seq>>) {
        let pending = self.lock();
        let newest = |key| pending.waiting.get(key).max(pending.writing.get(key)).copied();
        (pending.epoch.clone(), keys.iter().map(newest).collect())
    }

    /// Locks the acks, and drops those of an epoch that is over.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = self.epochs.current()
            && pending.epoch.as_ref() != Some(&epoch)
        {
            *pending = Pending { epoch: Some(epoch), ..Pending::default() };
        }
        pending
    }
}

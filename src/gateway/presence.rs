//! Presence: which devices have a session. Sessions report their begin and end here, and a writer
//! stores them in batches, so that any replica can read them. Advisory: delivery never depends on it.
//!
//! Nothing is written for an idle session. A row counts only while the lease of its gateway is
//! valid, and the writer renews that one row. If the lease has ended, because the database was away
//! or lost its rows, the gateway begins again with a new id and writes all sessions.

mod book;
mod online;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::book::{Book, Change};
use self::online::Online;
use crate::model::feed::Feed;
use crate::model::protocol::DeviceState;
use crate::retry::{self, Retry};
use crate::store::StoreError;
use crate::store::cursors::CursorKey;
use crate::store::pool::Pool;
use crate::store::presence::{self as rows, Stated};
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the renewals of the lease, which is three times as long.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// Rest between two rounds of writes. The changes of that time are written together.
const REST: Duration = Duration::from_millis(100);
/// Most devices of one statement. It holds a connection that others use for few milliseconds.
const ROWS_PER_WRITE: usize = 500;
/// Longest pause between two statements.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Longest time to end the lease when the replica stops. Then it ends by itself.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The presence of all sessions of this replica.
#[derive(Debug)]
pub struct Presence {
    /// Locked for few map accesses, never across an await.
    book: Mutex<Book>,
    changed: Notify,
    online: Online,
    broadcast_feed: Feed,
    metrics: Arc<Metrics>,
}

impl Presence {
    /// Makes the presence of a replica. The caller runs [`Presence::write`]. `reads` is the pool of
    /// [`Presence::online`]. Everyone reads the broadcast feed, so it has no presence.
    pub fn new(reads: Pool, broadcast_feed: Feed, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            book: Mutex::default(),
            changed: Notify::new(),
            online: Online::new(reads),
            broadcast_feed,
            metrics,
        })
    }

    /// Whether a feed has presence.
    pub fn has(&self, feed: &Feed) -> bool {
        *feed != self.broadcast_feed
    }

    /// A session of these keys began.
    pub fn arrive(&self, keys: impl Iterator<Item = CursorKey>) {
        let now = OffsetDateTime::now_utc();
        let keys = keys.filter(|key| self.has(&key.feed));
        self.lock().arrive(keys, now);
        self.changed.notify_one();
    }

    /// A session of these keys ended. If it `returns`, as the next poll of a client does, its devices
    /// stay online for a moment.
    pub fn leave(&self, keys: impl Iterator<Item = CursorKey>, returns: bool) {
        let keys = keys.filter(|key| self.has(&key.feed));
        self.lock().leave(keys, returns, Instant::now());
        self.changed.notify_one();
    }

    /// A device reported its state. Its session may be on another replica.
    pub fn report(&self, keys: impl Iterator<Item = CursorKey>, state: DeviceState) {
        let at = OffsetDateTime::now_utc();
        let keys = keys.filter(|key| self.has(&key.feed));
        self.lock().report(keys, Stated { state, at });
        self.changed.notify_one();
    }

    /// Returns for each feed whether it has a session anywhere. `None` for the broadcast feed, and if
    /// the database does not answer at once.
    pub async fn online(&self, feeds: &[Feed]) -> Vec<Option<bool>> {
        let known: Vec<_> = feeds
            .iter()
            .filter(|feed| self.has(feed))
            .cloned()
            .collect();
        let mut online = self.online.of(&known).await.into_iter();
        let of = |feed| self.has(feed).then(|| online.next().flatten()).flatten();
        feeds.iter().map(of).collect()
    }

    /// Writes changes and renews the lease until `stop`. If the database is away, presence is late and
    /// nothing else is.
    pub async fn write(&self, pool: &Pool, stop: CancellationToken) {
        let mut retry = Retry::new(Retried::Presence, &self.metrics);
        let mut lease = Lease::default();
        while !stop.is_cancelled() {
            let rest = match self.round(pool, &mut lease, &stop).await {
                Ok(()) => {
                    retry.reset();
                    REST
                }
                Err(error) => retry.failed("presence could not be written", &error),
            };
            if !retry::sleep(rest, &stop).await {
                break;
            }
            let returned_by = self.lock().returned_by();
            let wake_at = returned_by.map_or(lease.renew_at, |by| by.min(lease.renew_at));
            tokio::select! {
                () = self.changed.notified() => {}
                () = retry::until(Some(wake_at)) => {}
                () = stop.cancelled() => {}
            }
        }
        // Sessions end before their lease, so no row must be removed.
        let Some(gateway) = lease.gateway else { return };
        let ending = tokio::time::timeout(LAST_WRITE_TIMEOUT, rows::end_lease(pool, gateway));
        if !matches!(ending.await, Ok(Ok(()))) {
            tracing::info!(
                "the lease of this gateway ends by itself: its devices are online until then"
            );
        }
    }

    /// Renews the lease if it is due, and writes the changes that wait.
    async fn round(
        &self,
        pool: &Pool,
        lease: &mut Lease,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        while !stop.is_cancelled() {
            let gateway = self.renewed(pool, lease).await?;
            let begun = Instant::now();
            let Some(change) = self.lock().next(ROWS_PER_WRITE, begun) else {
                return Ok(());
            };
            let rows = change.len() as u64;
            match write(pool, gateway, &change).await {
                Ok(true) => _ = self.metrics.presence.rows_written.inc_by(rows),
                Ok(false) => lease.gateway = None,
                Err(error) => {
                    // Without its bad value, the next statement succeeds.
                    if !matches!(error, StoreError::Refused(_)) {
                        self.lock().put_back(change);
                    }
                    return Err(error);
                }
            }
            retry::pause_after(begun, PAUSE_MAX).await;
        }
        Ok(())
    }

    /// Returns the id of this gateway, which has a lease. Begins again if the lease has ended, or if
    /// the changes are too many to remember.
    async fn renewed(&self, pool: &Pool, lease: &mut Lease) -> Result<Uuid, StoreError> {
        if self.lock().is_overfull() {
            if let Some(gateway) = lease.gateway {
                rows::end_lease(pool, gateway).await?;
            }
            lease.gateway = None;
        }
        if let Some(gateway) = lease.gateway {
            if Instant::now() < lease.renew_at || rows::renew_lease(pool, gateway).await? {
                lease.extend();
                return Ok(gateway);
            }
            tracing::info!(
                "the lease of this gateway has ended; all of its sessions are written again"
            );
        }
        let gateway = Uuid::now_v7();
        rows::begin_lease(pool, gateway).await?;
        lease.gateway = Some(gateway);
        lease.renew_at = Instant::now() + RENEW_INTERVAL;
        self.lock().begin_again();
        Ok(gateway)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lease of this gateway, as the writer knows it.
#[derive(Debug)]
struct Lease {
    gateway: Option<Uuid>,
    renew_at: Instant,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            gateway: None,
            renew_at: Instant::now(),
        }
    }
}

impl Lease {
    /// Plans the next renewal, if the last one is done.
    fn extend(&mut self) {
        if Instant::now() >= self.renew_at {
            self.renew_at = Instant::now() + RENEW_INTERVAL;
        }
    }
}

/// Writes one batch. Returns false if the lease has ended, so that nothing counts.
async fn write(pool: &Pool, gateway: Uuid, change: &Change) -> Result<bool, StoreError> {
    if !change.gone.is_empty() {
        rows::remove(pool, gateway, &change.gone).await?;
    }
    if !change.states.is_empty() {
        rows::state(pool, &change.states).await?;
    }
    match change.present.is_empty() {
        true => Ok(true),
        false => rows::put(pool, gateway, &change.present).await,
    }
}

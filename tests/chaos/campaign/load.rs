//! The controls of the load: a fault may pause it, or make more of its events bad.

use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Publishers, each with its own connection.
pub const PUBLISHERS: usize = 4;
/// The usual share of bad events.
pub const BAD_PERMILLE: u16 = 3;
/// Bound of a pause.
const PAUSE_BOUND: Duration = Duration::from_secs(60);
/// RabbitMQ confirms a publish much sooner if it accepts publishes.
const BLOCKED_AFTER: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);

/// Shared by the publishers and the faults.
pub struct Load {
    is_open: watch::Sender<bool>,
    bad_permille: AtomicU16,
    good: AtomicU64,
    bad: AtomicU64,
    /// Unconfirmed events of each publisher.
    unconfirmed: [AtomicUsize; PUBLISHERS],
    /// When each publisher sent the oldest event that waits for its confirm.
    oldest: Mutex<[Option<Instant>; PUBLISHERS]>,
}

impl Load {
    pub fn new() -> Self {
        Self {
            is_open: watch::Sender::new(true),
            bad_permille: AtomicU16::new(BAD_PERMILLE),
            good: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            unconfirmed: Default::default(),
            oldest: Mutex::default(),
        }
    }

    /// Whether new events are published.
    pub fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// The share of bad events now.
    pub fn bad_permille(&self) -> u16 {
        self.bad_permille.load(Ordering::Relaxed)
    }

    pub fn set_bad(&self, permille: u16) {
        self.bad_permille.store(permille, Ordering::Relaxed);
    }

    /// Counts a new event.
    pub fn count(&self, is_good: bool) {
        let counter = if is_good { &self.good } else { &self.bad };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of events that must be stored.
    pub fn good(&self) -> u64 {
        self.good.load(Ordering::Relaxed)
    }

    /// The unconfirmed events of a publisher, and when it sent the oldest of them.
    pub fn set_unconfirmed(&self, publisher: usize, events: usize, oldest: Option<Instant>) {
        self.unconfirmed[publisher].store(events, Ordering::Relaxed);
        self.oldest()[publisher] = oldest;
    }

    /// The number of publishers that have waited so long for a confirm that RabbitMQ accepts no publish of them.
    pub fn blocked(&self) -> u64 {
        let oldest = self.oldest();
        let sent = oldest.iter().flatten();
        sent.filter(|sent| sent.elapsed() >= BLOCKED_AFTER).count() as u64
    }

    fn oldest(&self) -> MutexGuard<'_, [Option<Instant>; PUBLISHERS]> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses the load until all events are confirmed, and are stored or dead letters. Returns
    /// whether that happens in time.
    pub async fn pause_until_stored(&self, pool: &PgPool) -> bool {
        self.is_open.send_replace(false);
        let deadline = Instant::now() + PAUSE_BOUND;
        while Instant::now() < deadline {
            let confirmed = self
                .unconfirmed
                .iter()
                .all(|events| events.load(Ordering::Relaxed) == 0);
            if confirmed && self.is_stored(pool).await.unwrap_or(false) {
                return true;
            }
            sleep(POLL).await;
        }
        false
    }

    pub fn resume(&self) {
        self.is_open.send_replace(true);
    }

    async fn is_stored(&self, pool: &PgPool) -> Result<bool, sqlx::Error> {
        let query = "select (select coalesce(sum(last_seq), 0)::bigint from feeds), (select count(*) from dead_letters)";
        let (stored, dead): (i64, i64) = sqlx::query_as(query).fetch_one(pool).await?;
        let bad = self.bad.load(Ordering::Relaxed);
        Ok(stored.unsigned_abs() >= self.good() && dead.unsigned_abs() >= bad)
    }
}

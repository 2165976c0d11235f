//! What was published and what arrived: every receipt is checked at once, so that no figure comes from a run that lost,
//! repeated or reordered something.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::Notify;

use crate::wire::Received;

/// How long nothing may arrive before a run counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many receipts pass between two looks at them.
const LOOK_EVERY: usize = 1_000;
/// How late a thread may wake without anything being wrong.
const SLEEP_PRECISION: Duration = Duration::from_millis(1);
/// Most faults told in full.
const FAULTS_MAX: usize = 5;

/// One run: events by their index, in the order published.
#[derive(Debug)]
pub struct Ledger {
    began: Instant,
    /// Nanoseconds after `began`; 0 for not yet.
    published_at: Vec<AtomicU64>,
    /// How many receipts are expected in all: an event to a broadcast feed has many.
    expected: usize,
    receipts: AtomicUsize,
    /// How many are waited for now.
    awaited: AtomicUsize,
    last_receipt_at: AtomicU64,
    /// Nanoseconds from publish to receipt, by event: of its last receipt.
    latencies: Vec<AtomicU64>,
    faults: Mutex<Vec<String>>,
    changed: Notify,
}

impl Ledger {
    /// Books of `events` events, of which `receipts` are expected.
    pub fn new(events: usize, receipts: usize) -> Self {
        let zeros = || (0..events).map(|_| AtomicU64::new(0)).collect();
        Self {
            began: Instant::now(),
            published_at: zeros(),
            expected: receipts,
            receipts: AtomicUsize::new(0),
            awaited: AtomicUsize::new(receipts),
            last_receipt_at: AtomicU64::new(0),
            latencies: zeros(),
            faults: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Notes that an event is being published now.
    pub fn publish(&self, index: usize) {
        self.published_at[index].store(self.now(), Ordering::Relaxed);
    }

    /// The same in an open loop, where it was due at a moment: being late counts, but for a sleep's imprecision.
    pub fn publish_due(&self, index: usize, due: Instant) {
        let late = due.elapsed();
        let uncounted = if late < SLEEP_PRECISION {
            Duration::ZERO
        } else {
            late
        };
        let at = self
            .now()
            .saturating_sub(uncounted.as_nanos() as u64)
            .max(1);
        self.published_at[index].store(at, Ordering::Relaxed);
    }

    /// Notes that a client has received an event.
    pub fn receive(&self, index: usize) {
        let now = self.now();
        let Some(published_at) = self.published_at.get(index) else {
            return self.fault(format!("event {index} was never published"));
        };
        let latency = now.saturating_sub(published_at.load(Ordering::Relaxed));
        self.latencies[index].store(latency, Ordering::Relaxed);
        self.last_receipt_at.fetch_max(now, Ordering::Relaxed);
        // Looked at now and then is enough, but for the end.
        let receipts = self.receipts.fetch_add(1, Ordering::Relaxed) + 1;
        if receipts >= self.awaited.load(Ordering::Relaxed) || receipts.is_multiple_of(LOOK_EVERY) {
            self.changed.notify_one();
        }
    }

    /// Notes that something is wrong: a gap, a repetition, a broken connection.
    pub fn fault(&self, what: String) {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
        self.changed.notify_one();
    }

    /// How many receipts there are.
    pub fn receipts(&self) -> usize {
        self.receipts.load(Ordering::Relaxed)
    }

    /// Waits until everything has arrived.
    pub async fn complete(&self) -> anyhow::Result<()> {
        self.reach(self.expected).await
    }

    /// Waits until there are so many receipts.
    pub async fn reach(&self, receipts: usize) -> anyhow::Result<()> {
        self.awaited.store(receipts, Ordering::Relaxed);
        while self.receipts() < receipts {
            let changed = tokio::time::timeout(PATIENCE, self.changed.notified()).await;
            self.no_fault()?;
            if changed.is_err() && self.receipts() < receipts {
                bail!(
                    "{} of {receipts} arrived, and few or none more within {PATIENCE:?}",
                    self.receipts()
                );
            }
        }
        self.no_fault()
    }

    /// Fails where something was wrong.
    pub fn no_fault(&self) -> anyhow::Result<()> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match faults.len() {
            0 if self.receipts() <= self.expected => Ok(()),
            0 => bail!("{} receipts of {} events", self.receipts(), self.expected),
            count => bail!(
                "{count} faults, such as: {}",
                faults[..count.min(FAULTS_MAX)].join("; ")
            ),
        }
    }

    /// From the first publish to the last receipt.
    pub fn elapsed(&self) -> Duration {
        let first = self
            .published_at
            .iter()
            .map(|at| at.load(Ordering::Relaxed))
            .filter(|at| *at > 0)
            .min();
        Duration::from_nanos(
            self.last_receipt_at
                .load(Ordering::Relaxed)
                .saturating_sub(first.unwrap_or(0)),
        )
    }

    /// From this moment to the last receipt.
    pub fn elapsed_since(&self, begun: Instant) -> Duration {
        let begun = begun.saturating_duration_since(self.began);
        Duration::from_nanos(self.last_receipt_at.load(Ordering::Relaxed)).saturating_sub(begun)
    }

    /// Milliseconds from publish to receipt, by quantile, of the events that `which` chooses.
    pub fn latencies_ms(&self, which: impl Fn(usize) -> bool) -> BTreeMap<&'static str, f64> {
        let chosen = self
            .latencies
            .iter()
            .enumerate()
            .filter(|(index, _)| which(*index));
        let mut sorted: Vec<u64> = chosen
            .map(|(_, nanoseconds)| nanoseconds.load(Ordering::Relaxed))
            .collect();
        sorted.sort_unstable();
        let at = |quantile: f64| {
            let place = (quantile * sorted.len() as f64) as usize;
            sorted
                .get(place.min(sorted.len().saturating_sub(1)))
                .map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1e6)
        };
        [("p50", at(0.5)), ("p99", at(0.99)), ("p99.9", at(0.999))].into()
    }

    fn now(&self) -> u64 {
        // 584 years fit.
        self.began.elapsed().as_nanos() as u64
    }
}

/// One client's view of its feed and of everyone's: everything once, in the order published.
#[derive(Debug, Default)]
pub struct Order {
    own: Place,
    broadcast: Place,
}

#[derive(Debug, Default)]
struct Place {
    index: Option<usize>,
    seq: Option<i64>,
}

impl Order {
    /// Checks the next event.
    pub fn check(&mut self, received: &Received) -> Result<(), String> {
        let &Received {
            index,
            seq,
            broadcast,
            ..
        } = received;
        let place = if broadcast {
            &mut self.broadcast
        } else {
            &mut self.own
        };
        if let Some(last) = place.index.filter(|last| *last >= index) {
            return Err(format!("event {index} came after event {last}"));
        }
        if let (Some(last), Some(seq)) = (place.seq, seq)
            && seq != last + 1
        {
            return Err(format!("seq {seq} came after seq {last}"));
        }
        *place = Place {
            index: Some(index),
            seq,
        };
        Ok(())
    }
}

//! The published events and their receipts. Each receipt is checked at once, so that no figure
//! comes from a run that lost, repeated or reordered an event.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::Notify;

use crate::wire::Received;

/// If no receipt arrives for so long, the run is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// Receipts between two checks of the total.
const LOOK_EVERY: usize = 1_000;
/// A thread may wake so late without a fault.
const SLEEP_PRECISION: Duration = Duration::from_millis(1);
/// Faults that are described in full.
const FAULTS_MAX: usize = 5;

/// One run: events by their index, in publishing order.
#[derive(Debug)]
pub struct Ledger {
    began: Instant,
    /// Nanoseconds after `began`; 0 if not yet published.
    published_at: Vec<AtomicU64>,
    /// Expected receipts. An event to a broadcast feed has many.
    expected: usize,
    receipts: AtomicUsize,
    /// Receipts to wait for now.
    awaited: AtomicUsize,
    last_receipt_at: AtomicU64,
    /// Nanoseconds from publish to the last receipt, by event.
    latencies: Vec<AtomicU64>,
    faults: Mutex<Vec<String>>,
    changed: Notify,
}

impl Ledger {
    /// A ledger of `events` events, of which `receipts` are expected.
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

    /// Records that an event is published now.
    pub fn publish(&self, index: usize) {
        self.published_at[index].store(self.now(), Ordering::Relaxed);
    }

    /// The same in an open loop with a due time. Lateness counts, except for the imprecision of a
    /// sleep.
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

    /// Records that a client has received an event.
    pub fn receive(&self, index: usize) {
        let now = self.now();
        let Some(published_at) = self.published_at.get(index) else {
            return self.fault(format!("event {index} was never published"));
        };
        let latency = now.saturating_sub(published_at.load(Ordering::Relaxed));
        self.latencies[index].store(latency, Ordering::Relaxed);
        self.last_receipt_at.fetch_max(now, Ordering::Relaxed);
        // An occasional check is enough, except at the end.
        let receipts = self.receipts.fetch_add(1, Ordering::Relaxed) + 1;
        if receipts >= self.awaited.load(Ordering::Relaxed) || receipts.is_multiple_of(LOOK_EVERY) {
            self.changed.notify_one();
        }
    }

    /// Records a fault: a gap, a repetition, a broken connection.
    pub fn fault(&self, what: String) {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
        self.changed.notify_one();
    }

    /// The number of receipts.
    pub fn receipts(&self) -> usize {
        self.receipts.load(Ordering::Relaxed)
    }

    /// Waits for all receipts.
    pub async fn complete(&self) -> anyhow::Result<()> {
        self.reach(self.expected).await
    }

    /// Waits for this many receipts.
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

    /// Fails if there was a fault.
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

    /// Milliseconds from publish to receipt, by quantile, of the events that `which` selects.
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

/// One client's view of its own feed and the broadcast feed: everything once, in publishing order.
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

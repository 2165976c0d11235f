//! The health of one replica, for `/readyz`. Each part reports its own state.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::telemetry::labels::HealthPart;

/// The health of one replica.
#[derive(Debug)]
pub struct Health {
    /// Up if every partition is consumed or has a standby consumer here.
    pub ingest: Part,
    /// Up if hints are received.
    pub fanout: Part,
    /// Connections of ingest whose last hints RabbitMQ did not confirm, as in an alarm.
    hints_refused: AtomicUsize,
    /// Held for a short write only.
    waiting_appends: Mutex<WaitingAppends>,
    /// The replica drains.
    pub draining: AtomicBool,
    /// The gateway has no key for tokens, so it can admit nobody.
    pub keyless: AtomicBool,
}

impl Health {
    /// All parts are down. `ingest` and `fanout` are their numbers of tasks; 0 if the role does not have the part.
    pub fn new(ingest: usize, fanout: usize) -> Self {
        Self {
            ingest: Part::of(ingest),
            fanout: Part::of(fanout),
            hints_refused: AtomicUsize::new(0),
            waiting_appends: Mutex::default(),
            draining: AtomicBool::new(false),
            keyless: AtomicBool::new(false),
        }
    }

    /// Each part that the role has, and whether it is up.
    pub fn parts(&self) -> impl Iterator<Item = (HealthPart, bool)> {
        let parts = [
            (HealthPart::Ingest, &self.ingest),
            (HealthPart::Fanout, &self.fanout),
        ];
        parts
            .into_iter()
            .filter(|(_, part)| part.tasks > 0)
            .map(|(name, part)| (name, part.is_up()))
    }

    /// Whether RabbitMQ works for every part.
    pub fn has_broker(&self) -> bool {
        self.ingest.is_up()
            && self.fanout.is_up()
            && self.hints_refused.load(Ordering::Relaxed) == 0
    }

    /// The error of the last failed append, while a batch waits for the next attempt.
    pub fn append_error(&self) -> Option<String> {
        let waiting = self.waiting_appends();
        (waiting.batches > 0).then(|| waiting.last_error.clone())
    }

    fn waiting_appends(&self) -> MutexGuard<'_, WaitingAppends> {
        self.waiting_appends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Batches whose append failed, of all partitions.
#[derive(Debug, Default)]
struct WaitingAppends {
    batches: usize,
    last_error: String,
}

/// One part. It is up if all its tasks are.
#[derive(Debug)]
pub struct Part {
    tasks: usize,
    down: AtomicUsize,
}

impl Part {
    fn of(tasks: usize) -> Self {
        Self {
            tasks,
            down: AtomicUsize::new(tasks),
        }
    }

    /// One task is up until the returned value is dropped.
    pub fn up(&self) -> Up<'_> {
        self.down.fetch_sub(1, Ordering::Relaxed);
        Up(self)
    }

    fn is_up(&self) -> bool {
        self.down.load(Ordering::Relaxed) == 0
    }
}

/// A task that is up.
#[derive(Debug)]
pub struct Up<'a>(&'a Part);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.down.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection of ingest whose hints RabbitMQ did not confirm, until it is dropped.
#[derive(Debug)]
pub struct HintsRefused(Arc<Health>);

impl HintsRefused {
    /// Starts counting.
    pub fn begin(health: Arc<Health>) -> Self {
        health.hints_refused.fetch_add(1, Ordering::Relaxed);
        Self(health)
    }
}

impl Drop for HintsRefused {
    fn drop(&mut self) {
        self.0.hints_refused.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A batch whose append failed, until it is dropped.
#[derive(Debug)]
pub struct WaitingAppend(Arc<Health>);

impl WaitingAppend {
    /// Starts counting.
    pub fn begin(health: Arc<Health>) -> Self {
        health.waiting_appends().batches += 1;
        Self(health)
    }

    /// Notes the error of an attempt. The caller bounds its length.
    pub fn failed(&self, error: String) {
        self.0.waiting_appends().last_error = error;
    }
}

impl Drop for WaitingAppend {
    fn drop(&mut self) {
        self.0.waiting_appends().batches -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_works_when_no_partition_is_refused() {
        let health = Arc::new(Health::new(0, 0));
        let [one, other] = [(); 2].map(|()| HintsRefused::begin(health.clone()));
        assert!(!health.has_broker());
        drop(one);
        assert!(!health.has_broker(), "the other is still refused");
        drop(other);
        assert!(health.has_broker());
    }

    #[test]
    fn the_error_of_an_append_is_kept_while_a_batch_waits() {
        let health = Arc::new(Health::new(1, 0));
        assert_eq!(health.append_error(), None);
        let [one, other] = [(); 2].map(|()| WaitingAppend::begin(health.clone()));
        one.failed("the disk is full".into());
        drop(one);
        assert_eq!(health.append_error().as_deref(), Some("the disk is full"));
        other.failed("a lock timeout".into());
        assert_eq!(health.append_error().as_deref(), Some("a lock timeout"));
        drop(other);
        assert_eq!(health.append_error(), None);
    }
}

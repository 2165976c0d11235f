//! The health of one replica, for `/readyz`. Each part reports its own state.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::telemetry::labels::HealthPart;

/// The state of RabbitMQ, as a replica sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerState {
    /// It works.
    Ok,
    /// It blocks publishers because of an alarm.
    Blocked,
    /// A part has no connection to it, or it does not confirm hints and heartbeats.
    Away,
}

impl BrokerState {
    /// The word in `/readyz`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Blocked => "blocked",
            Self::Away => "away",
        }
    }
}

/// The health of one replica.
#[derive(Debug)]
pub struct Health {
    /// Up if every partition is consumed or has a standby consumer here.
    pub ingest: Part,
    /// Up if hints are received.
    pub fanout: Part,
    /// Whether RabbitMQ confirms hints and heartbeats. Held for a short write only.
    publishing: Mutex<BrokerState>,
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
            publishing: Mutex::new(BrokerState::Ok),
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

    /// Records whether RabbitMQ confirmed the last hints or the last heartbeat.
    pub fn fanout_published(&self, state: BrokerState) {
        *self
            .publishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Whether RabbitMQ works for every part.
    pub fn broker(&self) -> BrokerState {
        if !(self.ingest.is_up() && self.fanout.is_up()) {
            return BrokerState::Away;
        }
        *self
            .publishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
    fn the_broker_works_again_when_it_confirms_a_message() {
        let health = Health::new(1, 0);
        assert_eq!(health.broker(), BrokerState::Away, "ingest is down");
        let _up = health.ingest.up();
        for state in [BrokerState::Blocked, BrokerState::Away, BrokerState::Ok] {
            health.fanout_published(state);
            assert_eq!(health.broker(), state);
        }
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

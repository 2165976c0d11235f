//! What works right now, told by the parts that know, for `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The state of one replica.
#[derive(Debug)]
pub struct Health {
    /// Every partition is consumed, or stood by for.
    pub ingest: Part,
    /// Hints are received.
    pub fanout: Part,
    /// How many partitions RabbitMQ took no hints of the last time, as in an alarm.
    hints_refused: AtomicUsize,
    /// The replica is leaving.
    pub draining: AtomicBool,
}

impl Health {
    /// Of a replica that has this many tasks of each part.
    pub fn new(ingest: usize, fanout: usize) -> Self {
        let (hints_refused, draining) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self {
            ingest: Part::of(ingest),
            fanout: Part::of(fanout),
            hints_refused,
            draining,
        }
    }

    /// Whether each part that this replica has works.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let parts = [("ingest", &self.ingest), ("fanout", &self.fanout)];
        parts
            .into_iter()
            .filter(|(_, part)| part.tasks > 0)
            .map(|(name, part)| (name, part.is_up()))
    }

    /// Whether RabbitMQ is there for every part that this replica has.
    pub fn has_broker(&self) -> bool {
        self.ingest.is_up()
            && self.fanout.is_up()
            && self.hints_refused.load(Ordering::Relaxed) == 0
    }
}

/// Whether one part works, all its tasks together.
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

    /// One of its tasks works until the answer is dropped, by whatever way the task ends.
    pub fn up(&self) -> Up<'_> {
        self.down.fetch_sub(1, Ordering::Relaxed);
        Up(self)
    }

    fn is_up(&self) -> bool {
        self.down.load(Ordering::Relaxed) == 0
    }
}

/// A task that works.
#[derive(Debug)]
pub struct Up<'a>(&'a Part);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.down.fetch_add(1, Ordering::Relaxed);
    }
}

/// A partition whose hints RabbitMQ did not take, until it is dropped, by whatever way the partition's incarnation ends.
#[derive(Debug)]
pub struct HintsRefused(Arc<Health>);

impl HintsRefused {
    /// From now on.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_there_when_the_last_partition_is_no_longer_refused() {
        let health = Arc::new(Health::new(0, 0));
        let [one, other] = [(); 2].map(|()| HintsRefused::begin(health.clone()));
        assert!(!health.has_broker());
        drop(one);
        assert!(!health.has_broker(), "the other is still refused");
        drop(other);
        assert!(health.has_broker());
    }
}

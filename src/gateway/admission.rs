//! Admission: bounds the number of sessions of this replica, in all and of one subscriber. No I/O.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::feed::Subscriber;
use crate::telemetry::instruments::Counted;
use crate::telemetry::metrics::Metrics;

/// The counts of sessions and their bounds.
#[derive(Debug)]
pub struct Admission {
    sessions_max: usize,
    per_subscriber_max: usize,
    metrics: Arc<Metrics>,
    /// Locked for one count up or down.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_subscriber: HashMap<Subscriber, usize>,
}

/// The reason why no session is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The replica has too many sessions.
    #[error("this replica has too many sessions: try again later")]
    Replica,
    /// The subscriber has too many sessions.
    #[error("this subscriber has too many sessions: close one first")]
    Subscriber,
}

impl Admission {
    /// Makes an admission with these bounds.
    pub fn new(sessions_max: usize, per_subscriber_max: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            sessions_max,
            per_subscriber_max,
            metrics,
            counts: Mutex::default(),
        })
    }

    /// Admits a session. Its place is free again when the returned value is dropped.
    pub fn admit(self: &Arc<Self>, subscriber: &Subscriber) -> Result<Admitted, Full> {
        let mut counts = self.lock();
        if counts.all >= self.sessions_max {
            return Err(Full::Replica);
        }
        let own = counts.by_subscriber.entry(subscriber.clone()).or_default();
        if *own >= self.per_subscriber_max {
            return Err(Full::Subscriber);
        }
        *own += 1;
        counts.all += 1;
        let counted = Counted::in_gauge(&self.metrics.sessions);
        Ok(Admitted {
            admission: self.clone(),
            subscriber: subscriber.clone(),
            _counted: counted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of an admitted session.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    subscriber: Subscriber,
    _counted: Counted,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.all -= 1;
        if let Some(own) = counts.by_subscriber.get_mut(&self.subscriber) {
            *own -= 1;
            if *own == 0 {
                counts.by_subscriber.remove(&self.subscriber);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn subscribers() -> (Subscriber, Subscriber) {
        let subscriber = |name| Subscriber::parse(name).unwrap();
        (subscriber("a"), subscriber("b"))
    }

    #[test]
    fn the_replica_and_each_subscriber_have_a_bound_of_sessions() {
        let admission = Admission::new(3, 2, Arc::default());
        let (a, b) = subscribers();
        let first = admission.admit(&a).unwrap();
        let _second = admission.admit(&a).unwrap();
        assert_eq!(admission.admit(&a).unwrap_err(), Full::Subscriber);
        let _third = admission.admit(&b).unwrap();
        assert_eq!(admission.admit(&b).unwrap_err(), Full::Replica);
        drop(first);
        assert!(admission.admit(&a).is_ok(), "a place is free again");
    }

    #[test]
    fn a_refused_session_takes_no_place() {
        let metrics = Arc::<Metrics>::default();
        let admission = Admission::new(2, 1, metrics.clone());
        let (a, b) = subscribers();
        let first = admission.admit(&a).unwrap();
        for _ in 0..5 {
            assert_eq!(admission.admit(&a).unwrap_err(), Full::Subscriber);
        }
        let second = admission.admit(&b).unwrap();
        assert_eq!(metrics.sessions.get(), 2);
        drop((first, second));
        assert_eq!(metrics.sessions.get(), 0);
        assert!(admission.lock().by_subscriber.is_empty());
    }

    #[test]
    fn a_full_replica_keeps_no_count_of_refused_subscribers() {
        let admission = Admission::new(1, 1, Arc::default());
        let (a, b) = subscribers();
        let _first = admission.admit(&a).unwrap();
        assert_eq!(admission.admit(&b).unwrap_err(), Full::Replica);
        assert_eq!(admission.lock().by_subscriber.len(), 1);
    }
}

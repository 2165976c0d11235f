//! How many sessions there may be on this replica: in all, and of one subscriber.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::feed::Subscriber;
use crate::telemetry::metrics::{Counted, Metrics};

/// Counts sessions.
#[derive(Debug)]
pub struct Admission {
    sessions_max: usize,
    per_subscriber_max: usize,
    metrics: Arc<Metrics>,
    /// Held for a count up or down.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of: HashMap<Subscriber, usize>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// For anyone.
    #[error("this replica has as many sessions as it may; try again")]
    Replica,
    /// For this subscriber.
    #[error("this subscriber has as many sessions as it may; close one first")]
    Subscriber,
}

impl Admission {
    /// With these bounds.
    pub fn new(sessions_max: usize, per_subscriber_max: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            sessions_max,
            per_subscriber_max,
            metrics,
            counts: Mutex::default(),
        })
    }

    /// Takes a place, until the answer is dropped.
    pub fn admit(self: &Arc<Self>, subscriber: &Subscriber) -> Result<Admitted, Full> {
        let mut counts = self.lock();
        if counts.all >= self.sessions_max {
            return Err(Full::Replica);
        }
        let of = counts.of.entry(subscriber.clone()).or_default();
        if *of >= self.per_subscriber_max {
            return Err(Full::Subscriber);
        }
        *of += 1;
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

/// A session's place.
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
        if let Some(of) = counts.of.get_mut(&self.subscriber) {
            *of -= 1;
            if *of == 0 {
                counts.of.remove(&self.subscriber);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let admission = Admission::new(3, 2, Arc::default());
        let (a, b) = (
            Subscriber::parse("a").unwrap(),
            Subscriber::parse("b").unwrap(),
        );
        let first = admission.admit(&a).unwrap();
        let _second = admission.admit(&a).unwrap();
        assert_eq!(admission.admit(&a).unwrap_err(), Full::Subscriber);
        let _third = admission.admit(&b).unwrap();
        assert_eq!(admission.admit(&b).unwrap_err(), Full::Replica);
        drop(first);
        assert!(admission.admit(&a).is_ok());
    }
}

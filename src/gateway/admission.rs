//! Admission: bounds the number of sessions of this replica: in all, of one subscriber, and of one
//! client address. No I/O.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::http::client_address::AddressBlock;
use crate::model::feed::Subscriber;
use crate::telemetry::instruments::Counted;
use crate::telemetry::metrics::Metrics;

/// The counts of sessions and their bounds.
#[derive(Debug)]
pub struct Admission {
    sessions_max: usize,
    per_subscriber_max: usize,
    per_address_max: usize,
    metrics: Arc<Metrics>,
    /// Locked for one count up or down.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_subscriber: HashMap<Subscriber, usize>,
    by_address: HashMap<AddressBlock, usize>,
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
    /// The address has too many sessions.
    #[error("this address has too many sessions: close one first")]
    Address,
}

impl Admission {
    /// Makes an admission with these bounds.
    pub fn new(
        sessions_max: usize,
        per_subscriber_max: usize,
        per_address_max: usize,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            sessions_max,
            per_subscriber_max,
            per_address_max,
            metrics,
            counts: Mutex::default(),
        })
    }

    /// Admits a session. Its place is free again when the returned value is dropped.
    pub fn admit(
        self: &Arc<Self>,
        subscriber: &Subscriber,
        block: Option<AddressBlock>,
    ) -> Result<Admitted, Full> {
        let mut counts = self.lock();
        let of_block = |block| counts.by_address.get(&block).copied().unwrap_or_default();
        let of_subscriber = counts.by_subscriber.get(subscriber).copied();
        if counts.all >= self.sessions_max {
            return Err(Full::Replica);
        }
        if of_subscriber.unwrap_or_default() >= self.per_subscriber_max {
            return Err(Full::Subscriber);
        }
        if block.map_or(0, of_block) >= self.per_address_max {
            return Err(Full::Address);
        }
        counts.all += 1;
        *counts.by_subscriber.entry(subscriber.clone()).or_default() += 1;
        if let Some(block) = block {
            *counts.by_address.entry(block).or_default() += 1;
        }
        let counted = Counted::in_gauge(&self.metrics.sessions);
        Ok(Admitted {
            admission: self.clone(),
            subscriber: subscriber.clone(),
            block,
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
    block: Option<AddressBlock>,
    _counted: Counted,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.all -= 1;
        remove_one(&mut counts.by_subscriber, &self.subscriber);
        if let Some(block) = &self.block {
            remove_one(&mut counts.by_address, block);
        }
    }
}

fn remove_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(own) = counts.get_mut(key) {
        *own -= 1;
        if *own == 0 {
            counts.remove(key);
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
        let admission = Admission::new(3, 2, 9, Arc::default());
        let (a, b) = subscribers();
        let first = admission.admit(&a, None).unwrap();
        let _second = admission.admit(&a, None).unwrap();
        assert_eq!(admission.admit(&a, None).unwrap_err(), Full::Subscriber);
        let _third = admission.admit(&b, None).unwrap();
        assert_eq!(admission.admit(&b, None).unwrap_err(), Full::Replica);
        drop(first);
        assert!(admission.admit(&a, None).is_ok(), "a place is free again");
    }

    #[test]
    fn a_refused_session_takes_no_place() {
        let metrics = Arc::<Metrics>::default();
        let admission = Admission::new(2, 1, 9, metrics.clone());
        let (a, b) = subscribers();
        let first = admission.admit(&a, None).unwrap();
        for _ in 0..5 {
            assert_eq!(admission.admit(&a, None).unwrap_err(), Full::Subscriber);
        }
        let second = admission.admit(&b, None).unwrap();
        assert_eq!(metrics.sessions.get(), 2);
        drop((first, second));
        assert_eq!(metrics.sessions.get(), 0);
        assert!(admission.lock().by_subscriber.is_empty());
    }

    #[test]
    fn a_full_replica_keeps_no_count_of_refused_subscribers() {
        let admission = Admission::new(1, 1, 9, Arc::default());
        let (a, b) = subscribers();
        let _first = admission.admit(&a, None).unwrap();
        assert_eq!(admission.admit(&b, None).unwrap_err(), Full::Replica);
        assert_eq!(admission.lock().by_subscriber.len(), 1);
    }

    #[test]
    fn an_address_has_a_bound_of_sessions_and_internal_ones_have_none() {
        let admission = Admission::new(9, 9, 2, Arc::default());
        let (a, b) = subscribers();
        let block = |address: &str| AddressBlock::of_public(address.parse().unwrap());
        let (one, other) = (block("192.0.2.1"), block("192.0.2.2"));
        let first = admission.admit(&a, one).unwrap();
        let _second = admission.admit(&b, one).unwrap();
        assert_eq!(admission.admit(&a, one).unwrap_err(), Full::Address);
        let third = admission.admit(&a, other).unwrap();
        let internal: Vec<_> = (0..3)
            .map(|_| admission.admit(&a, block("10.0.0.1")).unwrap())
            .collect();
        drop(first);
        let fourth = admission.admit(&a, one).unwrap();
        assert_eq!(admission.lock().by_address.len(), 2);
        drop((third, fourth, internal, _second));
        assert!(admission.lock().by_address.is_empty());
    }
}

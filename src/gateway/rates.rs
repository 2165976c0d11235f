//! Rates: bounds how often one client address and one subscriber may send a request, and how often
//! the tokens of an address may fail. No I/O.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::ClientLimits;
use crate::http::client_address::AddressBlock;
use crate::model::feed::Subscriber;

/// Seconds of its rate that a client may save up, so that many clients of one address can return
/// together.
const SAVED_SECONDS: u32 = 10;
/// Most keys in each of the two halves of a table. A table of addresses then takes at most 3 MiB.
/// If more addresses arrive, the oldest are forgotten, so that new clients are never refused for
/// lack of room.
const KEYS_PER_HALF_MAX: usize = 16_384;
/// Shortest wait of a refused client. A random part of the same length is added, so that clients do
/// not return together.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Shortest time between two log lines about bounds, because an attacker causes them.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The bound that a request is beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooFast {
    /// `SHOPBELL_MAX_REQUESTS_PER_ADDRESS`.
    #[error("too many requests from this address: slow down")]
    Address,
    /// `SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS`.
    #[error("too many refused tokens from this address: slow down")]
    FailedTokens,
    /// `SHOPBELL_MAX_REQUESTS_PER_SUBSCRIBER`.
    #[error("too many requests of this subscriber: slow down")]
    Subscriber,
}

impl TooFast {
    /// The time after which the client should come back. One request more is allowed then.
    pub fn retry_after() -> Duration {
        RETRY_AFTER.mul_f64(1.0 + fastrand::f64())
    }

    /// The setting that sets the bound.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Address => "SHOPBELL_MAX_REQUESTS_PER_ADDRESS",
            Self::FailedTokens => "SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS",
            Self::Subscriber => "SHOPBELL_MAX_REQUESTS_PER_SUBSCRIBER",
        }
    }
}

/// The rates of clients of one replica.
#[derive(Debug)]
pub struct Rates {
    requests: Option<Table<AddressBlock>>,
    failed_tokens: Option<Table<AddressBlock>>,
    subscribers: Option<Table<Subscriber>>,
    logged: Mutex<Option<Instant>>,
}

impl Rates {
    /// Bounds the rates of these limits.
    pub fn new(limits: &ClientLimits, now: Instant) -> Self {
        Self {
            requests: Table::new(limits.requests_per_address, now),
            failed_tokens: Table::new(limits.failed_tokens_per_address, now),
            subscribers: Table::new(limits.requests_per_subscriber, now),
            logged: Mutex::default(),
        }
    }

    /// Counts a request of an address, before its token is checked.
    pub fn request(&self, block: Option<AddressBlock>, now: Instant) -> Result<(), TooFast> {
        let Some(block) = block else { return Ok(()) };
        if let Some(failed) = &self.failed_tokens
            && !failed.has_room(&block, now)
        {
            return Err(TooFast::FailedTokens);
        }
        match &self.requests {
            Some(requests) if !requests.take(block, now) => Err(TooFast::Address),
            _ => Ok(()),
        }
    }

    /// Counts a token of an address that was refused.
    pub fn failed_token(&self, block: Option<AddressBlock>, now: Instant) -> Result<(), TooFast> {
        match (&self.failed_tokens, block) {
            (Some(failed), Some(block)) if !failed.take(block, now) => Err(TooFast::FailedTokens),
            _ => Ok(()),
        }
    }

    /// Counts a request with a valid token of a subscriber.
    pub fn subscriber(&self, subscriber: &Subscriber, now: Instant) -> Result<(), TooFast> {
        match &self.subscribers {
            Some(table) if !table.take(subscriber.clone(), now) => Err(TooFast::Subscriber),
            _ => Ok(()),
        }
    }

    /// Whether a bound may be logged again.
    pub fn may_log(&self, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL);
        if !is_recent {
            *logged = Some(now);
        }
        !is_recent
    }
}

/// The time at which each key has its full reserve again. A key that is not in the table has it.
#[derive(Debug)]
struct Table<K> {
    /// The time that one request takes from the reserve.
    each: Duration,
    halves: Mutex<Halves<K>>,
}

/// Keys move to the newer half when they are used. The older half is dropped as a whole, so no
/// operation searches for old keys.
#[derive(Debug)]
struct Halves<K> {
    newer: HashMap<K, Instant>,
    older: HashMap<K, Instant>,
    /// When the newer half began.
    begun: Instant,
}

impl<K: Eq + Hash> Table<K> {
    fn new(per_second: Option<u32>, now: Instant) -> Option<Self> {
        let halves = Halves {
            newer: HashMap::new(),
            older: HashMap::new(),
            begun: now,
        };
        Some(Self {
            each: Duration::from_secs(1).checked_div(per_second?)?,
            halves: Mutex::new(halves),
        })
    }

    /// Takes one request from the reserve of a key, if it has one.
    fn take(&self, key: K, now: Instant) -> bool {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = halves.full_at(&key, now);
        let is_allowed = self.is_allowed(full_at, now);
        if is_allowed {
            halves.set(key, full_at + self.each, now);
        }
        is_allowed
    }

    /// Whether the reserve of a key has one request more.
    fn has_room(&self, key: &K, now: Instant) -> bool {
        let halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_allowed(halves.full_at(key, now), now)
    }

    fn is_allowed(&self, full_at: Instant, now: Instant) -> bool {
        full_at + self.each <= now + reserve()
    }
}

impl<K: Eq + Hash> Halves<K> {
    fn full_at(&self, key: &K, now: Instant) -> Instant {
        let known = self.newer.get(key).or_else(|| self.older.get(key));
        known.copied().unwrap_or(now).max(now)
    }

    fn set(&mut self, key: K, full_at: Instant, now: Instant) {
        // After this time, each key of the older half has its full reserve.
        let is_old = now.saturating_duration_since(self.begun) >= reserve();
        let is_full = self.newer.len() >= KEYS_PER_HALF_MAX && !self.newer.contains_key(&key);
        if is_old || is_full {
            self.older = std::mem::take(&mut self.newer);
            self.begun = now;
        }
        self.newer.insert(key, full_at);
    }
}

fn reserve() -> Duration {
    Duration::from_secs(SAVED_SECONDS.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn block(number: u32) -> Option<AddressBlock> {
        Some(AddressBlock::V4(number.into()))
    }

    fn rates(now: Instant) -> Rates {
        let limits = ClientLimits {
            sessions_per_address: None,
            requests_per_address: Some(5),
            requests_per_subscriber: Some(3),
            failed_tokens_per_address: Some(1),
        };
        Rates::new(&limits, now)
    }

    fn count<T>(mut request: impl FnMut() -> Result<T, TooFast>) -> usize {
        (0..1_000).take_while(|_| request().is_ok()).count()
    }

    #[test]
    fn an_address_may_send_its_rate_and_ten_seconds_of_it_at_once() {
        let now = Instant::now();
        let rates = rates(now);
        assert_eq!(count(|| rates.request(block(1), now)), 50);
        assert_eq!(rates.request(block(1), now), Err(TooFast::Address));
        assert_eq!(rates.request(block(2), now), Ok(()), "another address");
        assert_eq!(count(|| rates.request(block(1), now + 2 * SECOND)), 10);
        assert_eq!(count(|| rates.request(block(1), now + 900 * SECOND)), 50);
    }

    #[test]
    fn a_subscriber_may_send_its_rate_from_any_address() {
        let now = Instant::now();
        let rates = rates(now);
        let [one, other] = ["a", "b"].map(|name| Subscriber::parse(name).unwrap());
        assert_eq!(count(|| rates.subscriber(&one, now)), 30);
        assert_eq!(rates.subscriber(&one, now), Err(TooFast::Subscriber));
        assert_eq!(rates.subscriber(&other, now), Ok(()));
    }

    #[test]
    fn failed_tokens_stop_the_address_and_good_ones_cost_nothing() {
        let now = Instant::now();
        let rates = rates(now);
        let fail = || {
            rates.request(block(1), now)?;
            rates.failed_token(block(1), now)
        };
        assert_eq!(count(fail), 10);
        let beyond = rates.failed_token(block(1), now);
        assert_eq!(beyond, Err(TooFast::FailedTokens), "of a session");
        assert_eq!(rates.request(block(1), now), Err(TooFast::FailedTokens));
        assert_eq!(rates.request(block(2), now), Ok(()));
        // One more attempt after a second.
        let later = now + SECOND;
        assert_eq!(rates.request(block(1), later), Ok(()));
        assert_eq!(rates.request(block(1), later), Ok(()), "no token failed");
        assert_eq!(rates.failed_token(block(1), later), Ok(()));
        assert_eq!(rates.request(block(1), later), Err(TooFast::FailedTokens));
    }

    #[test]
    fn an_internal_address_and_a_missing_limit_have_no_bound() {
        let now = Instant::now();
        let with_limits = rates(now);
        assert_eq!(count(|| with_limits.request(None, now)), 1_000);
        let without = Rates::new(&ClientLimits::default(), now);
        assert_eq!(count(|| without.request(block(1), now)), 1_000);
        let subscriber = Subscriber::parse("a").unwrap();
        assert_eq!(count(|| without.subscriber(&subscriber, now)), 1_000);
    }

    #[test]
    fn memory_is_bounded_for_any_number_of_addresses() {
        let now = Instant::now();
        let rates = rates(now);
        let table = rates.requests.as_ref().unwrap();
        let keys = || {
            let halves = table.halves.lock().unwrap();
            (halves.newer.len(), halves.older.len())
        };
        count(|| rates.request(block(0), now));
        for number in 1..KEYS_PER_HALF_MAX as u32 {
            assert_eq!(rates.request(block(number), now), Ok(()));
        }
        assert_eq!(keys(), (KEYS_PER_HALF_MAX, 0));
        assert_eq!(rates.request(block(0), now), Err(TooFast::Address));
        for number in 0..10 * KEYS_PER_HALF_MAX as u32 {
            rates.request(block(1_000_000 + number), now).unwrap();
            let (newer, older) = keys();
            assert!(newer <= KEYS_PER_HALF_MAX && older <= KEYS_PER_HALF_MAX);
        }
        assert_eq!(rates.request(block(0), now), Ok(()), "it was forgotten");
    }

    #[test]
    fn keys_with_a_full_reserve_are_dropped_over_time() {
        let now = Instant::now();
        let rates = rates(now);
        for number in 0..1_000 {
            rates.request(block(number), now).unwrap();
        }
        for periods in 1..=2 {
            let later = now + periods * reserve();
            rates.request(block(2_000), later).unwrap();
        }
        let table = rates.requests.as_ref().unwrap();
        let halves = table.halves.lock().unwrap();
        assert_eq!(halves.newer.len() + halves.older.len(), 2);
    }

    #[test]
    fn bounds_are_logged_at_intervals() {
        let now = Instant::now();
        let rates = rates(now);
        let logged = [0, 1, 9, 10, 11, 20].map(|seconds| rates.may_log(now + seconds * SECOND));
        assert_eq!(logged, [true, false, false, true, false, true]);
    }

    #[test]
    fn a_key_in_the_older_half_keeps_its_count() {
        let now = Instant::now();
        let rates = rates(now);
        let late = now + reserve() - SECOND;
        rates.request(block(1), now).unwrap();
        assert_eq!(count(|| rates.request(block(1), late)), 50);
        // The halves change, because the newer one is as old as the reserve.
        rates.request(block(2), now + reserve()).unwrap();
        assert_eq!(count(|| rates.request(block(1), now + reserve())), 5);
    }
}

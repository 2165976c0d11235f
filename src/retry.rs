//! The retry policy of the service: the waits between attempts, and the count and the log of
//! failures.
//!
//! A loop passes the error of each failed attempt in, and gets the time until the next attempt. The
//! loop decides what to attempt, and when to give up.
//!
//! A loop with a fixed interval, such as the sweep, needs no [`Retry`]: its interval is the wait.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Bound of the first wait.
const FIRST: Duration = Duration::from_millis(100);
/// Bound of all waits. A part that works again is found within this time.
const LONGEST: Duration = Duration::from_secs(5);

/// Exponential back-off with equal jitter.
///
/// The wait after failure n is random between half of its bound and its bound. The bound is
/// `min(100 ms * 2^(n - 1), 5 s)`. The random half keeps replicas from repeating at the same time.
#[derive(Debug)]
pub struct Backoff {
    bound: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { bound: FIRST }
    }
}

impl Backoff {
    /// Returns the next wait, and doubles the bound of the one after it.
    pub fn next_wait(&mut self) -> Duration {
        let wait = jittered(self.bound, fastrand::f64());
        self.bound = (self.bound * 2).min(LONGEST);
        wait
    }

    /// Begins again with the first wait, because an attempt succeeded.
    pub fn reset(&mut self) {
        self.bound = FIRST;
    }
}

/// Equal jitter: half of the bound, and of the other half the share `random`, from 0 to 1.
fn jittered(bound: Duration, random: f64) -> Duration {
    bound.mul_f64(0.5 + random / 2.0)
}

/// Counts and logs the failed attempts of one kind of work, and computes the waits between them.
#[derive(Debug)]
pub struct Retry<'a> {
    work: Retried,
    metrics: &'a Metrics,
    backoff: Backoff,
}

impl<'a> Retry<'a> {
    /// Begins with the first wait.
    pub fn new(work: Retried, metrics: &'a Metrics) -> Self {
        Self {
            work,
            metrics,
            backoff: Backoff::default(),
        }
    }

    /// Counts and logs a failed attempt, and returns the time until the next one. `failure` states
    /// the failed action, such as "a batch could not be stored".
    #[must_use]
    pub fn failed(&mut self, failure: &'static str, error: &dyn Display) -> Duration {
        let wait = self.backoff.next_wait();
        self.metrics.retries.inc(self.work);
        tracing::warn!(
            work = self.work.as_str(),
            %error,
            wait_ms = wait.as_millis(),
            "{failure}; the next attempt follows after a wait"
        );
        wait
    }

    /// Begins again with the first wait, because an attempt succeeded.
    pub fn reset(&mut self) {
        self.backoff.reset();
    }
}

/// Waits until this time. Without one, it never returns.
pub async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits until the next attempt. Returns false if `stop` is cancelled first.
pub async fn sleep(wait: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(wait))
        .await
        .is_some()
}

/// Pauses after a statement that began at `begun`, for as long as it took and `pause_max` at most. So
/// half of the time belongs to the others.
pub async fn pause_after(begun: Instant, pause_max: Duration) {
    tokio::time::sleep(begun.elapsed().min(pause_max)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_between_half_of_its_bound_and_its_bound() {
        for bound in [FIRST, LONGEST] {
            assert_eq!(jittered(bound, 0.0), bound / 2);
            assert_eq!(jittered(bound, 0.5), bound * 3 / 4);
            assert_eq!(jittered(bound, 1.0), bound);
        }
    }

    #[test]
    fn bounds_double_up_to_the_longest_wait() {
        let mut backoff = Backoff::default();
        for bound_ms in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let bound = Duration::from_millis(bound_ms);
            assert_eq!(backoff.bound, bound);
            let wait = backoff.next_wait();
            assert!((bound / 2..=bound).contains(&wait), "{wait:?} of {bound:?}");
        }
    }

    #[test]
    fn a_success_begins_again_with_the_first_wait() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            let _ = backoff.next_wait();
        }
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }

    #[tokio::test]
    async fn a_stop_ends_a_wait() {
        let stop = CancellationToken::new();
        assert!(sleep(Duration::ZERO, &stop).await);
        stop.cancel();
        assert!(!sleep(Duration::MAX, &stop).await);
    }
}

//! How long to wait before trying again: the one retry policy of the service, for broker and database alike.

use std::time::Duration;

/// The first wait is up to this.
const FIRST: Duration = Duration::from_millis(100);
/// No wait is longer: a service that came back is found again within this.
const LONGEST: Duration = Duration::from_secs(5);

/// Doubling waits with full jitter, so that replicas do not return in step.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { ceiling: FIRST }
    }
}

impl Backoff {
    /// The next wait: at least half of a ceiling that doubles each time.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(LONGEST);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked: begin anew.
    pub fn reset(&mut self) {
        self.ceiling = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        assert!(backoff.next_wait() <= FIRST);
        assert!((0..20).all(|_| backoff.next_wait() <= LONGEST));
        assert!(backoff.next_wait() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }
}

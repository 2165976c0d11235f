//! Lateness: a client has acknowledged nothing for so long that its merchant may miss an order.
//! Pure. It measures only; `task/outputs.rs` closes slow clients.

use std::time::{Duration, Instant};

/// Time without an ack after which a client is late. A page in the background of a browser
/// acknowledges within it.
const LATE_AFTER: Duration = Duration::from_secs(60);

/// The time since which one session waits for acks.
#[derive(Debug, Default)]
pub struct Lateness {
    /// The last ack, or the first notification after all were acknowledged.
    since: Option<Instant>,
}

impl Lateness {
    /// The client acknowledged a notification.
    pub fn on_ack(&mut self) {
        self.since = None;
    }

    /// Whether the client is late, if so many notifications wait for its ack.
    pub fn is_late(&mut self, outstanding: usize, now: Instant) -> bool {
        if outstanding == 0 {
            self.since = None;
            return false;
        }
        now.saturating_duration_since(*self.since.get_or_insert(now)) >= LATE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_late_a_minute_after_its_last_ack() {
        let (start, mut lateness) = (Instant::now(), Lateness::default());
        let mut is_late = |acks: bool, outstanding, seconds| {
            if acks {
                lateness.on_ack();
            }
            lateness.is_late(outstanding, start + Duration::from_secs(seconds))
        };
        assert!(!is_late(false, 0, 0));
        assert!(!is_late(false, 1, 100), "it was sent just now");
        assert!(!is_late(false, 2, 159));
        assert!(is_late(false, 2, 160));
        assert!(
            !is_late(true, 1, 161),
            "it acknowledges, although it is behind"
        );
        assert!(!is_late(false, 1, 220));
        assert!(is_late(false, 1, 221));
        assert!(!is_late(true, 0, 222));
        assert!(!is_late(false, 1, 900), "all was acknowledged meanwhile");
    }
}

//! The number of frames that a client may send: a bucket that time and sent notifications fill.

use std::time::Instant;

/// Frames that a client may send each second, beside those for notifications. A client sends few such
/// frames: `ping`, `auth`, and requests for counts.
const FRAMES_PER_SECOND: u32 = 50;
/// Frames that a client may save up, beside those for a full window.
pub(super) const FRAMES_SAVED_MAX: u32 = 1_000;
/// Frames that a client may send for each notification: an ack and a mark.
const FRAMES_PER_NOTIFICATION: u32 = 2;
/// Frames that an `auth` counts as, because the check of a signature costs more than any other frame.
/// A session without a reserve may send one `auth` a second.
pub(super) const FRAMES_PER_AUTH: u32 = 50;

#[derive(Debug)]
pub(super) struct FrameAllowance {
    allowed: u32,
    saved_max: u32,
    /// The time up to which [`FRAMES_PER_SECOND`] was added.
    filled_at: Instant,
}

impl FrameAllowance {
    /// Begins full, for a window of so many notifications.
    pub(super) fn new(window: usize, now: Instant) -> Self {
        let for_a_window = u32::try_from(window)
            .unwrap_or(u32::MAX)
            .saturating_mul(FRAMES_PER_NOTIFICATION);
        let saved_max = FRAMES_SAVED_MAX.saturating_add(for_a_window);
        Self {
            allowed: saved_max,
            saved_max,
            filled_at: now,
        }
    }

    pub(super) fn add_notification(&mut self) {
        self.add(FRAMES_PER_NOTIFICATION);
    }

    /// Takes so many frames, if there are as many.
    pub(super) fn take(&mut self, frames: u32, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.filled_at).as_secs();
        if seconds > 0 {
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.add(FRAMES_PER_SECOND.saturating_mul(seconds));
            self.filled_at = now;
        }
        match self.allowed.checked_sub(frames) {
            Some(left) => self.allowed = left,
            None => return false,
        }
        true
    }

    fn add(&mut self, frames: u32) {
        self.allowed = self.allowed.saturating_add(frames).min(self.saved_max);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn take_all(allowance: &mut FrameAllowance, now: Instant) -> u32 {
        (0..).take_while(|_| allowance.take(1, now)).count() as u32
    }

    #[test]
    fn time_and_notifications_fill_the_allowance_up_to_its_bound() {
        let (start, window) = (Instant::now(), 10);
        let mut allowance = FrameAllowance::new(window, start);
        let full = FRAMES_SAVED_MAX + FRAMES_PER_NOTIFICATION * window as u32;
        assert_eq!(take_all(&mut allowance, start), full);
        allowance.add_notification();
        assert_eq!(take_all(&mut allowance, start), FRAMES_PER_NOTIFICATION);
        let later = start + Duration::from_secs(2);
        assert_eq!(take_all(&mut allowance, later), 2 * FRAMES_PER_SECOND);
        assert!(!allowance.take(FRAMES_PER_AUTH, later));
        let much_later = later + Duration::from_secs(1_000_000_000_000);
        assert_eq!(take_all(&mut allowance, much_later), full);
    }
    #[test]
    fn an_auth_frame_counts_as_many_and_a_session_may_send_one_a_second() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut allowance = FrameAllowance::new(0, start);
        let mut auths_at = |now| {
            (0..)
                .take_while(|_| allowance.take(FRAMES_PER_AUTH, now))
                .count()
        };
        assert_eq!(auths_at(start), 20);
        assert_eq!(auths_at(start + second), 1);
        assert_eq!(auths_at(start + 5 * second), 4);
    }
}

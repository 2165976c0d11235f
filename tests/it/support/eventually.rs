//! Waits for a condition, with a bound and the last value seen.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Short, so that no story waits for the clock.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls `poll` until it returns a value. After `bound`, it panics with the last error.
pub async fn eventually<T>(
    what: &str,
    bound: Duration,
    mut poll: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + bound;
    let mut seen = "nothing: the first poll did not end".to_owned();
    loop {
        match timeout_at(deadline, poll()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(instead)) if Instant::now() < deadline => {
                seen = instead;
                sleep(POLL_INTERVAL).await;
            }
            Ok(Err(instead)) => panic!("{what}: not within {bound:?}; seen last: {instead}"),
            Err(_) => panic!("{what}: not within {bound:?}; seen last: {seen}"),
        }
    }
}

/// The result of a poll that needs only a yes. If it does not hold, `seen` describes it.
pub fn holds(condition: bool, seen: impl Display) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(seen.to_string())
    }
}

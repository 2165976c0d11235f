//! Waiting for a condition, with a bound and the last thing seen.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// How often a condition is looked at: often enough that no story waits for the clock.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until `look` finds something, and gives it; panics after `bound` with what it saw last.
pub async fn eventually<T>(
    what: &str,
    bound: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + bound;
    let mut seen = "nothing: the first look did not end".to_owned();
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(instead)) if Instant::now() < deadline => {
                seen = instead;
                sleep(LOOK_EVERY).await;
            }
            Ok(Err(instead)) => panic!("{what}: not within {bound:?}; seen last: {instead}"),
            Err(_) => panic!("{what}: not within {bound:?}; seen last: {seen}"),
        }
    }
}

/// A look at a condition that needs no more than a yes, with what was seen where it does not hold.
pub fn holds(condition: bool, seen: impl Display) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(seen.to_string())
    }
}

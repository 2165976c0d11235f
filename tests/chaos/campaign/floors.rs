//! The least of everything that must happen in a run. With less, the checker gives no verdict.

use serde_json::{Value, json};

use super::setting::Setting;

/// More is published only if the machine is fast enough.
const RATE_MAX: f64 = 200.0;

/// A shorter run may have no rare event. The checker knows the same bound.
const SHORT_SECONDS: u64 = 30;

/// The floors of a run of so many seconds of faults, at so many events a second. They are a small part of the usual
/// amounts, because other work may slow the machine.
pub fn of(seconds: u64, rate: f64, without_faults: bool, setting: Setting) -> Value {
    let published = (rate.min(RATE_MAX) * seconds as f64 / 10.0) as u64;
    let part = |divisor: u64| (published / divisor).max(1);
    json!({
        "attempted": part(1),
        "confirmed": part(1),
        "stored": (published * 9 / 10).max(1),
        "delivered": part(2),
        "acknowledged": part(2),
        // Three of 1,000 events.
        "dead_lettered": if seconds < SHORT_SECONDS { 0 } else { part(2_000) },
        "marked": (seconds / 2).max(1),
        "skipped": seconds / 30 * 3,
        // Most devices connect, and those that flap reconnect every few seconds.
        "sessions": 200 + seconds,
        "reopened": seconds.max(1),
        "replayed": (seconds / 2).max(1),
        "acks": part(4),
        "acks_judged_percent": setting.acks_judged_percent_min(),
        "readiness_judged": seconds / 30 * 5,
        "faults": if without_faults { 0 } else { (seconds / setting.seconds_per_fault()).max(1) },
    })
}

//! The least of everything that must happen in a run. With less, the checker gives no verdict.

use serde_json::{Value, json};

use super::setting::Setting;

/// More is published only if the machine is fast enough.
const RATE_MAX: f64 = 200.0;
/// A fault, its end and the pause after it take less than this, except for the slowest ones.
const SECONDS_PER_FAULT: u64 = 30;

/// A shorter run may have no rare event. The checker knows the same bound.
const SHORT_SECONDS: u64 = 30;

/// The floors of a run of so many seconds of faults, at so many events a second. They are a small part of the usual
/// amounts, because other work may slow the machine.
pub fn of(seconds: u64, rate: f64, without_faults: bool, setting: Setting) -> Value {
    let published = (rate.min(RATE_MAX) * seconds as f64 / 10.0).max(1.0) as u64;
    json!({
        "attempted": published,
        "confirmed": published,
        "stored": published * 9 / 10,
        "delivered": published / 2,
        "acknowledged": published / 2,
        // Three of 1,000 events.
        "dead_lettered": if seconds < SHORT_SECONDS { 0 } else { (published / 2_000).max(1) },
        "marked": (seconds / 2).max(1),
        "skipped": seconds / 30 * 10,
        // Most devices connect, and those that flap reconnect every few seconds.
        "sessions": 200 + seconds,
        "reopened": seconds.max(1),
        "replayed": (seconds / 2).max(1),
        "acks": published / 4,
        "acks_judged_percent": setting.acks_judged_percent_min(),
        "readiness_judged": seconds / 30 * 10,
        "faults": if without_faults { 0 } else { (seconds / SECONDS_PER_FAULT).max(1) },
    })
}

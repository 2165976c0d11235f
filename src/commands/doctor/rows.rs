//! Checks a sample of the stored rows, as `shopbell verify --quick` does.

use super::Finding;
use crate::commands::terminal;
use crate::store::verify::Verdict;

const CHECK: &str = "postgres.rows";

/// The finding about a sample of feeds.
pub(super) fn finding(verified: &anyhow::Result<Verdict>) -> Finding {
    let verdict = match verified {
        Ok(verdict) => verdict,
        Err(error) => {
            let remedy = "Run `shopbell verify`, which takes its time";
            return Finding::warning(CHECK, terminal::chain(error), remedy);
        }
    };
    let Verdict {
        feeds,
        notifications,
        problems,
        ..
    } = verdict;
    let sample = format!("a sample of {feeds} feeds with {notifications} notifications");
    if problems.is_empty() {
        return Finding::ok(CHECK, format!("{sample} has no problem"));
    }
    let names: Vec<_> = problems.keys().map(String::as_str).collect();
    let found = format!("{sample} has problems: {}", names.join(", "));
    Finding::error(
        CHECK,
        found,
        "Run `shopbell verify`, which lists all problems",
    )
}

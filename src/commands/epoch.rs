//! `shopbell epoch`: shows the epoch of the numbering, or begins a new one after a restore that the
//! service cannot detect.

use std::time::Duration;

use anyhow::Context;
use time::format_description::well_known::Rfc3339;

use super::terminal::{self, Format};
use super::within;
use crate::config::Environment;
use crate::store::epoch::{EpochState, by_hand};

/// Bound on the wait for Postgres. A renewal reads every cursor.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The reason that the next `shopbell epoch` shows.
const REASON: &str = "an operator renewed it";

/// The action.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Begin a new epoch: every session reconnects, and positions that clients kept become invalid
    #[arg(long)]
    renew: bool,
}

/// Prints the epoch, its begin and its reason.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let options = Environment::of_process().database()?;
    let reason = arguments.renew.then_some(REASON);
    let read = within(TIMEOUT, "reading the epoch", by_hand(&options, reason)).await;
    let state = read.context(
        "could not read the epoch from the database at DATABASE_URL (is it the primary, is it migrated?)",
    )?;
    let EpochState {
        epoch,
        since,
        reason,
    } = &state;
    let lines = match format {
        Format::Text => terminal::text_line(&format!(
            "{epoch} since {}: {reason}",
            since.format(&Rfc3339).unwrap_or_default()
        )),
        Format::Json => terminal::json_line(&state)?,
    };
    terminal::write_lines(&lines)
}

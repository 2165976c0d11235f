//! `shopbell epoch`: the identity of the numbering, and its renewal after a restore that nothing can recognise by itself.

use std::time::Duration;

use anyhow::Context;
use time::format_description::well_known::Rfc3339;

use super::terminal::{self, Format};
use super::within;
use crate::config::Environment;
use crate::store::epoch::{EpochState, by_hand};

/// How long Postgres may take: a renewal looks at every cursor.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Why, as the next `shopbell epoch` reports it.
const REASON: &str = "an operator renewed it";

/// What to do with it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Begin a new epoch: every session reconnects, and no place that a client kept is used any more.
    #[arg(long)]
    renew: bool,
}

/// Writes the epoch, since when it is so, and why.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let options = Environment::of_process().database()?;
    let reason = arguments.renew.then_some(REASON);
    let read = within(TIMEOUT, "reading the epoch", by_hand(&options, reason)).await;
    let state = read.context(
        "could not ask the database at DATABASE_URL (is it the primary, is it migrated?)",
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

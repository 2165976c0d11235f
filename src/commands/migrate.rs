//! `shopbell migrate`: brings the database schema up to date.

use anyhow::Context;
use serde::Serialize;

use super::terminal::{self, Format};
use crate::config::Environment;
use crate::store;

#[derive(Serialize)]
struct Migrated {
    migrations: usize,
}

/// Runs what is missing; does nothing where nothing is.
pub async fn run(format: Format) -> anyhow::Result<()> {
    let database = Environment::of_process().database()?;
    let migrations = store::migrate(&database, &store::MIGRATIONS).await.context(
        "could not migrate the database at DATABASE_URL (is it running, does it exist, may the user create?)",
    )?;
    let line = match format {
        Format::Text => terminal::text_line(&format!("migrations in place: {migrations}")),
        Format::Json => terminal::json_line(&Migrated { migrations })?,
    };
    terminal::write_lines(&line)
}

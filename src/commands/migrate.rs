//! `shopbell migrate`: runs the missing migrations of the database schema.

use anyhow::Context;
use serde::Serialize;

use super::terminal::{self, Format};
use crate::config::Environment;
use crate::store;

#[derive(Serialize)]
struct Migrated {
    migrations: usize,
}

/// Runs the missing migrations, and prints the number of all.
pub async fn run(format: Format) -> anyhow::Result<()> {
    let database = Environment::of_process().database()?;
    let migrations = store::migrate(&database, &store::MIGRATIONS).await.context(
        "could not migrate the database at DATABASE_URL (is it running, does it exist, may the user create tables?)",
    )?;
    let line = match format {
        Format::Text => terminal::text_line(&format!("migrations in place: {migrations}")),
        Format::Json => terminal::json_line(&Migrated { migrations })?,
    };
    terminal::write_lines(&line)
}

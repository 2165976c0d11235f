//! Which items of an import were counted: of use while they may come again.

use super::StoreError;
use super::pools::Pool;

/// An item that comes again so long after the last step of its import counts again.
const KEPT: &str = "30 days";
/// Most rows that are removed in one statement.
const FORGOTTEN_MAX: i64 = 1_000;

/// Removes the items of imports that have not moved for long; returns how many rows.
pub async fn forget_items(pool: &Pool) -> Result<usize, StoreError> {
    let query = sqlx::query(
        "delete from import_items k using (
             select i.feed, i.import_id, i.run, i.chunk
             from imports m
             join import_items i on i.feed = m.feed and i.import_id = m.import_id
             where m.updated_at < now() - $1::interval
             limit $2) old
         where (k.feed, k.import_id, k.run, k.chunk) = (old.feed, old.import_id, old.run, old.chunk)
         returning k.chunk",
    )
    .bind(KEPT)
    .bind(FORGOTTEN_MAX);
    Ok(super::rows(pool, query).await?.len())
}

//! Counted items of imports. They are needed while an item may arrive again.

use super::StoreError;
use super::pool::Pool;

/// An item that arrives again so long after the last event of its import counts again.
const KEPT: &str = "30 days";
/// Most rows that one statement deletes.
const DELETED_MAX: i64 = 1_000;

/// Deletes the counted items of imports without recent events; returns how many rows.
///
/// Locks the deleted rows. Reads `imports` whole, and `import_items_pkey` for each old import.
pub async fn delete_expired_items(pool: &Pool) -> Result<usize, StoreError> {
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
    .bind(DELETED_MAX);
    Ok(super::rows(pool, query).await?.len())
}

//! Settlements that wait for their notification.

use super::StoreError;
use super::pool::Pool;

/// Time for which a settlement waits. An order that comes later rings, and so does its cancellation.
const KEPT_FOR: &str = "7 days";
/// Most rows that one statement deletes, because it locks their feeds.
const ROWS_PER_STEP_MAX: i64 = 1_000;

/// Deletes one step of the settlements that waited too long; returns how many.
///
/// Locks the feeds in C order, then the rows; reads all of `early_settlements`, which is small.
pub async fn delete_old(pool: &Pool) -> Result<u64, StoreError> {
    let query = sqlx::query(
        "with old as (
             select s.subject_key, s.feed from early_settlements s where s.made_at < now() - $1::interval
             order by s.feed limit $2
         ), locked as materialized (
             select f.feed from feeds f where f.feed in (select o.feed from old o) order by f.feed collate \"C\" for update
         ), gone as (
             delete from early_settlements s using old o, locked l
             where s.subject_key = o.subject_key and l.feed = o.feed returning s.feed
         ), counted as (
             update feeds f set early_settlements = f.early_settlements - g.rows
             from (select feed, count(*) as rows from gone group by feed) g where f.feed = g.feed
         )
         select feed from gone",
    )
    .bind(KEPT_FOR)
    .bind(ROWS_PER_STEP_MAX);
    Ok(super::rows(pool, query).await?.len() as u64)
}

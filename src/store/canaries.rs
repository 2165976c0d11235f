//! Feeds of canaries: they exist for the time of a check, and leave no rows.

use super::StoreError;
use super::pool::Pool;
use crate::model::feed::Feed;

/// A canary that started before this belongs to a replica that died: longer than any interval of
/// checks.
const ABANDONED_AFTER: &str = "2 hours";

/// Records that a check starts, and deletes the rows of the last one.
///
/// Locks the rows of the canary: in `canaries`, then as `delete_canary_feed` in `migrations/`.
pub async fn begin(pool: &Pool, feed: &Feed, broadcast_feed: &Feed) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with started as (
             insert into canaries (feed, broadcast_feed) values ($1, $2)
             on conflict (feed) do update set started_at = now())
         select delete_canary_feed($1, $2)",
    )
    .bind(feed.as_str())
    .bind(broadcast_feed.as_str());
    super::execute(pool, query).await
}

/// Deletes a canary that starts no further check. Locks as [`begin`].
pub async fn end(pool: &Pool, feed: &Feed) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with ended as (delete from canaries where feed = $1 returning *)
         select delete_canary_feed(feed, broadcast_feed) from ended",
    )
    .bind(feed.as_str());
    super::execute(pool, query).await
}

/// Deletes the rows of canaries whose replica died. The row in `canaries` stays until a later call
/// finds no feed, because events may still arrive. Locks as [`begin`]; reads all of `canaries`.
pub async fn end_abandoned(pool: &Pool) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with old as (select * from canaries where started_at < now() - $1::interval),
         ended as (
             delete from canaries c using old
             where c.feed = old.feed and not exists (select from feeds f where f.feed = old.feed))
         select delete_canary_feed(feed, broadcast_feed) from old",
    )
    .bind(ABANDONED_AFTER);
    super::execute(pool, query).await
}

//! Feeds of canaries: they are there for a moment, and leave nothing behind.

use super::StoreError;
use super::pools::Pool;
use crate::model::feed::Feed;

/// What a replica that died has left behind is that old: longer than any canary's interval.
const LEFT_BEHIND: &str = "2 hours";

/// Notes that a canary flies, and forgets what is left of its last flight.
pub async fn begin(pool: &Pool, feed: &Feed, broadcast_feed: &Feed) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with noted as (
             insert into canaries (feed, broadcast_feed) values ($1, $2)
             on conflict (feed) do update set started_at = now())
         select delete_canary_feed($1, $2)",
    )
    .bind(feed.as_str())
    .bind(broadcast_feed.as_str());
    super::rows(pool, query).await.map(drop)
}

/// Forgets a canary that will not fly again.
pub async fn end(pool: &Pool, feed: &Feed) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with gone as (delete from canaries where feed = $1 returning *)
         select delete_canary_feed(feed, broadcast_feed) from gone",
    )
    .bind(feed.as_str());
    super::rows(pool, query).await.map(drop)
}

/// Forgets what replicas that died have left behind. What came after that, too: it stays noted until nothing comes any more.
pub async fn end_left_behind(pool: &Pool) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with old as (select * from canaries where started_at < now() - $1::interval),
         gone as (
             delete from canaries c using old
             where c.feed = old.feed and not exists (select from feeds f where f.feed = old.feed))
         select delete_canary_feed(feed, broadcast_feed) from old",
    )
    .bind(LEFT_BEHIND);
    super::rows(pool, query).await.map(drop)
}

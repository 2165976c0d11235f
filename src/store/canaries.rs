//! Feeds of canaries: they are there for a moment, and leave nothing behind.

use super::StoreError;
use super::pools::Pool;
use crate::feed::Feed;

/// How the names of their feeds begin. No recipient's should.
pub const PREFIX: &str = "shopbell-canary/";
/// What was left behind by a replica that died is that old.
const LEFT_BEHIND: &str = "1 hour";

/// Forgets a feed with all that is in it, and where its one subscriber stood in everyone's feed.
pub async fn forget(pool: &Pool, feed: &Feed, broadcast_feed: &Feed) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with n as (delete from notifications where feed = $1),
              c as (delete from cursors where feed in ($1, $2) and subscriber = $1),
              t as (delete from traces where feed = $1)
         delete from feeds where feed = $1",
    )
    .bind(feed.as_str())
    .bind(broadcast_feed.as_str());
    super::rows(pool, query).await.map(drop)
}

/// Forgets what replicas that died left behind, or what came after they had forgotten it. Reads all of `feeds` and `cursors`.
pub async fn forget_left_behind(pool: &Pool) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with canaries as (
             select feed from feeds where starts_with(feed, $1)
             union select subscriber from cursors where starts_with(subscriber, $1)),
         old as (
             select feed from canaries y
             where not exists (select from cursors c where c.feed = y.feed and c.updated_at > now() - $2::interval)
               and not exists (select from notifications n where n.feed = y.feed and n.created_at > now() - $2::interval)),
         n as (delete from notifications n using old where n.feed = old.feed),
         c as (delete from cursors c using old where c.subscriber = old.feed),
         t as (delete from traces t using old where t.feed = old.feed)
         delete from feeds f using old where f.feed = old.feed",
    )
    .bind(PREFIX)
    .bind(LEFT_BEHIND);
    super::rows(pool, query).await.map(drop)
}

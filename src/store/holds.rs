//! Feeds whose rows contradict each other: they are repaired if that is safe, and held otherwise.

use std::collections::BTreeSet;

use sqlx::FromRow;
use time::OffsetDateTime;

use super::StoreError;
use super::dead_letters::StoredDeadLetter;
use super::pool::Pool;
use crate::model::feed::Feed;

/// Most held feeds that one statement returns.
const FEEDS_MAX: i64 = 100;

/// An event that waits for its feed.
#[derive(Debug, FromRow)]
pub struct WaitingEvent {
    /// The event as it came.
    #[sqlx(flatten)]
    pub dead_letter: StoredDeadLetter,
    /// Time of the receipt.
    pub received_at: OffsetDateTime,
}

/// Computes the counters of a feed from its rows; returns whether they were too low.
///
/// Locks the row of the feed; see `repair_feed` in `migrations/`.
pub async fn repair(pool: &Pool, feed: &Feed) -> Result<bool, StoreError> {
    let query = sqlx::query("select repair_feed($1)").bind(feed.as_str());
    let (is_repaired,) = super::fetch_one(pool, query).await?;
    Ok(is_repaired)
}

/// Returns those of these feeds that are held. Locks nothing; uses `held_feeds_pkey`.
pub async fn among(pool: &Pool, feeds: &[&Feed]) -> Result<BTreeSet<Feed>, StoreError> {
    let feeds: Vec<_> = feeds.iter().map(|feed| feed.as_str()).collect();
    let query = sqlx::query("select feed from held_feeds where feed = any ($1)").bind(feeds);
    let rows = super::fetch(pool, query).await?;
    Ok(rows.into_iter().filter_map(feed).collect())
}

/// Returns the next held feeds after this one, in C order. Locks nothing; uses `held_feeds_pkey`.
pub async fn held_after(pool: &Pool, after: Option<&Feed>) -> Result<Vec<Feed>, StoreError> {
    let query = sqlx::query("select feed from held_feeds where feed > $1 order by feed limit $2");
    let query = query.bind(after.map_or("", Feed::as_str)).bind(FEEDS_MAX);
    let rows = super::fetch(pool, query).await?;
    Ok(rows.into_iter().filter_map(feed).collect())
}

/// Returns the first `events_max` events that wait for a feed, oldest first. Locks nothing; uses
/// `dead_letters_held`.
pub async fn waiting(
    pool: &Pool,
    feed: &Feed,
    events_max: i64,
) -> Result<Vec<WaitingEvent>, StoreError> {
    let query =
        sqlx::query("select * from dead_letters where feed = $1 order by position limit $2");
    super::fetch(pool, query.bind(feed.as_str()).bind(events_max)).await
}

/// Makes a waiting event a dead letter, with the properties of `rejected`. Locks its row; uses
/// `dead_letters_id_key`.
pub async fn dead_letter(pool: &Pool, rejected: &StoredDeadLetter) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update dead_letters set feed = null, reason = $2, detail = $3, properties = $4 where id = $1 and feed is not null",
    );
    let query = query
        .bind(&rejected.id)
        .bind(&rejected.reason)
        .bind(&rejected.detail)
        .bind(&rejected.properties);
    super::execute(pool, query).await
}

/// Ends the hold of a feed if no event waits for it; returns whether it did.
///
/// Locks the row in `held_feeds`; see `end_hold` in `migrations/`.
pub async fn end(pool: &Pool, feed: &Feed) -> Result<bool, StoreError> {
    let query = sqlx::query("select end_hold($1)").bind(feed.as_str());
    let (is_ended,) = super::fetch_one(pool, query).await?;
    Ok(is_ended)
}

fn feed((feed,): (String,)) -> Option<Feed> {
    Feed::parse(&feed).ok()
}

//! Feeds whose rows contradict each other: they are repaired if that is safe, and otherwise take no events until they are.

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::StoreError;
use super::dead_letters::Letter;
use super::pools::Pool;
use crate::model::feed::Feed;

/// Most held feeds that one statement returns.
const FEEDS_MAX: i64 = 100;

/// An event that waits for its feed.
#[derive(Debug)]
pub struct Waiting {
    /// The event as it came.
    pub letter: Letter,
    /// When it was received.
    pub received_at: OffsetDateTime,
}

/// Makes the feed's counters what its rows say; returns whether they were behind. See `repair_feed` in `migrations/`.
pub async fn repair(pool: &Pool, feed: &Feed) -> Result<bool, StoreError> {
    let rows = super::rows(
        pool,
        sqlx::query("select repair_feed($1) as repaired").bind(feed.as_str()),
    )
    .await?;
    Ok(rows
        .first()
        .map(|row| row.try_get("repaired"))
        .transpose()?
        .unwrap_or(false))
}

/// Which of these feeds are held.
pub async fn among(pool: &Pool, feeds: &[&Feed]) -> Result<BTreeSet<Feed>, StoreError> {
    let query = sqlx::query("select feed from held_feeds where feed = any ($1)");
    let feeds: Vec<_> = feeds.iter().map(|feed| feed.as_str()).collect();
    super::rows(pool, query.bind(feeds))
        .await?
        .iter()
        .filter_map(|row| feed(row).transpose())
        .collect()
}

/// The next feeds that are held, after this one in byte order; none at the end. Walks `held_feeds_pkey`.
pub async fn held_after(pool: &Pool, after: Option<&Feed>) -> Result<Vec<Feed>, StoreError> {
    let query = sqlx::query("select feed from held_feeds where feed > $1 order by feed limit $2");
    let query = query.bind(after.map_or("", Feed::as_str)).bind(FEEDS_MAX);
    super::rows(pool, query)
        .await?
        .iter()
        .filter_map(|row| feed(row).transpose())
        .collect()
}

/// The first `most` events that wait for a feed, oldest first. Walks `dead_letters_held`.
pub async fn waiting(pool: &Pool, feed: &Feed, most: i64) -> Result<Vec<Waiting>, StoreError> {
    let query =
        sqlx::query("select * from dead_letters where feed = $1 order by position limit $2");
    let rows = super::rows(pool, query.bind(feed.as_str()).bind(most)).await?;
    let waiting = |row: &PgRow| {
        Ok(Waiting {
            letter: Letter::read(row)?,
            received_at: row.try_get("received_at")?,
        })
    };
    rows.iter().map(waiting).collect()
}

/// Makes a dead letter of an event that still waits: with its own properties it is published like any other.
pub async fn bury(pool: &Pool, letter: &Letter) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update dead_letters set feed = null, reason = $2, detail = $3, properties = $4 where id = $1 and feed is not null",
    );
    let query = query
        .bind(&letter.id)
        .bind(&letter.reason)
        .bind(&letter.detail)
        .bind(&letter.properties);
    super::rows(pool, query).await.map(drop)
}

/// Ends the hold of a feed for which no event waits any more; returns whether it did. See `end_hold` in `migrations/`.
pub async fn end(pool: &Pool, feed: &Feed) -> Result<bool, StoreError> {
    let rows = super::rows(
        pool,
        sqlx::query("select end_hold($1) as ended").bind(feed.as_str()),
    )
    .await?;
    Ok(rows
        .first()
        .map(|row| row.try_get("ended"))
        .transpose()?
        .unwrap_or(false))
}

fn feed(row: &PgRow) -> Result<Option<Feed>, StoreError> {
    Ok(Feed::parse(&row.try_get::<String, _>("feed")?).ok())
}

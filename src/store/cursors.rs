//! Where subscribers stand.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::StoreError;
use super::pools::Pool;
use crate::feed::{Device, Feed, Seq, Subscriber, Version};

/// How many devices of one subscriber may have a cursor in one feed: far above what a person owns, and a bound on what
/// a client can make us store by inventing names.
const DEVICES_PER_SUBSCRIBER_MAX: i32 = 64;

/// Whose place in what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorKey {
    /// The feed that is read.
    pub feed: Feed,
    /// Who reads it.
    pub subscriber: Subscriber,
    /// With which device.
    pub device: Device,
}

/// Where a subscriber stands in a feed, and what the feed holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The highest number acknowledged with this device.
    pub acked: Seq,
    /// The newest number of the feed.
    pub last: Seq,
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The feed's newest change, or an older one where they came meanwhile.
    pub version: Version,
}

/// Reads where each key stands, in the order given, and makes the cursor of one that is new. One call for many sessions;
/// walks the primary keys of `cursors` and `feeds`.
pub async fn open(pool: &Pool, keys: &[CursorKey]) -> Result<Vec<Standing>, StoreError> {
    // The version of this statement's snapshot, which is older than what the function sees: a change may come twice, none is
    // missed.
    let query = sqlx::query(
        "select o.acked_seq, o.last_seq, o.unread, o.unhandled,
                coalesce((select f.version from feeds f where f.feed = ($1::text[])[o.ordinal]), 0) as version
         from open_cursors($1::text[], $2::text[], $3::text[], $4) o
         order by o.ordinal",
    )
    .bind(keys.iter().map(|key| key.feed.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.subscriber.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.device.as_str()).collect::<Vec<_>>())
    .bind(DEVICES_PER_SUBSCRIBER_MAX);
    let rows = super::rows(pool, query).await?;
    let standing = |row: &PgRow| {
        Ok(Standing {
            acked: super::seq(row.try_get("acked_seq")?)?,
            last: super::seq(row.try_get("last_seq")?)?,
            unread: row.try_get("unread")?,
            unhandled: row.try_get("unhandled")?,
            version: super::version(row.try_get("version")?)?,
        })
    };
    let standings = rows.iter().map(standing).collect::<Result<Vec<_>, sqlx::Error>>()?;
    match standings.len() == keys.len() {
        true => Ok(standings),
        // Another replica's new devices pushed one of these out meanwhile: the next try makes it again.
        false => Err(StoreError::Away(sqlx::Error::RowNotFound)),
    }
}

/// Moves cursors forward, never back. Each key at most once. Locks the feeds' rows in name order. The commit does not wait for the
/// disk, because a lost ack only means a replay; this holds for this transaction only, also behind a pooler.
pub async fn advance(pool: &Pool, acks: &[(CursorKey, Seq)]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "select set_config('synchronous_commit', 'off', true), advance_cursors($1::text[], $2::text[], $3::text[], $4::bigint[])",
    )
        .bind(acks.iter().map(|(key, _)| key.feed.as_str()).collect::<Vec<_>>())
        .bind(acks.iter().map(|(key, _)| key.subscriber.as_str()).collect::<Vec<_>>())
        .bind(acks.iter().map(|(key, _)| key.device.as_str()).collect::<Vec<_>>())
        .bind(acks.iter().map(|(_, seq)| seq.get()).collect::<Vec<_>>());
    super::rows(pool, query).await?;
    Ok(())
}

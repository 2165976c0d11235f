//! One feed's state, for whoever is asked where an order is. Reads no `data` but of the one notification that is named.

use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{Connection as _, Row};
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::{StoreError, close, connect};
use crate::model::feed::{Feed, Seq};

/// Most cursors that are shown, the devices that were seen last first.
const CURSORS_MAX: i64 = 100;
/// Most running imports that are told, the newest first.
const IMPORTS_MAX: i64 = 20;
/// How many of the newest notifications are told.
const NEWEST_MAX: i64 = 10;

/// What is known of a feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedState {
    /// The feed.
    pub feed: Feed,
    /// The epoch of its numbers.
    pub epoch: String,
    /// The newest notification's number; 0 where there is none.
    pub last: i64,
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The highest ack of anyone.
    pub acked: i64,
    /// Notifications that nobody has acknowledged.
    pub undelivered: i64,
    /// The oldest of them.
    pub oldest_undelivered: Option<Envelope>,
    /// Where subscribers stand.
    pub cursors: Vec<Cursor>,
    /// Imports that are running.
    pub imports: Vec<Import>,
    /// The newest notifications, newest first.
    pub newest: Vec<Envelope>,
}

/// Where a subscriber stands with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cursor {
    /// Who reads.
    pub subscriber: String,
    /// With which device; empty for all that have no name.
    pub device: String,
    /// Everything up to here is acknowledged.
    pub acked: i64,
    /// Notifications that this device has not acknowledged.
    pub undelivered: i64,
    /// When the oldest of them was stored.
    #[serde(with = "rfc3339::option")]
    pub oldest_undelivered_at: Option<OffsetDateTime>,
    /// When it moved last.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When the device was last connected or acknowledged something, to within an hour.
    #[serde(with = "rfc3339")]
    pub seen_at: OffsetDateTime,
}

/// An import that is running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Import {
    /// Its name.
    pub import_id: String,
    /// Items that were imported or failed.
    pub done: i64,
    /// Of these, the failed ones.
    pub failed: i64,
    /// As `import.started` said.
    pub total: Option<i64>,
    /// When its first event was stored.
    #[serde(with = "rfc3339")]
    pub started_at: OffsetDateTime,
    /// When its last event was stored.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// All of a notification but its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Envelope {
    /// Its number.
    pub seq: i64,
    /// The event's id.
    pub id: String,
    /// The event's source.
    pub source: String,
    /// The event's type.
    pub event: String,
    /// When it happened.
    #[serde(with = "rfc3339")]
    pub time: OffsetDateTime,
    /// When it was stored.
    #[serde(with = "rfc3339")]
    pub stored_at: OffsetDateTime,
    /// After this it is skipped.
    #[serde(with = "rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// Somebody has acknowledged it.
    pub delivered: bool,
    /// When somebody read it.
    #[serde(with = "rfc3339::option")]
    pub read_at: Option<OffsetDateTime>,
    /// When somebody handled it.
    #[serde(with = "rfc3339::option")]
    pub handled_at: Option<OffsetDateTime>,
    /// Who did.
    pub handled_by: Option<String>,
}

/// Reads a feed's state in one snapshot; `None` where nothing was ever stored for it and nobody reads it. Walks primary keys,
/// and at most IMPORTS_MAX of the feed's imports beyond those that have ended.
pub async fn feed(
    options: &PgConnectOptions,
    feed: &Feed,
) -> Result<Option<FeedState>, StoreError> {
    let mut connection = connect(options, "shopbell inspect").await?;
    let mut snapshot = connection
        .begin_with("begin isolation level repeatable read, read only")
        .await?;
    let query = "select last_seq, acked_seq, unread, unhandled from feeds where feed = $1";
    let row = sqlx::query(query)
        .bind(feed.as_str())
        .fetch_optional(&mut *snapshot)
        .await?;
    let cursors = cursors(&mut snapshot, feed).await?;
    if row.is_none() && cursors.is_empty() {
        return Ok(None);
    }
    let number = |name| {
        row.as_ref()
            .map_or(Ok(0), |row| row.try_get::<i64, _>(name))
    };
    let (last, acked) = (number("last_seq")?, number("acked_seq")?);
    let epoch = sqlx::query_scalar("select epoch from epochs")
        .fetch_optional(&mut *snapshot)
        .await?;
    let state = FeedState {
        feed: feed.clone(),
        epoch: epoch.unwrap_or_default(),
        last,
        unread: number("unread")?,
        unhandled: number("unhandled")?,
        acked,
        undelivered: last - acked,
        oldest_undelivered: envelopes(&mut snapshot, feed, acked + 1, acked + 1)
            .await?
            .pop(),
        cursors,
        imports: imports(&mut snapshot, feed).await?,
        newest: envelopes(&mut snapshot, feed, last - NEWEST_MAX + 1, last).await?,
    };
    snapshot.rollback().await?;
    close(connection).await;
    Ok(Some(state))
}

/// Reads one notification, with its data as it was published.
pub async fn notification(
    options: &PgConnectOptions,
    feed: &Feed,
    seq: Seq,
) -> Result<Option<(Envelope, Option<String>)>, StoreError> {
    let mut connection = connect(options, "shopbell inspect").await?;
    let envelope = envelopes(&mut connection, feed, seq.get(), seq.get())
        .await?
        .pop();
    let query = sqlx::query_scalar("select data from notifications where feed = $1 and seq = $2");
    let data: Option<Option<String>> = query
        .bind(feed.as_str())
        .bind(seq.get())
        .fetch_optional(&mut connection)
        .await?;
    close(connection).await;
    Ok(envelope.map(|envelope| (envelope, data.flatten())))
}

/// Newest first.
async fn envelopes(
    connection: &mut PgConnection,
    feed: &Feed,
    from: i64,
    through: i64,
) -> Result<Vec<Envelope>, sqlx::Error> {
    let query = sqlx::query(
        "select n.seq, n.event_id, n.source, n.event_type, n.time, n.created_at, n.expires_at,
                n.seq <= f.acked_seq as delivered, n.read_at, n.handled_at, n.handled_by
         from notifications n join feeds f on f.feed = n.feed
         where n.feed = $1 and n.seq between $2 and $3
         order by n.seq desc",
    );
    let envelope = |row: PgRow| {
        Ok(Envelope {
            seq: row.try_get("seq")?,
            id: row.try_get("event_id")?,
            source: row.try_get("source")?,
            event: row.try_get("event_type")?,
            time: row.try_get("time")?,
            stored_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            delivered: row.try_get("delivered")?,
            read_at: row.try_get("read_at")?,
            handled_at: row.try_get("handled_at")?,
            handled_by: row.try_get("handled_by")?,
        })
    };
    let query = query.bind(feed.as_str()).bind(from).bind(through);
    query
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(envelope)
        .collect()
}

async fn cursors(connection: &mut PgConnection, feed: &Feed) -> Result<Vec<Cursor>, sqlx::Error> {
    let query = sqlx::query(
        "select c.subscriber, c.device, c.acked_seq, greatest(f.last_seq - c.acked_seq, 0) as undelivered,
                oldest.created_at as oldest_undelivered_at, c.updated_at, greatest(c.updated_at, c.seen_at) as seen_at
         from (select * from cursors where feed = $1
               order by greatest(updated_at, seen_at) desc, subscriber, device
               limit $2) c
         left join feeds f on f.feed = $1
         left join lateral (
             select n.created_at from notifications n
             where n.feed = $1 and n.seq > c.acked_seq
             order by n.seq
             limit 1) oldest on true
         order by seen_at desc, c.subscriber, c.device",
    );
    let cursor = |row: PgRow| {
        Ok(Cursor {
            subscriber: row.try_get("subscriber")?,
            device: row.try_get("device")?,
            acked: row.try_get("acked_seq")?,
            undelivered: row
                .try_get::<Option<i64>, _>("undelivered")?
                .unwrap_or_default(),
            oldest_undelivered_at: row.try_get("oldest_undelivered_at")?,
            updated_at: row.try_get("updated_at")?,
            seen_at: row.try_get("seen_at")?,
        })
    };
    let query = query.bind(feed.as_str()).bind(CURSORS_MAX);
    query
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(cursor)
        .collect()
}

async fn imports(connection: &mut PgConnection, feed: &Feed) -> Result<Vec<Import>, sqlx::Error> {
    let query = sqlx::query(
        "select import_id, done, failed, total, started_at, updated_at from imports
         where feed = $1 and status = 'running'
         order by updated_at desc, import_id
         limit $2",
    );
    let import = |row: PgRow| {
        Ok(Import {
            import_id: row.try_get("import_id")?,
            done: row.try_get("done")?,
            failed: row.try_get("failed")?,
            total: row.try_get("total")?,
            started_at: row.try_get("started_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    };
    let query = query.bind(feed.as_str()).bind(IMPORTS_MAX);
    query
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(import)
        .collect()
}

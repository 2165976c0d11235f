//! The state of one feed, for `shopbell inspect`. Reads `data` only of the one notification that is
//! asked for.

use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, FromRow};
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::{StoreError, close, connect};
use crate::model::feed::{Feed, Seq};

/// Most cursors in a state; the devices that were seen last come first.
const CURSORS_MAX: i64 = 100;
/// Most running imports in a state; the newest come first.
const IMPORTS_MAX: i64 = 20;
/// Most notifications in a state.
const NEWEST_MAX: i64 = 10;

/// The state of a feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedState {
    /// The feed.
    pub feed: Feed,
    /// The epoch of its numbers.
    pub epoch: String,
    /// Number of the newest notification; 0 if there is none.
    pub last: i64,
    /// Retention has removed the notifications up to this number.
    pub trimmed: i64,
    /// Notifications without a read mark.
    pub unread: i64,
    /// Notifications without a handle mark.
    pub unhandled: i64,
    /// The highest ack of any subscriber.
    pub acked: i64,
    /// Notifications without an ack.
    pub undelivered: i64,
    /// The oldest undelivered notification.
    pub oldest_undelivered: Option<Envelope>,
    /// The cursors of subscribers.
    pub cursors: Vec<Cursor>,
    /// Imports that are running.
    pub imports: Vec<Import>,
    /// The newest notifications, newest first.
    pub newest: Vec<Envelope>,
}

/// The cursor of a subscriber and a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Cursor {
    /// The subscriber.
    pub subscriber: String,
    /// The device; empty for all devices without a name.
    pub device: String,
    /// Highest acked number.
    #[sqlx(rename = "acked_seq")]
    pub acked: i64,
    /// Notifications that this device has not acked.
    pub undelivered: i64,
    /// Storage time of the oldest of them.
    #[serde(with = "rfc3339::option")]
    pub oldest_undelivered_at: Option<OffsetDateTime>,
    /// Time of the last ack.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// Time of the last ack or connect, to within an hour.
    #[serde(with = "rfc3339")]
    pub seen_at: OffsetDateTime,
}

/// A running import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Import {
    /// Its name.
    pub import_id: String,
    /// Items that were imported or failed.
    pub done: i64,
    /// Of these, the failed items.
    pub failed: i64,
    /// Announced by `import.started`.
    pub total: Option<i64>,
    /// Storage time of its first event.
    #[serde(with = "rfc3339")]
    pub started_at: OffsetDateTime,
    /// Storage time of its last event.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// A notification without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Envelope {
    /// Its number.
    pub seq: i64,
    /// The event's id.
    #[sqlx(rename = "event_id")]
    pub id: String,
    /// The event's source.
    pub source: String,
    /// The event's type.
    #[sqlx(rename = "event_type")]
    pub event: String,
    /// Time of the event.
    #[serde(with = "rfc3339")]
    pub time: OffsetDateTime,
    /// Storage time.
    #[sqlx(rename = "created_at")]
    #[serde(with = "rfc3339")]
    pub stored_at: OffsetDateTime,
    /// After this time it is skipped.
    #[serde(with = "rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// A subscriber has acked it.
    pub delivered: bool,
    /// Time of the read mark.
    #[serde(with = "rfc3339::option")]
    pub read_at: Option<OffsetDateTime>,
    /// Time of the handle mark.
    #[serde(with = "rfc3339::option")]
    pub handled_at: Option<OffsetDateTime>,
    /// The subscriber that handled it.
    pub handled_by: Option<String>,
}

/// The columns of `feeds` that a state contains.
#[derive(Default, FromRow)]
struct Counters {
    last_seq: i64,
    trimmed_seq: i64,
    acked_seq: i64,
    unread: i64,
    unhandled: i64,
}

/// Reads the state of a feed in one snapshot; `None` if the feed has neither notifications nor
/// cursors.
pub async fn feed(
    options: &PgConnectOptions,
    feed: &Feed,
) -> Result<Option<FeedState>, StoreError> {
    let mut connection = connect(options, "shopbell inspect").await?;
    let mut snapshot = connection
        .begin_with("begin isolation level repeatable read, read only")
        .await?;
    let counters = counters(&mut snapshot, feed).await?;
    let cursors = cursors(&mut snapshot, feed).await?;
    if counters.is_none() && cursors.is_empty() {
        return Ok(None);
    }
    let Counters {
        last_seq: last,
        trimmed_seq: trimmed,
        acked_seq: acked,
        unread,
        unhandled,
    } = counters.unwrap_or_default();
    let epoch: Option<String> = sqlx::query_scalar("select epoch from epochs")
        .fetch_optional(&mut *snapshot)
        .await?;
    let delivered = acked.max(trimmed);
    let mut undelivered = envelopes(&mut snapshot, feed, delivered + 1, delivered + 1).await?;
    let state = FeedState {
        feed: feed.clone(),
        epoch: epoch.unwrap_or_default(),
        last,
        trimmed,
        unread,
        unhandled,
        acked,
        undelivered: last - delivered,
        oldest_undelivered: undelivered.pop(),
        cursors,
        imports: imports(&mut snapshot, feed).await?,
        newest: envelopes(&mut snapshot, feed, last - NEWEST_MAX + 1, last).await?,
    };
    snapshot.rollback().await?;
    close(connection).await;
    Ok(Some(state))
}

/// Reads one notification and its data as published. Locks nothing; uses `notifications_pkey`.
pub async fn notification(
    options: &PgConnectOptions,
    feed: &Feed,
    seq: Seq,
) -> Result<Option<(Envelope, Option<String>)>, StoreError> {
    let mut connection = connect(options, "shopbell inspect").await?;
    let mut envelopes = envelopes(&mut connection, feed, seq.get(), seq.get()).await?;
    let query = sqlx::query_scalar("select data from notifications where feed = $1 and seq = $2");
    let query = query.bind(feed.as_str()).bind(seq.get());
    let data: Option<Option<String>> = query.fetch_optional(&mut connection).await?;
    close(connection).await;
    Ok(envelopes.pop().map(|envelope| (envelope, data.flatten())))
}

/// Reads the row of a feed, with its highest ack. Of many cursors, a sample counts. Locks nothing; uses
/// `feeds_pkey` and `cursors_pkey`.
async fn counters(
    connection: &mut PgConnection,
    feed: &Feed,
) -> Result<Option<Counters>, sqlx::Error> {
    let query = sqlx::query_as(
        "select last_seq, trimmed_seq, greatest(acked_seq, (
                    select max(k.acked_seq)
                    from (select c.acked_seq from cursors c where c.feed = $1 limit 1000) k)) as acked_seq,
                unread, unhandled
         from feeds where feed = $1",
    )
    .bind(feed.as_str());
    query.fetch_optional(connection).await
}

/// Reads notifications without their data, newest first. Locks nothing; uses `notifications_pkey`,
/// `feeds_pkey` and `cursors_pkey`.
async fn envelopes(
    connection: &mut PgConnection,
    feed: &Feed,
    from: i64,
    through: i64,
) -> Result<Vec<Envelope>, sqlx::Error> {
    let query = sqlx::query_as(
        "select n.seq, n.event_id, n.source, n.event_type, n.time, n.created_at, n.expires_at,
                n.seq <= greatest(f.acked_seq, (
                    select max(k.acked_seq)
                    from (select c.acked_seq from cursors c where c.feed = $1 limit 1000) k)) as delivered,
                n.read_at, n.handled_at, n.handled_by
         from notifications n join feeds f on f.feed = n.feed
         where n.feed = $1 and n.seq between $2 and $3
         order by n.seq desc",
    );
    let query = query.bind(feed.as_str()).bind(from).bind(through);
    query.fetch_all(connection).await
}

/// Reads the cursors of a feed. Locks nothing; uses `cursors_pkey`, and `notifications_pkey` for
/// each.
async fn cursors(connection: &mut PgConnection, feed: &Feed) -> Result<Vec<Cursor>, sqlx::Error> {
    // greatest() ignores the null of a feed without a row.
    let query = sqlx::query_as(
        "select c.subscriber, c.device, c.acked_seq, greatest(f.last_seq - greatest(c.acked_seq, f.trimmed_seq), 0) as undelivered,
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
    let query = query.bind(feed.as_str()).bind(CURSORS_MAX);
    query.fetch_all(connection).await
}

/// Reads the running imports of a feed. Locks nothing; uses `imports_pkey` for all imports of the
/// feed.
async fn imports(connection: &mut PgConnection, feed: &Feed) -> Result<Vec<Import>, sqlx::Error> {
    let query = sqlx::query_as(
        "select import_id, done, failed, total, started_at, updated_at from imports
         where feed = $1 and status = 'running'
         order by updated_at desc, import_id
         limit $2",
    );
    let query = query.bind(feed.as_str()).bind(IMPORTS_MAX);
    query.fetch_all(connection).await
}

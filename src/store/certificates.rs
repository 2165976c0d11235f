//! Delivery certificates: what became of an event, from the rows of its notification, receipt and cursors.

use serde::Serialize;
use sqlx::FromRow;
use sqlx::postgres::PgConnectOptions;
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::pool::Pool;
use super::{StoreError, close, connect};
use crate::model::feed::{Feed, Seq};

/// Name of the connection in Postgres.
const APPLICATION: &str = "shopbell certificate";
/// Most cursors in a certificate: as many as one subscriber has devices.
const CURSORS_MAX: i64 = 64;

/// The certificate of one notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The feed.
    pub feed: String,
    /// Its number in the feed.
    pub seq: i64,
    /// `type` of the event.
    pub event: String,
    /// When it was stored.
    #[serde(with = "rfc3339")]
    pub stored_at: OffsetDateTime,
    /// The first ack. Its time and device are known only if the publisher asked for receipts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered: Option<Fact>,
    /// The devices that have acked it.
    pub acked_by: Vec<Reader>,
    /// The first read mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Fact>,
    /// The handle by a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled: Option<Fact>,
    /// The settlement by another event, whose kind stands in place of the subscriber.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled: Option<Fact>,
    /// It expired before anybody acked it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<Fact>,
    /// `deliverwithin` passed before anybody acked it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undelivered: Option<Fact>,
    /// `handlewithin` passed before anybody handled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdue: Option<Fact>,
}

/// A fact, with its parts that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// The time.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub at: Option<OffsetDateTime>,
    /// The subscriber.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscriber: Option<String>,
    /// The device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A device that has acked a notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// The subscriber.
    pub subscriber: String,
    /// The device; absent for all devices without a name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
}

#[derive(FromRow)]
struct Row {
    feed: String,
    seq: i64,
    event_type: String,
    created_at: OffsetDateTime,
    expired_at: Option<OffsetDateTime>,
    is_acked: bool,
    subscribers: Vec<String>,
    devices: Vec<String>,
    delivered_at: Option<OffsetDateTime>,
    delivered_by: Option<String>,
    delivered_device: Option<String>,
    read_at: Option<OffsetDateTime>,
    read_by: Option<String>,
    handled_at: Option<OffsetDateTime>,
    handled_by: Option<String>,
    undelivered_at: Option<OffsetDateTime>,
    overdue_at: Option<OffsetDateTime>,
}

impl Row {
    fn certificate(self) -> Certificate {
        let at = |at: Option<OffsetDateTime>, subscriber: Option<String>| {
            at.is_some().then_some(Fact {
                at,
                subscriber,
                device: None,
            })
        };
        let is_settled = matches!(self.handled_by.as_deref(), Some("cancelled" | "settled"));
        let handled = at(self.handled_at, self.handled_by);
        let (handled, settled) = if is_settled {
            (None, handled)
        } else {
            (handled, None)
        };
        let reader = |(subscriber, device)| Reader { subscriber, device };
        Certificate {
            feed: self.feed,
            seq: self.seq,
            event: self.event_type,
            stored_at: self.created_at,
            delivered: self.is_acked.then_some(Fact {
                at: self.delivered_at,
                subscriber: self.delivered_by,
                device: self.delivered_device.filter(|device| !device.is_empty()),
            }),
            acked_by: self
                .subscribers
                .into_iter()
                .zip(self.devices)
                .map(reader)
                .collect(),
            read: at(self.read_at, self.read_by),
            handled,
            settled,
            expired: at(self.expired_at, None),
            undelivered: at(self.undelivered_at, None),
            overdue: at(self.overdue_at, None),
        }
    }
}

/// The certificates of notifications `n`, which the given tables contain. `$1` is [`CURSORS_MAX`].
macro_rules! certificates {
    ($tables:literal) => {
        concat!(
            "select n.feed, n.seq, n.event_type, n.created_at, n.read_at, n.handled_at, n.handled_by,
                    case when n.expires_at <= now() and not d.is_acked then n.expires_at end as expired_at, d.is_acked,
                    coalesce(a.subscribers, '{}') as subscribers, coalesce(a.devices, '{}') as devices,
                    r.delivered_at, r.delivered_by, r.delivered_device, r.read_by, r.undelivered_at, r.overdue_at
             from ",
            $tables,
            " left join receipts r on r.feed = n.feed and r.seq = n.seq
             left join feeds f on f.feed = n.feed
             left join lateral (
                 select array_agg(c.subscriber) as subscribers, array_agg(c.device) as devices
                 from (select k.subscriber, k.device from cursors k where k.feed = n.feed and k.acked_seq >= n.seq
                       order by k.subscriber, k.device limit $1) c) a on true
             cross join lateral (
                 select r.delivered_at is not null or a.subscribers is not null or coalesce(f.acked_seq >= n.seq, false)
                     as is_acked) d
             order by n.feed, n.seq"
        )
    };
}

/// Returns the certificates of an event in these feeds. Locks nothing; uses `notifications_identity_key`, `receipts_pkey`,
/// `cursors_pkey` and `feeds_pkey`.
pub async fn of_event(
    pool: &Pool,
    feeds: &[Feed],
    source: &str,
    id: &str,
) -> Result<Vec<Certificate>, StoreError> {
    let query = sqlx::query(certificates!(
        "unnest($2::text[]) as w (feed) join notifications n on n.identity = event_identity(w.feed, $3, $4)"
    ))
    .bind(CURSORS_MAX)
    .bind(feeds.iter().map(Feed::as_str).collect::<Vec<_>>())
    .bind(source)
    .bind(id);
    let rows: Vec<Row> = super::fetch(pool, query).await?;
    Ok(rows.into_iter().map(Row::certificate).collect())
}

/// A notification of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place<'a> {
    /// With this number.
    Seq(Seq),
    /// Of the event with this source and id.
    Event(&'a str, &'a str),
}

/// Returns the certificate of a notification over a connection of its own; `None` if it is not stored.
///
/// Locks nothing; uses the indexes of [`of_event`] and `notifications_pkey`.
pub async fn find(
    options: &PgConnectOptions,
    feed: &Feed,
    place: Place<'_>,
) -> Result<Option<Certificate>, StoreError> {
    let query = match place {
        Place::Seq(seq) => sqlx::query_as(certificates!(
            "(select * from notifications where feed = $2 and seq = $3) n"
        ))
        .bind(CURSORS_MAX)
        .bind(feed.as_str())
        .bind(seq.get()),
        Place::Event(source, id) => sqlx::query_as(certificates!(
            "(select * from notifications where identity = event_identity($2, $3, $4)) n"
        ))
        .bind(CURSORS_MAX)
        .bind(feed.as_str())
        .bind(source)
        .bind(id),
    };
    let mut connection = connect(options, APPLICATION).await?;
    let row: Option<Row> = query.fetch_optional(&mut connection).await?;
    close(connection).await;
    Ok(row.map(Row::certificate))
}

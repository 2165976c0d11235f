//! Looking back over a feed, newest first.

use sqlx::Row;
use sqlx::postgres::PgPool;

use super::StoreError;
use super::pages::{PAGE_BYTES_MAX, notification};
use crate::change::Counts;
use crate::feed::{Feed, Seq, Version};
use crate::notification::Notification;

/// Most rows looked at for one page: where few of many are wanted, a page is short and says where to go on, rather than take
/// long.
const ROWS_LOOKED_AT_MAX: i64 = 5_000;

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The feed.
    pub feed: Feed,
    /// Only what is older than this.
    pub before: Option<Seq>,
    /// Most notifications in a page.
    pub limit: u8,
    /// Only what nobody has read.
    pub unread: bool,
    /// Only what nobody has handled.
    pub unhandled: bool,
    /// Of each collapse key only the newest, as in a replay.
    pub collapse: bool,
}

/// A page of history.
#[derive(Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// The feed's counts at that moment.
    pub counts: Counts,
    /// The feed's newest change at that moment: the notifications are as they were after it.
    pub version: Version,
    /// Newest first; without those that expired.
    pub notifications: Vec<Notification>,
    /// Where the next page begins: before this. `None` at the end.
    pub next: Option<Seq>,
}

/// Reads a page. Walks `notifications_pkey` backwards, from no further than the number up to which all is read where only
/// unread ones are wanted, and `notifications_collapse` for what has a collapse key. One snapshot.
pub async fn read(pool: &PgPool, look: &Look) -> Result<HistoryPage, StoreError> {
    let query = sqlx::query(
        "with looked_at as (
             select n.*
             from notifications n
             where n.feed = $1 and n.seq < $2
               and n.seq > case when $4 then coalesce((select f.read_seq from feeds f where f.feed = $1), 0) else 0 end
             order by n.seq desc
             limit $7
         ), wanted as (
             select *, sum(coalesce(octet_length(data), 0)) over (order by seq desc) - coalesce(octet_length(data), 0) as before
             from looked_at l
             where (not $4 or l.read_at is null) and (not $5 or l.handled_at is null)
               and coalesce(l.expires_at > now(), true)
               and not ($6 and l.collapse_key is not null and exists (
                   select from notifications m
                   where m.feed = l.feed and m.collapse_key = l.collapse_key and m.seq > l.seq))
             order by seq desc
             limit $3
         ), fitting as (
             select * from wanted w where w.before < $8
         )
         select f.last_seq, f.version, f.unread, f.unhandled,
                case when (select count(*) from fitting) = $3 or (select count(*) from fitting) < (select count(*) from wanted)
                     then (select min(seq) from fitting)
                     when (select count(*) from looked_at) = $7 then (select min(seq) from looked_at)
                end as next, n.*
         from (select coalesce(max(last_seq), 0) as last_seq, coalesce(max(version), 0) as version,
                      coalesce(max(unread), 0) as unread, coalesce(max(unhandled), 0) as unhandled
               from feeds where feed = $1) f
         left join fitting n on true
         order by n.seq desc",
    )
    .bind(look.feed.as_str())
    .bind(look.before.map_or(i64::MAX, Seq::get))
    .bind(i64::from(look.limit))
    .bind(look.unread)
    .bind(look.unhandled)
    .bind(look.collapse)
    .bind(ROWS_LOOKED_AT_MAX)
    .bind(PAGE_BYTES_MAX);
    let rows = super::rows(pool, query).await?;
    // There is a row even where there is no notification: the feed's.
    let feed_row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let last = super::seq(feed_row.try_get("last_seq")?)?;
    let mut notifications = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(seq) = row.try_get::<Option<i64>, _>("seq")? {
            notifications.push(notification(&look.feed, super::seq(seq)?, row)?);
        }
    }
    // Nothing stands before the first.
    let next = feed_row.try_get::<Option<i64>, _>("next")?.filter(|next| *next > 1).map(super::seq).transpose()?;
    Ok(HistoryPage {
        counts: Counts { unread: feed_row.try_get("unread")?, unhandled: feed_row.try_get("unhandled")?, last },
        version: super::version(feed_row.try_get("version")?)?,
        notifications,
        next,
    })
}

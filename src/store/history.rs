//! Looking back over a feed, newest first.

use sqlx::Row;

use super::pages::{PAGE_BYTES_MAX, notification};
use super::pools::Pool;
use super::{StoreError, epoch};
use crate::change::Counts;
use crate::feed::{Epoch, Feed, Seq, Version};
use crate::notification::Notification;

/// Most numbers looked at for one page: where few of many are wanted, a page is short and says where to go on, rather than take
/// long.
const NUMBERS_LOOKED_AT_MAX: i64 = 5_000;

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
    /// As in a replay: of each collapse key only the newest, and nothing that expired.
    pub collapse: bool,
}

/// A page of history.
#[derive(Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// The feed's counts at that moment.
    pub counts: Counts,
    /// The feed's newest change at that moment: the notifications are as they were after it.
    pub version: Version,
    /// The epoch of all numbers.
    pub epoch: Epoch,
    /// Newest first.
    pub notifications: Vec<Notification>,
    /// Where the next page begins: before this. `None` at the end.
    pub next: Option<Seq>,
}

/// Reads a page. Walks `notifications_pkey` backwards as far as the page needs, and no further than the number up to which all is
/// read where only unread ones are wanted; and `notifications_collapse` for what has a collapse key. One snapshot.
pub async fn read(pool: &Pool, look: &Look) -> Result<HistoryPage, StoreError> {
    let query = sqlx::query(
        "with place as (
             select f.*, greatest(f.upper - $7, case when $4 then f.read_seq + 1 else 1 end) as lower,
                    case when $4 then f.read_seq + 1 else 1 end as lowest
             from (select coalesce(max(last_seq), 0) as last_seq, coalesce(max(version), 0) as version,
                          coalesce(max(unread), 0) as unread, coalesce(max(unhandled), 0) as unhandled,
                          coalesce(max(read_seq), 0) as read_seq, least($2, coalesce(max(last_seq), 0) + 1) as upper
                   from feeds where feed = $1) f
         ), wanted as (
             select n.*, sum(coalesce(octet_length(n.data), 0)) over (order by n.seq desc)
                         - coalesce(octet_length(n.data), 0) as bytes_before
             from (
                 select n.*
                 from notifications n
                 where n.feed = $1 and n.seq < (select upper from place) and n.seq >= (select lower from place)
                   and (not $4 or n.read_at is null) and (not $5 or n.handled_at is null)
                   and not ($6 and (coalesce(n.expires_at <= now(), false)
                                    or n.collapse_key is not null and exists (
                                        select from notifications m
                                        where m.feed = n.feed and m.collapse_key = n.collapse_key and m.seq > n.seq)))
                 order by n.seq desc
                 limit $3) n
         )
         select (select e.epoch from epochs e) as epoch, p.last_seq, p.version, p.unread, p.unhandled, p.lower, p.lowest, (select count(*) from wanted) as found,
                n.seq, n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key, n.import_done, n.import_failed,
                n.import_total, n.expires_at, n.read_at, n.handled_at, n.handled_by
         from place p
         left join wanted n on n.bytes_before < $8
         order by n.seq desc",
    )
    .bind(look.feed.as_str())
    .bind(look.before.map_or(i64::MAX, Seq::get))
    .bind(i64::from(look.limit))
    .bind(look.unread)
    .bind(look.unhandled)
    .bind(look.collapse)
    .bind(NUMBERS_LOOKED_AT_MAX)
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
    let (lower, lowest): (i64, i64) = (feed_row.try_get("lower")?, feed_row.try_get("lowest")?);
    let found = usize::try_from(feed_row.try_get::<i64, _>("found")?).unwrap_or(usize::MAX);
    let is_cut_short = found > notifications.len() || found == usize::from(look.limit);
    let next = match notifications.last() {
        Some(oldest) if is_cut_short => oldest.seq.get(),
        _ => lower,
    };
    Ok(HistoryPage {
        counts: Counts { unread: feed_row.try_get("unread")?, unhandled: feed_row.try_get("unhandled")?, last },
        version: super::version(feed_row.try_get("version")?)?,
        epoch: epoch::parse(feed_row.try_get("epoch")?)?,
        notifications,
        // Nothing that is wanted stands before the lowest.
        next: (next > lowest).then(|| super::seq(next)).transpose()?,
    })
}

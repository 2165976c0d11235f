//! Looking back over a feed, newest first.

use sqlx::Row;

use super::pages::{PAGE_BYTES_MAX, notification};
use super::pools::Pool;
use super::{StoreError, epoch};
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::mark::Counts;
use crate::model::notification::Notification;

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

/// Reads a page; see `find_history` in `migrations/` for what it walks. If only unread or unhandled ones are wanted, it stops when
/// it has as many as the feed counts, and remembers the parts of the feed that have none. One snapshot.
pub async fn read(pool: &Pool, look: &Look) -> Result<HistoryPage, StoreError> {
    let query = sqlx::query(
        "with place as (
             select f.*, case when $4 then f.read_seq + 1 else 1 end as lowest,
                    case when $4 and $5 then least(f.unread, f.unhandled)
                         when $4 then f.unread when $5 then f.unhandled else f.last_seq end as most
             from (select coalesce(max(last_seq), 0) as last_seq, coalesce(max(version), 0) as version,
                          coalesce(max(unread), 0) as unread, coalesce(max(unhandled), 0) as unhandled,
                          coalesce(max(read_seq), 0) as read_seq, least($2, coalesce(max(last_seq), 0) + 1) as upper
                   from feeds where feed = $1) f
         ), looked as materialized (
             select p.*, b.*, cardinality(b.seqs) >= p.most as is_all
             from place p
             cross join lateral find_history($1, p.upper, p.lowest, least($3, p.most), $4, $5, $6, $7) b
         ), wanted as (
             select n.*, sum(coalesce(octet_length(n.data), 0)) over (order by n.seq desc)
                         - coalesce(octet_length(n.data), 0) as bytes_before
             from looked l
             cross join lateral unnest(l.seqs) as s (seq)
             join notifications n on n.feed = $1 and n.seq = s.seq
         )
         select (select e.epoch from epochs e) as epoch, l.last_seq, l.version, l.unread, l.unhandled, l.lower, l.lowest, l.is_all, l.settled,
                cardinality(l.seqs) as found, n.seq, n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key,
                n.import_done, n.import_failed, n.import_total, n.expires_at, n.read_at, n.handled_at, n.handled_by
         from looked l
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
    let is_cut_short =
        usize::try_from(feed_row.try_get::<i32, _>("found")?) != Ok(notifications.len());
    let next = match notifications.last() {
        // The bytes of a page are limited too.
        Some(oldest) if is_cut_short => oldest.seq.get(),
        _ if feed_row.try_get("is_all")? => lowest,
        _ => lower,
    };
    let epoch: String = feed_row.try_get("epoch")?;
    remember_settled(
        pool,
        look,
        &epoch,
        &feed_row.try_get::<Vec<i64>, _>("settled")?,
    )
    .await;
    Ok(HistoryPage {
        counts: Counts {
            unread: feed_row.try_get("unread")?,
            unhandled: feed_row.try_get("unhandled")?,
            last,
        },
        version: super::version(feed_row.try_get("version")?)?,
        epoch: epoch::parse(&epoch)?,
        notifications,
        // Nothing that is wanted stands before the lowest.
        next: (next > lowest).then(|| super::seq(next)).transpose()?,
    })
}

/// What is settled stays settled in its epoch: the next page of the feed skips it.
async fn remember_settled(pool: &Pool, look: &Look, epoch: &str, blocks: &[i64]) {
    if blocks.is_empty() {
        return;
    }
    let kind = if look.unread { "read" } else { "handled" };
    let query = "insert into settled_blocks (feed, kind, block) select $1, $2, b from unnest($3::bigint[]) b
                 where (select e.epoch from epochs e) = $4 on conflict do nothing";
    let query = sqlx::query(query)
        .bind(look.feed.as_str())
        .bind(kind)
        .bind(blocks)
        .bind(epoch);
    if let Err(error) = super::rows(pool, query).await {
        tracing::debug!(%error, feed = %look.feed, "settled parts of a feed were not stored; the next page looks at them again");
    }
}

//! Pages of history: a feed from the newest notification backwards.

use sqlx::FromRow;
use sqlx::postgres::PgRow;

use super::pages::{NotificationColumns, PAGE_BYTES_MAX};
use super::pool::Pool;
use super::{StoreError, epoch};
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::mark::Counts;
use crate::model::notification::Notification;

/// Most numbers that are read for one page. If few of them are wanted, the page is short, and the
/// next page continues.
const NUMBERS_READ_MAX: i64 = 5_000;

/// The content of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRequest {
    /// The feed.
    pub feed: Feed,
    /// The page ends before this number.
    pub before: Option<Seq>,
    /// Most notifications in the page.
    pub limit: u8,
    /// Only notifications without a read mark.
    pub unread: bool,
    /// Only notifications without a handle mark.
    pub unhandled: bool,
    /// As in a replay: only the newest of each collapse key, and none that has expired.
    pub collapse: bool,
}

/// A page of history. All its parts are from one snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// The counts of the feed.
    pub counts: Counts,
    /// Number of the newest mark; the notifications include it.
    pub version: Version,
    /// The epoch of all numbers.
    pub epoch: Epoch,
    /// Newest first.
    pub notifications: Vec<Notification>,
    /// The next page ends before this number. `None` at the end of the feed.
    pub next: Option<Seq>,
}

/// The columns of [`read`] that all rows share.
#[derive(FromRow)]
struct PageColumns {
    epoch: String,
    last_seq: i64,
    version: i64,
    unread: i64,
    unhandled: i64,
    /// The lowest number that was read.
    lower: i64,
    /// No wanted notification has a lower number.
    lowest: i64,
    /// The page has as many notifications as the feed counts.
    is_all: bool,
    settled: Vec<i64>,
    /// Number of wanted notifications, before the limit on bytes.
    found: i32,
}

impl PageColumns {
    /// The `next` of a page whose last notification is `oldest`, of `len`.
    fn next(&self, oldest: Option<Seq>, len: usize) -> Result<Option<Seq>, sqlx::Error> {
        let next = match oldest {
            Some(oldest) if usize::try_from(self.found) != Ok(len) => oldest.get(),
            _ if self.is_all => self.lowest,
            _ => self.lower,
        };
        (next > self.lowest).then(|| super::seq(next)).transpose()
    }
}

/// Reads a page. If only unread or unhandled notifications are wanted, it stops when it has as many
/// as the feed counts, and stores which blocks of the feed have none.
///
/// Locks nothing; uses `feeds_pkey`, `notifications_pkey`, and the indexes of `find_history` in
/// `migrations/`.
pub async fn read(pool: &Pool, request: &HistoryRequest) -> Result<HistoryPage, StoreError> {
    let rows = rows(pool, request).await?;
    // A page without notifications has one row, for the feed.
    let page = PageColumns::from_row(rows.first().ok_or(sqlx::Error::RowNotFound)?)?;
    let mut notifications = Vec::with_capacity(rows.len());
    for row in &rows {
        // The first column is `seq`.
        let (seq,) = FromRow::from_row(row)?;
        if let Some(seq) = seq {
            let columns = NotificationColumns::from_row(row)?;
            notifications.push(columns.render(&request.feed, super::seq(seq)?));
        }
    }
    store_settled(pool, request, &page).await;
    let oldest = notifications.last().map(|notification| notification.seq);
    Ok(HistoryPage {
        counts: Counts {
            unread: page.unread,
            unhandled: page.unhandled,
            last: super::seq(page.last_seq)?,
        },
        version: super::version(page.version)?,
        epoch: epoch::parse(&page.epoch)?,
        next: page.next(oldest, notifications.len())?,
        notifications,
    })
}

async fn rows(pool: &Pool, request: &HistoryRequest) -> Result<Vec<PgRow>, StoreError> {
    let query = sqlx::query(
        "with place as (
             select f.*, case when $4 then greatest(f.read_seq, f.trimmed_seq) else f.trimmed_seq end + 1 as lowest,
                    case when $4 and $5 then least(f.unread, f.unhandled)
                         when $4 then f.unread when $5 then f.unhandled else f.last_seq - f.trimmed_seq end as most
             from (select coalesce(max(last_seq), 0) as last_seq, coalesce(max(version), 0) as version,
                          coalesce(max(unread), 0) as unread, coalesce(max(unhandled), 0) as unhandled,
                          coalesce(max(read_seq), 0) as read_seq, coalesce(max(trimmed_seq), 0) as trimmed_seq, least($2, coalesce(max(last_seq), 0) + 1) as upper
                   from feeds where feed = $1) f
         ), found as materialized (
             select p.*, h.*, cardinality(h.seqs) >= p.most as is_all
             from place p
             cross join lateral find_history($1, p.upper, p.lowest, least($3, p.most), $4, $5, $6, $7) h
         ), wanted as (
             select n.*, sum(coalesce(octet_length(n.data), 0)) over (order by n.seq desc)
                         - coalesce(octet_length(n.data), 0) as bytes_before
             from found f
             cross join lateral unnest(f.seqs) as s (seq)
             join notifications n on n.feed = $1 and n.seq = s.seq
         )
         select n.seq, (select e.epoch from epochs e) as epoch, f.last_seq, f.version, f.unread, f.unhandled, f.lower,
                f.lowest, f.is_all, f.settled, cardinality(f.seqs) as found,
                n.source, n.event_id, n.event_type, n.time, n.data, n.collapse_key, n.import_done, n.import_failed,
                n.import_total, n.expires_at, n.read_at, n.handled_at, n.handled_by
         from found f
         left join wanted n on n.bytes_before < $8
         order by n.seq desc",
    )
    .bind(request.feed.as_str())
    .bind(request.before.map_or(i64::MAX, Seq::get))
    .bind(i64::from(request.limit))
    .bind(request.unread)
    .bind(request.unhandled)
    .bind(request.collapse)
    .bind(NUMBERS_READ_MAX)
    .bind(PAGE_BYTES_MAX);
    super::rows(pool, query).await
}

/// Stores the blocks that are settled, so that the next page skips them. They stay settled in their
/// epoch.
///
/// Locks the new rows; uses `settled_blocks_pkey`.
async fn store_settled(pool: &Pool, request: &HistoryRequest, page: &PageColumns) {
    if page.settled.is_empty() {
        return;
    }
    let kind = if request.unread { "read" } else { "handled" };
    let query = "insert into settled_blocks (feed, kind, block) select $1, $2, b from unnest($3::bigint[]) b
                 where (select e.epoch from epochs e) = $4 on conflict do nothing";
    let query = sqlx::query(query)
        .bind(request.feed.as_str())
        .bind(kind)
        .bind(&page.settled)
        .bind(&page.epoch);
    if let Err(error) = super::execute(pool, query).await {
        tracing::debug!(%error, feed = %request.feed, "settled blocks were not stored; the next page reads them again");
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn page(lower: i64, is_all: bool) -> PageColumns {
        PageColumns {
            epoch: "e1".into(),
            last_seq: 100,
            version: 0,
            unread: 0,
            unhandled: 0,
            lower,
            lowest: 11,
            is_all,
            settled: Vec::new(),
            found: 2,
        }
    }

    fn next(page: &PageColumns, oldest: i64, len: usize) -> Option<i64> {
        page.next(Seq::new(oldest), len).unwrap().map(Seq::get)
    }

    #[test]
    fn a_page_cut_by_bytes_continues_at_its_oldest() {
        assert_eq!(next(&page(40, false), 60, 1), Some(60));
    }

    #[test]
    fn a_short_page_continues_below_the_numbers_that_were_read() {
        assert_eq!(next(&page(40, false), 60, 2), Some(40));
    }

    #[test]
    fn a_page_with_all_or_at_the_lowest_number_is_the_last() {
        assert_eq!(next(&page(40, true), 60, 2), None);
        assert_eq!(next(&page(11, false), 60, 2), None);
    }
}

//! Pages of feeds: one statement for many sessions.

use std::sync::Arc;

use sqlx::FromRow;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::pool::Pool;
use super::{ProgressColumns, StoreError, epoch, marks, traces};
use crate::model::feed::{Epoch, Feed, Newest, Seq, Version};
use crate::model::notification::{Notification, NotificationFields};
use crate::model::page::Page;
use crate::model::protocol::SkipReason;
use crate::telemetry;

/// Most bytes of data before the last row of a page. So large events make short pages. The last row
/// is read whole.
pub const PAGE_BYTES_MAX: i64 = 256 * 1024;
/// Most marks in a page.
const MARKS_PER_PAGE_MAX: i64 = 256;

/// The content of a page. Ordered, so that equal requests are found together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRequest {
    /// The feed.
    pub feed: Feed,
    /// The page begins after this number.
    pub after: Seq,
    /// Most notifications.
    pub rows: i64,
    /// A page ends before the row that would begin beyond so many bytes of data.
    pub bytes: i64,
    /// If set, the page includes the marks after this version.
    pub states_after: Option<Version>,
}

/// The columns of [`read`] that all rows of a page share.
#[derive(FromRow)]
struct FeedColumns<'r> {
    epoch: Option<&'r str>,
    last_seq: i64,
    version: i64,
    trimmed_seq: i64,
}

/// The columns of [`read`] that place a row. A feed without rows has one row without `seq`.
#[derive(FromRow)]
struct PlaceColumns {
    ordinal: i64,
    seq: Option<i64>,
    collapsed: Option<bool>,
    expired: Option<bool>,
}

/// The columns of a notification. They borrow from the row, because this is the hot path of a
/// replay and the text is copied only once, into the frame.
#[derive(FromRow)]
pub(super) struct NotificationColumns<'r> {
    source: &'r str,
    event_id: &'r str,
    event_type: &'r str,
    time: OffsetDateTime,
    data: Option<&'r str>,
    collapse_key: Option<&'r str>,
    #[sqlx(flatten)]
    progress: ProgressColumns,
    expires_at: Option<OffsetDateTime>,
    read_at: Option<OffsetDateTime>,
    handled_at: Option<OffsetDateTime>,
    handled_by: Option<&'r str>,
}

impl NotificationColumns<'_> {
    pub(super) fn render(self, feed: &Feed, seq: Seq) -> Notification {
        Notification::render(&NotificationFields {
            feed,
            seq,
            id: self.event_id,
            source: self.source,
            event: self.event_type,
            time: self.time,
            data: self.data,
            collapse_key: self.collapse_key,
            progress: self.progress.progress(),
            expires_at: self.expires_at,
            read_at: self.read_at,
            handled_at: self.handled_at,
            handled_by: self.handled_by,
        })
    }
}

/// Reads a page for each request, in the order given: one statement for all notifications, and one
/// for all marks if a request includes marks.
///
/// Locks nothing; uses `feeds_pkey`, `notifications_pkey`, and `notifications_collapse` for each row
/// with a collapse key. The counters of a feed and its rows are from one snapshot, its marks from a
/// later one.
pub async fn read(pool: &Pool, requests: &[PageRequest]) -> Result<Vec<Page>, StoreError> {
    let feeds: Vec<_> = requests
        .iter()
        .map(|request| request.feed.as_str())
        .collect();
    let after: Vec<_> = requests.iter().map(|request| request.after.get()).collect();
    let rows: Vec<_> = requests.iter().map(|request| request.rows).collect();
    let bytes: Vec<_> = requests.iter().map(|request| request.bytes).collect();
    let query = sqlx::query(
        "select r.ordinal, (select e.epoch from epochs e) as epoch, coalesce(f.last_seq, 0) as last_seq,
                coalesce(f.version, 0) as version, coalesce(f.trimmed_seq, 0) as trimmed_seq,
                n.seq, n.source, n.event_id, n.event_type, n.time,
                case when n.collapsed or n.expired then null else n.data end as data, n.collapse_key,
                n.import_done, n.import_failed, n.import_total, n.expires_at, n.read_at, n.handled_at, n.handled_by, n.collapsed, n.expired
         from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) with ordinality as r (feed, after, rows, bytes, ordinal)
         left join feeds f on f.feed = r.feed
         left join lateral (
             select *, sum(bytes) over (order by seq) - bytes as bytes_before
             from (
                 select *, case when collapsed or expired then 0 else coalesce(octet_length(data), 0) end as bytes
                 from (
                     select p.*, coalesce(p.expires_at <= now(), false) as expired,
                            p.collapse_key is not null and exists (
                                select from notifications m
                                where m.feed = p.feed and m.collapse_key = p.collapse_key and m.seq > p.seq) as collapsed
                     from notifications p
                     where p.feed = r.feed and p.seq > greatest(r.after, f.trimmed_seq)
                     order by p.seq
                     limit r.rows) judged) sized) n on n.bytes_before < r.bytes
         order by r.ordinal, n.seq",
    )
    .bind(feeds)
    .bind(after)
    .bind(rows)
    .bind(bytes);
    let rows = super::rows(pool, query).await?;

    let mut pages: Vec<Page> = requests
        .iter()
        .map(|request| Page::new(request.feed.clone(), request.after))
        .collect();
    for row in &rows {
        add(&mut pages, row)?;
    }
    for page in &mut pages {
        page.close();
    }
    add_marks(pool, requests, &mut pages).await?;
    if telemetry::traces::are_on() {
        traces::add(pool, &mut pages).await;
    }
    Ok(pages)
}

/// Adds a row to its page.
fn add(pages: &mut [Page], row: &PgRow) -> Result<(), sqlx::Error> {
    let place = PlaceColumns::from_row(row)?;
    let index = usize::try_from(place.ordinal - 1).ok();
    let Some(page) = index.and_then(|index| pages.get_mut(index)) else {
        return Ok(());
    };
    if page.epoch.is_none() {
        let feed = FeedColumns::from_row(row)?;
        page.epoch = feed.epoch.map(epoch::parse).transpose()?;
        page.last = super::seq(feed.last_seq)?;
        page.version = super::version(feed.version)?;
        page.trimmed = super::seq(feed.trimmed_seq)?;
    }
    let Some(seq) = place.seq.map(super::seq).transpose()? else {
        return Ok(());
    };
    match place {
        PlaceColumns {
            expired: Some(true),
            ..
        } => page.skip(seq, SkipReason::Expired),
        PlaceColumns {
            collapsed: Some(true),
            ..
        } => page.skip(seq, SkipReason::Collapsed),
        _ => {
            let notification = NotificationColumns::from_row(row)?.render(&page.feed, seq);
            page.push(Arc::new(notification));
        }
    }
    Ok(())
}

/// Adds marks to the pages whose requests include them. Most do not, because their sessions have
/// missed none.
async fn add_marks(
    pool: &Pool,
    requests: &[PageRequest],
    pages: &mut [Page],
) -> Result<(), StoreError> {
    let mut wanted = Vec::new();
    let mut places = Vec::new();
    for (page, request) in pages.iter_mut().zip(requests) {
        if let Some(after) = request.states_after {
            places.push((request.feed.clone(), after));
            wanted.push(page);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    for (index, state) in marks::read_after(pool, &places, MARKS_PER_PAGE_MAX).await? {
        if let Some(page) = wanted.get_mut(index) {
            page.states.push(Arc::new(state));
        }
    }
    Ok(())
}

/// Reads the epoch, and the newest number and version of each feed; zero for a feed that is not
/// stored. Rounds and the sweep compare them with those that sessions have.
///
/// Locks nothing; uses `feeds_pkey`.
pub async fn newest(
    pool: &Pool,
    feeds: &[Feed],
) -> Result<(Option<Epoch>, Vec<(Feed, Newest)>), StoreError> {
    let query = sqlx::query(
        "select w.ordinal, coalesce(f.last_seq, 0), coalesce(f.version, 0), (select e.epoch from epochs e)
         from unnest($1::text[]) with ordinality as w (feed, ordinal)
         left join feeds f on f.feed = w.feed",
    )
    .bind(feeds.iter().map(Feed::as_str).collect::<Vec<_>>());
    let rows = super::rows(pool, query).await?;
    let mut epoch = None;
    let mut newest = Vec::with_capacity(rows.len());
    for row in &rows {
        let (ordinal, last_seq, version, present) = <(i64, i64, i64, Option<&str>)>::from_row(row)?;
        if epoch.is_none() {
            epoch = present.map(epoch::parse).transpose()?;
        }
        if let Some((_, feed)) = super::at(feeds, ordinal) {
            let (seq, version) = (super::seq(last_seq)?, super::version(version)?);
            newest.push((feed.clone(), Newest { seq, version }));
        }
    }
    Ok((epoch, newest))
}

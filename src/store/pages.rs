//! Reading feeds: one query for many sessions.

use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::pools::Pool;
use super::{StoreError, epoch, marks, traces};
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::notification::{Newest, Notification, NotificationFields, Page};
use crate::model::protocol::SkipReason;
use crate::telemetry;

/// A page ends before the row that begins beyond this, so that large events make short pages, not large memory.
pub(super) const PAGE_BYTES_MAX: i64 = 256 * 1024;
/// Most changes in a page.
const CHANGES_PER_PAGE_MAX: i64 = 256;

/// What a page is to hold. Ordered, so that equal requests are found together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRequest {
    /// The feed.
    pub feed: Feed,
    /// The notifications after this one …
    pub after: Seq,
    /// … at most so many.
    pub rows: i64,
    /// The changes after this one too.
    pub changes_after: Option<Version>,
}

/// Reads what each request asks for, in the order given: one query for the notifications of all of them, and one for the
/// changes, where any are wanted.
///
/// Walks `notifications_pkey` from `after`, and `notifications_collapse` for each row that has a collapse key. The feed's
/// newest number, its version and its rows come from one snapshot, its changes from a later one.
pub async fn read(pool: &Pool, requests: &[PageRequest]) -> Result<Vec<Page>, StoreError> {
    let query = sqlx::query(
        "select r.ordinal, (select e.epoch from epochs e) as epoch, coalesce(f.last_seq, 0) as last_seq,
                coalesce(f.version, 0) as version, coalesce(f.trimmed_seq, 0) as trimmed_seq,
                n.seq, n.source, n.event_id, n.event_type, n.time,
                case when n.collapsed or n.expired then null else n.data end as data, n.collapse_key,
                n.import_done, n.import_failed, n.import_total, n.expires_at, n.read_at, n.handled_at, n.handled_by, n.collapsed, n.expired
         from unnest($1::text[], $2::bigint[], $3::bigint[]) with ordinality as r (feed, after, rows, ordinal)
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
                     where p.feed = r.feed and p.seq > r.after
                     order by p.seq
                     limit r.rows) judged) sized) n on n.bytes_before < $4
         order by r.ordinal, n.seq",
    )
    .bind(requests.iter().map(|request| request.feed.as_str()).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| request.after.get()).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| request.rows).collect::<Vec<_>>())
    .bind(PAGE_BYTES_MAX);
    let rows = super::rows(pool, query).await?;

    let mut pages: Vec<Page> = requests
        .iter()
        .map(|request| Page::new(request.feed.clone(), request.after))
        .collect();
    for row in &rows {
        let page = usize::try_from(row.try_get::<i64, _>("ordinal")? - 1)
            .ok()
            .and_then(|index| pages.get_mut(index));
        if let Some(page) = page {
            add(page, row)?;
        }
    }
    for page in &mut pages {
        page.close();
    }
    add_changes(pool, requests, &mut pages).await?;
    if telemetry::traces::are_on() {
        traces::add(pool, &mut pages).await;
    }
    Ok(pages)
}

/// Most pages want none: their sessions missed nothing.
async fn add_changes(
    pool: &Pool,
    requests: &[PageRequest],
    pages: &mut [Page],
) -> Result<(), StoreError> {
    let wanted = |(place, request): (usize, &PageRequest)| {
        Some((place, request.feed.clone(), request.changes_after?))
    };
    let wanted: Vec<_> = requests.iter().enumerate().filter_map(wanted).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let places: Vec<_> = wanted
        .iter()
        .map(|(_, feed, after)| (feed.clone(), *after))
        .collect();
    for (index, change) in marks::changes_after(pool, &places, CHANGES_PER_PAGE_MAX).await? {
        if let Some(page) = wanted
            .get(index)
            .and_then(|(place, ..)| pages.get_mut(*place))
        {
            page.changes.push(Arc::new(change));
        }
    }
    Ok(())
}

fn add(page: &mut Page, row: &PgRow) -> Result<(), sqlx::Error> {
    if page.epoch.is_none() {
        page.epoch = row
            .try_get::<Option<&str>, _>("epoch")?
            .map(epoch::parse)
            .transpose()?;
        page.trimmed = super::seq(row.try_get("trimmed_seq")?)?;
    }
    page.last = super::seq(row.try_get("last_seq")?)?;
    page.version = super::version(row.try_get("version")?)?;
    let Some(seq) = row.try_get::<Option<i64>, _>("seq")? else {
        return Ok(());
    };
    let seq = super::seq(seq)?;
    if row.try_get("expired")? {
        page.skip(seq, SkipReason::Expired);
    } else if row.try_get("collapsed")? {
        page.skip(seq, SkipReason::Collapsed);
    } else {
        let notification = notification(&page.feed, seq, row)?;
        page.push(Arc::new(notification));
    }
    Ok(())
}

/// Renders a stored row.
pub(super) fn notification(
    feed: &Feed,
    seq: Seq,
    row: &PgRow,
) -> Result<Notification, sqlx::Error> {
    Ok(Notification::render(&NotificationFields {
        feed,
        seq,
        id: row.try_get("event_id")?,
        source: row.try_get("source")?,
        event: row.try_get("event_type")?,
        time: row.try_get("time")?,
        data: row.try_get("data")?,
        collapse_key: row.try_get("collapse_key")?,
        progress: super::progress(row)?,
        expires_at: row.try_get("expires_at")?,
        read_at: row.try_get("read_at")?,
        handled_at: row.try_get("handled_at")?,
        handled_by: row.try_get("handled_by")?,
    }))
}

/// The newest number and change of each feed, zero for one that is not stored: what the sweep compares with what sessions were
/// told. And the epoch at that moment. Walks `feeds_pkey`.
pub async fn newest(
    pool: &Pool,
    feeds: &[Feed],
) -> Result<(Option<Epoch>, Vec<(Feed, Newest)>), StoreError> {
    let query = sqlx::query(
        "select w.ordinal, coalesce(f.last_seq, 0) as last_seq, coalesce(f.version, 0) as version,
                (select e.epoch from epochs e) as epoch
         from unnest($1::text[]) with ordinality as w (feed, ordinal)
         left join feeds f on f.feed = w.feed",
    )
    .bind(feeds.iter().map(Feed::as_str).collect::<Vec<_>>());
    let rows = super::rows(pool, query).await?;
    let epoch = rows
        .first()
        .map(|row| row.try_get::<Option<&str>, _>("epoch"))
        .transpose()?
        .flatten();
    let epoch = epoch.map(epoch::parse).transpose()?;
    let mut newest = Vec::with_capacity(rows.len());
    for row in &rows {
        let feed = usize::try_from(row.try_get::<i64, _>("ordinal")? - 1)
            .ok()
            .and_then(|index| feeds.get(index));
        if let Some(feed) = feed {
            let (seq, version) = (
                super::seq(row.try_get("last_seq")?)?,
                super::version(row.try_get("version")?)?,
            );
            newest.push((feed.clone(), Newest { seq, version }));
        }
    }
    Ok((epoch, newest))
}

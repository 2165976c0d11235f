//! Where the traces of stored events go on. Best effort: a trace that is lost costs nobody an order.

use sqlx::Row;

use super::StoreError;
use super::pools::Pool;
use crate::feed::{Feed, Seq};
use crate::notification::Page;
use crate::telemetry::traces::Origin;

/// After this a link leads nowhere: what collects traces has forgotten them too.
const KEPT: &str = "3 days";
/// Most that are forgotten in one statement.
const FORGOTTEN_MAX: i64 = 10_000;

/// Keeps where these go on.
pub async fn keep(pool: &Pool, traced: &[(Feed, Seq, Origin)]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "insert into traces (feed, seq, traceparent)
         select * from unnest($1::text[], $2::bigint[], $3::text[])
         on conflict (feed, seq) do nothing",
    )
    .bind(traced.iter().map(|(feed, ..)| feed.as_str()).collect::<Vec<_>>())
    .bind(traced.iter().map(|(_, seq, _)| seq.get()).collect::<Vec<_>>())
    .bind(traced.iter().map(|(.., origin)| origin.to_string()).collect::<Vec<_>>());
    super::rows(pool, query).await.map(drop)
}

/// Gives the notifications of these pages their traces. Walks `traces_pkey`, where few have a row.
pub(super) async fn add(pool: &Pool, pages: &mut [Page]) -> Result<(), StoreError> {
    let places: Vec<(usize, &Feed, i64)> = pages
        .iter()
        .enumerate()
        .flat_map(|(page, read)| read.entries.iter().map(move |entry| (page, &read.feed, entry.through().get())))
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(
        "select w.page, t.seq, t.traceparent
         from unnest($1::bigint[], $2::text[], $3::bigint[]) as w (page, feed, seq)
         join traces t on t.feed = w.feed and t.seq = w.seq",
    )
    .bind(places.iter().map(|(page, ..)| i64::try_from(*page).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, feed, _)| feed.as_str()).collect::<Vec<_>>())
    .bind(places.iter().map(|(.., seq)| *seq).collect::<Vec<_>>());
    for row in super::rows(pool, query).await? {
        let seq = super::seq(row.try_get("seq")?)?;
        let page = usize::try_from(row.try_get::<i64, _>("page")?).ok().and_then(|page| pages.get_mut(page));
        let origin = Origin::stored(row.try_get("traceparent")?);
        if let Some((page, origin)) = page.zip(origin) {
            page.trace(seq, origin);
        }
    }
    Ok(())
}

/// Forgets those that are too old; returns how many.
pub async fn forget(pool: &Pool) -> Result<usize, StoreError> {
    let query = sqlx::query(
        "delete from traces t using (
             select feed, seq from traces where stored_at < now() - $1::interval order by stored_at limit $2) old
         where t.feed = old.feed and t.seq = old.seq
         returning t.seq",
    )
    .bind(KEPT)
    .bind(FORGOTTEN_MAX);
    Ok(super::rows(pool, query).await?.len())
}

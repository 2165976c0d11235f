//! Where the traces of stored events go on. Best effort: a trace that is lost costs nobody an order.

use std::time::Duration;

use sqlx::Row;

use super::StoreError;
use super::pools::Pool;
use crate::model::feed::{Feed, Seq};
use crate::model::notification::{Entry, Page};
use crate::model::trace_context::TraceContext;
use crate::telemetry::traces;

/// After this a link leads nowhere: what collects traces has forgotten them too.
const KEPT: &str = "3 days";
/// How long a replay may wait for them.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// Most that are forgotten in one statement.
const FORGOTTEN_MAX: i64 = 1_000;

/// Keeps where these go on.
pub async fn keep(pool: &Pool, traced: &[(Feed, Seq, TraceContext)]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "insert into traces (feed, seq, traceparent)
         select * from unnest($1::text[], $2::bigint[], $3::text[])
         on conflict (feed, seq) do nothing",
    )
    .bind(
        traced
            .iter()
            .map(|(feed, ..)| feed.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(
        traced
            .iter()
            .map(|(_, seq, _)| seq.get())
            .collect::<Vec<_>>(),
    )
    .bind(
        traced
            .iter()
            .map(|(.., trace)| trace.to_string())
            .collect::<Vec<_>>(),
    );
    super::rows(pool, query).await.map(drop)
}

/// Gives the notifications of these pages their traces, or none where that takes long: merchants wait for the pages. Walks
/// `traces_pkey`, where few have a row.
pub(super) async fn add(pool: &Pool, pages: &mut [Page]) {
    // Twice, for a connection and for the answer.
    let trouble = match tokio::time::timeout(READ_TIMEOUT * 2, read(pool, pages)).await {
        Ok(Ok(found)) => {
            for (page, seq, trace) in found {
                if let Some(page) = pages.get_mut(page) {
                    page.set_trace(seq, trace);
                }
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no connection is free".to_owned(),
    };
    tracing::warn!(
        error = trouble,
        "where traces go on could not be read; they end here"
    );
}

/// Which of them are traced: page, number, position in the trace.
async fn read(pool: &Pool, pages: &[Page]) -> Result<Vec<(usize, Seq, TraceContext)>, StoreError> {
    let sent =
        |entry: &Entry| matches!(entry, Entry::Notification(_)).then(|| entry.through().get());
    let places: Vec<(i64, &Feed, i64)> = (0..)
        .zip(pages)
        .flat_map(|(page, read)| {
            read.entries
                .iter()
                .filter_map(sent)
                .map(move |seq| (page, &read.feed, seq))
        })
        .collect();
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let query = sqlx::query(
        "select w.page, t.seq, t.traceparent
         from unnest($1::bigint[], $2::text[], $3::bigint[]) as w (page, feed, seq)
         join traces t on t.feed = w.feed and t.seq = w.seq",
    )
    .bind(places.iter().map(|(page, ..)| *page).collect::<Vec<_>>())
    .bind(
        places
            .iter()
            .map(|(_, feed, _)| feed.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(places.iter().map(|(.., seq)| *seq).collect::<Vec<_>>());
    let mut found = Vec::new();
    for row in super::rows_within(READ_TIMEOUT, pool, query).await? {
        let trace = traces::stored(row.try_get("traceparent")?);
        let page = usize::try_from(row.try_get::<i64, _>("page")?).ok();
        if let Some((page, trace)) = page.zip(trace) {
            found.push((page, super::seq(row.try_get("seq")?)?, trace));
        }
    }
    Ok(found)
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

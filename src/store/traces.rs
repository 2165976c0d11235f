//! Traces of stored notifications. Best effort: a lost trace loses no notification.

use std::time::Duration;

use sqlx::FromRow as _;

use super::StoreError;
use super::pool::Pool;
use crate::model::feed::{Feed, Seq};
use crate::model::page::{Entry, Page};
use crate::model::trace_context::TraceContext;
use crate::telemetry::traces;

/// Trace backends have deleted a trace after this time, so a link to it is useless.
const KEPT: &str = "3 days";
/// Longest wait of a replay for traces.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// Most rows that one statement deletes.
const DELETED_MAX: i64 = 1_000;

/// Stores the traces of notifications. Locks the new rows; uses `traces_pkey`.
pub async fn store(pool: &Pool, traced: &[(Feed, Seq, TraceContext)]) -> Result<(), StoreError> {
    let feeds: Vec<_> = traced.iter().map(|(feed, ..)| feed.as_str()).collect();
    let seqs: Vec<_> = traced.iter().map(|(_, seq, _)| seq.get()).collect();
    let positions: Vec<_> = traced.iter().map(|(.., trace)| trace.to_string()).collect();
    let query = sqlx::query(
        "insert into traces (feed, seq, traceparent)
         select * from unnest($1::text[], $2::bigint[], $3::text[])
         on conflict (feed, seq) do nothing",
    );
    super::execute(pool, query.bind(feeds).bind(seqs).bind(positions)).await
}

/// Adds traces to the notifications of these pages. Adds none if that takes long, because merchants
/// wait for the pages.
pub(super) async fn add(pool: &Pool, pages: &mut [Page]) {
    // Twice: for a connection and for the rows.
    let error = match tokio::time::timeout(READ_TIMEOUT * 2, read(pool, pages)).await {
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
    tracing::warn!(error, "stored traces could not be read, so they end here");
}

/// Reads the traces of these pages: index of the page, number, position in the trace. Locks
/// nothing; uses `traces_pkey`.
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
        let (page, seq, traceparent) = <(i64, i64, &str)>::from_row(&row)?;
        let trace = traces::stored(traceparent);
        if let Some((page, trace)) = usize::try_from(page).ok().zip(trace) {
            found.push((page, super::seq(seq)?, trace));
        }
    }
    Ok(found)
}

/// Deletes expired traces; returns how many. Locks the deleted rows; uses `traces_stored_at` and
/// `traces_pkey`.
pub async fn delete_expired(pool: &Pool) -> Result<usize, StoreError> {
    let query = sqlx::query(
        "delete from traces t using (
             select feed, seq from traces where stored_at < now() - $1::interval order by stored_at limit $2) old
         where t.feed = old.feed and t.seq = old.seq
         returning t.seq",
    )
    .bind(KEPT)
    .bind(DELETED_MAX);
    Ok(super::rows(pool, query).await?.len())
}

//! Retention: the cost of an append with many stored notifications, and the removal of old ones while
//! events arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;

use crate::crowd::Crowd;
use crate::event;
use crate::ledger::Ledger;
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, names, publish_to_connected};
use crate::services::Services;
use crate::stage::Stage;

const WHO: Who = Who::Shopbell;
/// Events arrive at this rate while old ones are removed.
const PER_SECOND: f64 = 5_000.0;
/// Between two reads of the sizes.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Measures appends to an empty database and to one with `stored` notifications, then both the
/// removal of these and appends at once, for `seconds`.
pub async fn retention(
    services: &Services,
    events: usize,
    stored: usize,
    seconds: u64,
) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let stage = Stage::set(services).await?;
    let empty = append_seconds(&stage, "e", events).await?;
    figures.set_per_100k("append, empty database, s", WHO, empty, events);
    stage.strike().await?;

    let stage = Stage::set(services).await?;
    // The walk waits until the appends are measured.
    execute(
        &stage,
        "update retention set begins_at = now() + interval '1 day'",
    )
    .await?;
    store_old(&stage, stored).await?;
    let full = append_seconds(&stage, "f", events).await?;
    figures.set_per_100k(format!("append, {stored} stored, s"), WHO, full, events);
    figures.set("append, with stored to empty, %", WHO, full / empty * 100.0);
    let size = size_mb(&stage).await?;
    figures.set("size before, MB", WHO, size);

    let total = (PER_SECOND * seconds as f64) as usize;
    let ledger = Arc::new(Ledger::new(total, total));
    let _reading = Crowd::connect(&stage.server, names(MERCHANTS))
        .await?
        .read(&ledger);
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let publisher = stage.publisher().await?;
    let mut publishing =
        std::pin::pin!(publisher.publish_at("r".into(), ledger.clone(), 0..total, PER_SECOND, to));
    let append = stage.metric("shopbell_append_seconds_sum").await?;
    execute(&stage, "update retention set begins_at = now()").await?;
    let (begun, mut removal) = (Instant::now(), None);
    let mut polls = tokio::time::interval(POLL_INTERVAL);
    let mut most = size;
    loop {
        tokio::select! {
            published = &mut publishing => break published?,
            _ = polls.tick() => {
                let removed = stage.metric("shopbell_notifications_removed_total").await?;
                let elapsed = begun.elapsed().as_secs_f64();
                // The rate until the old ones are gone.
                if removed >= stored as f64 && removal.is_none() {
                    removal = Some(removed / elapsed);
                }
                most = most.max(size_mb(&stage).await?);
                eprintln!("[{elapsed:>4.0} s] {removed} removed, {} received", ledger.receipts());
            }
        }
    }
    ledger.complete().await?;
    let elapsed = begun.elapsed().as_secs_f64();
    ledger.no_fault()?;
    let removed = stage.metric("shopbell_notifications_removed_total").await?;
    figures.set(
        "removed under load, /s",
        WHO,
        removal.unwrap_or(removed / elapsed),
    );
    let append = stage.metric("shopbell_append_seconds_sum").await? - append;
    figures.set_per_100k("append during removal, s", WHO, append, total);
    figures.set_latencies("retention 5000/s", WHO, ledger.latencies_ms(|_| true));
    figures.set("most size, MB", WHO, most);
    figures.set("size after, MB", WHO, size_mb(&stage).await?);
    stage.strike().await?;
    Ok(figures)
}

/// The seconds in appends for these events.
async fn append_seconds(stage: &Stage<'_>, run: &str, events: usize) -> anyhow::Result<f64> {
    let before = stage.metric("shopbell_append_seconds_sum").await?;
    publish_to_connected(stage, run, events, MERCHANTS).await?;
    Ok(stage.metric("shopbell_append_seconds_sum").await? - before)
}

/// Stores notifications that every device acked 40 days ago, in the order of events. The indexes are
/// built afterwards, because ten million inserts into them take half an hour.
async fn store_old(stage: &Stage<'_>, stored: usize) -> anyhow::Result<()> {
    let each = stored / MERCHANTS;
    for statement in [
        "set synchronous_commit = off; set maintenance_work_mem = '1GB'".to_owned(),
        "alter table notifications drop constraint notifications_pkey,
             drop constraint notifications_identity_key"
            .to_owned(),
        "delete from feeds; delete from cursors; delete from notifications".to_owned(),
        format!(
            "insert into feeds (feed, last_seq, acked_seq, unread, unhandled)
             select 'merchant-' || m, {each}, {each}, {each}, {each} from generate_series(0, {MERCHANTS} - 1) m"
        ),
        format!(
            "insert into cursors (feed, subscriber, acked_seq)
             select 'merchant-' || m, 'merchant-' || m, {each} from generate_series(0, {MERCHANTS} - 1) m"
        ),
        format!(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, data, created_at)
             select 'merchant-' || m, s, event_identity('merchant-' || m, '/checkout', md5(m || '-' || s)), '/checkout',
                    md5(m || '-' || s), 'order.created', now(),
                    '{{\"order_id\":\"A-' || s || '\",\"total\":\"129.90\",\"currency\":\"EUR\",\"items\":3}}',
                    now() - interval '40 days' + s * interval '1 second'
             from generate_series(1, {each}) s, generate_series(0, {MERCHANTS} - 1) m"
        ),
        "alter table notifications add primary key (feed, seq)".to_owned(),
        "alter table notifications add unique (identity)".to_owned(),
        "vacuum analyze".to_owned(),
        "checkpoint".to_owned(),
    ] {
        execute(stage, &statement).await?;
    }
    Ok(())
}

/// The size of the notifications with their indexes.
async fn size_mb(stage: &Stage<'_>) -> anyhow::Result<f64> {
    let query = "select pg_total_relation_size('notifications') / 1e6::double precision";
    Ok(sqlx::query_scalar(query).fetch_one(&stage.pool).await?)
}

async fn execute(stage: &Stage<'_>, statement: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&stage.pool)
        .await?;
    Ok(())
}

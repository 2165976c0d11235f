//! Retention: the cost of an append with many stored notifications, and the removal of old ones while
//! events arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;

use crate::crowd::Crowd;
use crate::event;
use crate::ledger::Ledger;
use crate::publisher::Ids;
use crate::report::{Figures, Who, median};
use crate::scenarios::{MERCHANTS, names, publish_to_connected};
use crate::services::Services;
use crate::stage::Stage;

/// The wall time of an append with many stored notifications, divided by that to an empty database.
pub const APPEND_IN_ORDER: &str = "retention: append, of empty, ids in order of time";
pub const APPEND_RANDOM: &str = "retention: append, of empty, random ids";
/// The rate of removal until the old ones are gone, and the rate of storing meanwhile.
pub const REMOVED: &str = "retention: removed, /s";
pub const STORED: &str = "retention: stored meanwhile, events/s";
/// The table of notifications with its indexes.
pub const SIZE_BEFORE: &str = "retention: size before, MB";
pub const SIZE_MOST: &str = "retention: most size, MB";
/// Events arrive at this rate while old ones are removed.
pub const PER_SECOND: f64 = 5_000.0;
const REMOVED_METRIC: &str = "shopbell_notifications_removed_total";
const WHO: Who = Who::Shopbell;
/// Measurements of each database, in turn, because the speed of a machine varies. The median counts.
const TURNS: usize = 3;
/// Between two reads of the sizes.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Measures appends to an empty database and to one with `stored` notifications, in turn. Then
/// measures the removal of these and appends at once, for `seconds`.
pub async fn retention(
    services: &Services,
    events: usize,
    stored: usize,
    seconds: u64,
) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let (empty, full) = (Stage::set(services).await?, Stage::set(services).await?);
    // The walk waits until the appends are measured.
    let wait = "update retention set begins_at = now() + interval '1 day'";
    execute(&full, wait).await?;
    let begun = Instant::now();
    store_old(&full, stored).await?;
    eprintln!("stored {stored} in {:.0} s", begun.elapsed().as_secs_f64());
    for (ids, title) in [
        (Ids::InOrder, APPEND_IN_ORDER),
        (Ids::Random, APPEND_RANDOM),
    ] {
        let mut seconds = [vec![], vec![]];
        for turn in 0..TURNS {
            for (stage, seconds) in [&empty, &full].into_iter().zip(&mut seconds) {
                let run = format!("{ids:?}{turn}");
                seconds.push(append_seconds(stage, &run, events, ids).await?);
            }
        }
        let [empty, full] = seconds.map(|seconds| median(&seconds));
        figures.set_per_100k(format!("{title}, s of the empty one"), WHO, empty, events);
        figures.set(title, WHO, full / empty);
    }
    empty.strike().await?;
    remove_under_load(&full, stored, seconds, &mut figures).await?;
    full.strike().await?;
    Ok(figures)
}

async fn remove_under_load(
    stage: &Stage<'_>,
    stored: usize,
    seconds: u64,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let size = size_mb(stage).await?;
    let total = (PER_SECOND * seconds as f64) as usize;
    let ledger = Arc::new(Ledger::new(total, total));
    let crowd = Crowd::connect(&stage.server, names(MERCHANTS)).await?;
    let _reading = crowd.read(&ledger);
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let publisher = stage.publisher().await?.with_ids(Ids::InOrder);
    let mut publishing =
        std::pin::pin!(publisher.publish_at("r".into(), ledger.clone(), 0..total, PER_SECOND, to));
    let append = stage.metric("shopbell_append_seconds_sum").await?;
    execute(stage, "update retention set begins_at = now()").await?;
    let (begun, mut removal) = (Instant::now(), None);
    let mut polls = tokio::time::interval(POLL_INTERVAL);
    let mut most = size;
    loop {
        tokio::select! {
            published = &mut publishing => break published?,
            _ = polls.tick() => {
                let removed = stage.metric(REMOVED_METRIC).await?;
                let elapsed = begun.elapsed().as_secs_f64();
                if removed >= stored as f64 && removal.is_none() {
                    removal = Some(removed / elapsed);
                }
                let size = size_mb(stage).await?;
                most = most.max(size);
                eprintln!("[{elapsed:>4.0} s] {removed} removed, {} received, {size:.0} MB", ledger.receipts());
            }
        }
    }
    ledger.complete().await?;
    let removed = stage.metric(REMOVED_METRIC).await? / begun.elapsed().as_secs_f64();
    ledger.no_fault()?;
    let append = stage.metric("shopbell_append_seconds_sum").await? - append;
    figures.set(REMOVED, WHO, removal.unwrap_or(removed));
    figures.set(STORED, WHO, total as f64 / ledger.elapsed().as_secs_f64());
    figures.set_per_100k("retention: append during removal, s", WHO, append, total);
    figures.set_latencies("retention: 5000/s", WHO, ledger.latencies_ms(|_| true));
    let after = size_mb(stage).await?;
    figures.set(SIZE_BEFORE, WHO, size);
    figures.set(SIZE_MOST, WHO, most.max(after));
    figures.set("retention: size after, MB", WHO, after);
    Ok(())
}

/// The seconds in appends for these events.
async fn append_seconds(
    stage: &Stage<'_>,
    run: &str,
    events: usize,
    ids: Ids,
) -> anyhow::Result<f64> {
    let before = stage.metric("shopbell_append_seconds_sum").await?;
    let publisher = stage.publisher().await?.with_ids(ids);
    publish_to_connected(stage, publisher, run, events, MERCHANTS).await?;
    Ok(stage.metric("shopbell_append_seconds_sum").await? - before)
}

/// Stores notifications that every device acked 40 days ago, in the order of events. The indexes are
/// built afterwards, because ten million inserts into them take half an hour. The identities are
/// random too, but they are not those of the events.
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
             select 'merchant-' || m, s, md5(m || '-' || s)::uuid, '/checkout',
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

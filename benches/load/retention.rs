//! Retention: the cost of an append and of a replay with many stored notifications, and the removal of
//! old ones while events arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;

use crate::crowd::Crowd;
use crate::event;
use crate::ledger::Ledger;
use crate::publisher::Ids;
use crate::report::{Figures, Who, median};
use crate::scenarios::{MERCHANTS, names, publish_to_connected, replay_backlog};
use crate::services::Services;
use crate::stage::Stage;

/// The wall time of an append with many stored notifications, divided by that to an empty database.
pub const APPEND_IN_ORDER: &str = "retention: append, of empty, ids in order of time";
pub const APPEND_RANDOM: &str = "retention: append, of empty, random ids";
/// The wall time of a replay with many stored notifications, divided by that of an empty database.
pub const REPLAY: &str = "retention: replay, of empty";
/// The rate of removal until the old ones are gone, and the rate of storing meanwhile.
pub const REMOVED: &str = "retention: removed, /s";
pub const STORED: &str = "retention: stored meanwhile, events/s";
/// The table of notifications with its indexes.
pub const SIZE_BEFORE: &str = "retention: size before, MB";
pub const SIZE_MOST: &str = "retention: most size, MB";
/// The tables with a row for each feed and each cursor, which every event and ack updates.
pub const COUNTERS_MOST: &str = "retention: most size of feeds and cursors, MB";
/// Events arrive at this rate while old ones are removed.
pub const PER_SECOND: f64 = 5_000.0;
const REMOVED_METRIC: &str = "shopbell_notifications_removed_total";
const WHO: Who = Who::Shopbell;
/// Measurements of each database, in turn, because the speed of a machine varies. The median counts.
const TURNS: usize = 3;
/// Between two reads of the sizes.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Measures appends to an empty database and to one with `stored` notifications, in turn, then
/// replays. Then measures the removal of these and appends at once, for `seconds`.
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
    compare_replays(&empty, &full, events, &mut figures).await?;
    empty.strike().await?;
    remove_under_load(&full, stored, seconds, &mut figures).await?;
    full.strike().await?;
    Ok(figures)
}

/// Measures replays of a backlog from both databases, in turn.
async fn compare_replays(
    empty: &Stage<'_>,
    full: &Stage<'_>,
    events: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut seconds = [vec![], vec![]];
    for turn in 0..TURNS {
        for (stage, seconds) in [empty, full].into_iter().zip(&mut seconds) {
            let run = replay_backlog(stage, &format!("replay{turn}"), events, MERCHANTS).await?;
            seconds.push(run.elapsed.as_secs_f64());
        }
    }
    let [of_empty, of_full] = seconds.map(|seconds| median(&seconds));
    figures.set(
        "retention: replay of the empty one, events/s",
        WHO,
        events as f64 / of_empty,
    );
    figures.set(REPLAY, WHO, of_full / of_empty);
    Ok(())
}

async fn remove_under_load(
    stage: &Stage<'_>,
    stored: usize,
    seconds: u64,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let size = size_mb(stage, "notifications").await?;
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
    let (mut most, mut counters_most) = (size, 0.0_f64);
    loop {
        tokio::select! {
            published = &mut publishing => break published?,
            _ = polls.tick() => {
                let removed = stage.metric(REMOVED_METRIC).await?;
                let elapsed = begun.elapsed().as_secs_f64();
                if removed >= stored as f64 && removal.is_none() {
                    removal = Some(removed / elapsed);
                }
                let size = size_mb(stage, "notifications").await?;
                most = most.max(size);
                let counters = counters_mb(stage).await?;
                counters_most = counters_most.max(counters);
                eprintln!(
                    "[{elapsed:>4.0} s] {removed} removed, {} received, {size:.0} MB, feeds and cursors {counters:.1} MB",
                    ledger.receipts()
                );
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
    let after = size_mb(stage, "notifications").await?;
    figures.set(SIZE_BEFORE, WHO, size);
    figures.set(SIZE_MOST, WHO, most.max(after));
    figures.set("retention: size after, MB", WHO, after);
    figures.set(
        COUNTERS_MOST,
        WHO,
        counters_most.max(counters_mb(stage).await?),
    );
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

/// The size of a table with its indexes.
async fn size_mb(stage: &Stage<'_>, table: &str) -> anyhow::Result<f64> {
    let query = "select pg_total_relation_size($1::regclass) / 1e6::double precision";
    let size = sqlx::query_scalar(query).bind(table);
    Ok(size.fetch_one(&stage.pool).await?)
}

async fn counters_mb(stage: &Stage<'_>) -> anyhow::Result<f64> {
    Ok(size_mb(stage, "feeds").await? + size_mb(stage, "cursors").await?)
}

async fn execute(stage: &Stage<'_>, statement: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&stage.pool)
        .await?;
    Ok(())
}

//! S: the cost of an event with few and many stored notifications, for few and many recipients.

use std::path::Path;

use anyhow::{Context, ensure};
use sqlx::AssertSqlSafe;

use crate::event;
use crate::report::{Figures, Who};
use crate::scenarios::{publish_to_connected, replay_backlog};
use crate::services::Services;
use crate::stage::Stage;

const RECIPIENTS: [(usize, &str); 2] = [(1_000, "1,000"), (10_000, "10,000")];
const STORED: [(usize, &str); 3] = [
    (10_000, "10,000"),
    (100_000, "100,000"),
    (1_000_000, "1,000,000"),
];
const WHO: Who = Who::Shopbell;

/// T and R in each cell. The plans of the last one go to `output`.
pub async fn all(services: &Services, events: usize, output: &Path) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    for (recipients, recipients_title) in RECIPIENTS {
        for (stored, stored_title) in STORED {
            let stage = Stage::set(services).await?;
            store_before(&stage, stored, recipients).await?;
            let scans = sequential_scans(&stage).await?;
            let publisher = stage.publisher().await?;
            let t = publish_to_connected(&stage, publisher, "t", events, recipients).await?;
            let r = replay_backlog(&stage, "r", events, recipients).await?;
            let cell = format!("S {stored_title} stored, {recipients_title} recipients");
            figures.set(
                format!("{cell}, T events/s"),
                WHO,
                events as f64 / t.elapsed.as_secs_f64(),
            );
            figures.set_per_100k(format!("{cell}, T server CPU-s"), WHO, t.cpu.sum(), events);
            figures.set_per_100k(
                format!("{cell}, T Postgres CPU-s"),
                WHO,
                t.cpu.of("Postgres"),
                events,
            );
            figures.set(
                format!("{cell}, R events/s"),
                WHO,
                events as f64 / r.elapsed.as_secs_f64(),
            );
            figures.set_per_100k(format!("{cell}, R server CPU-s"), WHO, r.cpu.sum(), events);
            figures.set_per_100k(
                format!("{cell}, R Postgres CPU-s"),
                WHO,
                r.cpu.of("Postgres"),
                events,
            );
            if (stored, recipients) == (1_000_000, 10_000) {
                std::fs::write(output.join("plans.txt"), plans(&stage).await?)?;
            }
            end_connections(&stage).await?;
            let scans = sequential_scans(&stage).await? - scans;
            ensure!(
                scans == 0,
                "{cell}: notifications were scanned as a whole {scans} times"
            );
            stage.strike().await?;
        }
    }
    Ok(figures)
}

/// This many notifications, all delivered long ago, evenly over the recipients.
async fn store_before(stage: &Stage<'_>, stored: usize, recipients: usize) -> anyhow::Result<()> {
    let data = String::from_utf8(event::order("b", 0, "merchant"))?;
    let data = data
        .split_once(r#""data":"#)
        .and_then(|(_, data)| data.strip_suffix('}'))
        .context("an event has data")?;
    let each = stored / recipients;
    let statements = [
        format!(
            "insert into feeds select 'merchant-' || m, {each}, {each}, {each}, {each} from generate_series(0, {recipients} - 1) m"
        ),
        format!(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, data)
             select 'merchant-' || m, s, event_identity('merchant-' || m, '/checkout', 'b-' || m || '-' || s), '/checkout',
                    'b-' || m || '-' || s, 'order.created', now(), '{data}'
             from generate_series(1, {each}) s, generate_series(0, {recipients} - 1) m"
        ),
        format!(
            "insert into cursors select 'merchant-' || m, 'merchant-' || m, '', {each} from generate_series(0, {recipients} - 1) m"
        ),
        "vacuum analyze".to_owned(),
        "checkpoint".to_owned(),
    ];
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&stage.pool)
            .await?;
    }
    Ok(())
}

/// Ends the service's connections to Postgres, which it opens again. Each reports its statistics up
/// to ten seconds after its last statement, or at its end.
async fn end_connections(stage: &Stage<'_>) -> anyhow::Result<()> {
    const PATIENCE_MS: i64 = 10_000;
    let end = "select coalesce(bool_and(pg_terminate_backend(pid, $1)), true) from pg_stat_activity
               where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";
    let ended: bool = sqlx::query_scalar(end)
        .bind(PATIENCE_MS)
        .fetch_one(&stage.pool)
        .await?;
    ensure!(ended, "a connection to Postgres does not end");
    Ok(())
}

/// Scans of all notifications by Postgres although an index would do, as far as connections have
/// reported them.
async fn sequential_scans(stage: &Stage<'_>) -> anyhow::Result<i64> {
    let query = "select coalesce(sum(seq_scan), 0)::bigint from pg_stat_user_tables where relname = 'notifications'";
    Ok(sqlx::query_scalar(query).fetch_one(&stage.pool).await?)
}

/// The plan of each of the service's statements, from `auto_explain`, while events were stored,
/// acknowledged and replayed. Fails if one reads a growing table as a whole.
async fn plans(stage: &Stage<'_>) -> anyhow::Result<String> {
    const EVENTS: usize = 2_000;
    stage.services.explain(true).await?;
    let publisher = stage.publisher().await?;
    publish_to_connected(stage, publisher, "p", EVENTS, EVENTS).await?;
    replay_backlog(stage, "q", EVENTS, EVENTS).await?;
    stage.services.explain(false).await?;
    let plans = stage.services.explained()?;
    for table in ["notifications", "cursors"] {
        ensure!(
            !plans.contains(&format!("Seq Scan on {table}")),
            "a statement reads {table} as a whole:\n{plans}"
        );
    }
    Ok(plans)
}

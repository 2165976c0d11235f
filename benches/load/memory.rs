//! C: the memory of a session before and after traffic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;

use crate::crowd::{Crowd, stream_in};
use crate::goals::{AFTER_ALL, AFTER_BROADCAST, AFTER_BURST, AFTER_WINDOW};
use crate::ledger::Ledger;
use crate::measure::{peak_rss_bytes, reset_peak_rss, rss_bytes};
use crate::report::{Figures, Who};
use crate::scenarios::{names, settled_rss};
use crate::services::Services;
use crate::stage::Stage;

/// The largest event that is always allowed.
const BROADCAST_BYTES: usize = 64 * 1024;
/// The default of `SHOPBELL_WINDOW`.
const WINDOW: usize = 256;
/// Bound for the release of memory, and the interval of its checks.
const GIVEN_BACK_IN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const WHO: Who = Who::Shopbell;
const BURST_PEAK: &str = "C most KiB a session, in a burst of replays";

/// The memory of this many sessions: idle, after a large broadcast, and after each has replayed a
/// window of small notifications. The growth of the process itself counts too. The sessions connect
/// a few at a time, because connections without a session have a budget of their own.
pub async fn after_traffic(services: &Services, sessions: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let empty = settled_rss(stage.pid()).await?;
    let crowd = Crowd::connect(&stage.server, names(sessions)).await?;
    let idle = settled_rss(stage.pid()).await? - empty;
    let mut figures = Figures::default();
    let mut set = |what, grown: f64| {
        figures.set(
            format!("{what}, KiB"),
            WHO,
            grown / 1024.0 / sessions as f64,
        );
        figures.set(what, WHO, grown / idle);
    };

    let ledger = Arc::new(Ledger::new(1, sessions));
    let reading = crowd.read(&ledger);
    let publisher = stage.publisher().await?.with_event_bytes(BROADCAST_BYTES);
    publisher
        .publish_all("m", &ledger, 0..1, |_| "all".into())
        .await?;
    publisher.close().await;
    ledger.complete().await?;
    stage.settled().await?;
    set(
        AFTER_BROADCAST,
        given_back(&stage, empty + idle).await? - empty,
    );
    drop(reading);
    stage.sessions_are(0).await?;

    let ledger = Arc::new(Ledger::new(WINDOW, WINDOW * sessions));
    let publisher = stage.publisher().await?;
    publisher
        .publish_all("w", &ledger, 0..WINDOW, |_| "all".into())
        .await?;
    publisher.close().await;
    stage.stored(1 + WINDOW).await?;
    let _reading = stream_in(&stage.server, names(sessions), &ledger);
    ledger.complete().await?;
    stage.settled().await?;
    set(
        AFTER_WINDOW,
        given_back(&stage, empty + idle).await? - empty,
    );
    stage.balanced(1 + WINDOW).await?;
    stage.strike().await?;
    Ok(figures)
}

/// The memory of this many sessions after each has replayed a window of its own, and after all have
/// gone. The growth of the process itself counts too. The sessions connect a few at a time, because
/// connections without a session have a budget of their own.
pub async fn after_burst(services: &Services, sessions: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let empty = settled_rss(stage.pid()).await?;
    store_windows(&stage, sessions).await?;
    let mut figures = Figures::default();
    let mut set = |what, grown: f64| figures.set(what, WHO, grown / 1024.0 / sessions as f64);
    reset_peak_rss(stage.pid())?;
    let ledger = Arc::new(Ledger::new(WINDOW * sessions, WINDOW * sessions));
    let reading = stream_in(&stage.server, names(sessions), &ledger);
    ledger.complete().await?;
    stage.settled().await?;
    set(BURST_PEAK, peak_rss_bytes(stage.pid())? - empty);
    set(AFTER_BURST, given_back(&stage, empty).await? - empty);
    drop(reading);
    stage.sessions_are(0).await?;
    set(AFTER_ALL, given_back(&stage, empty).await? - empty);
    stage.strike().await?;
    Ok(figures)
}

/// A window of unacked notifications for each of the first merchants.
async fn store_windows(stage: &Stage<'_>, merchants: usize) -> anyhow::Result<()> {
    for statement in [
        format!(
            "insert into feeds (feed, last_seq, acked_seq, unread, unhandled)
             select 'merchant-' || m, {WINDOW}, 0, {WINDOW}, {WINDOW} from generate_series(0, {merchants} - 1) m"
        ),
        format!(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, data)
             select 'merchant-' || m, s, md5(m || '-' || s)::uuid, '/checkout', 'b-' || m * {WINDOW} + s - 1, 'order.created',
                    now(), '{{\"customer\":\"' || repeat('x', 250) || '\"}}'
             from generate_series(0, {merchants} - 1) m, generate_series(1, {WINDOW}) s"
        ),
        "vacuum analyze".to_owned(),
        "checkpoint".to_owned(),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&stage.pool)
            .await?;
    }
    Ok(())
}

/// The least memory of the process within its bound, or as soon as it is back at `idle`.
async fn given_back(stage: &Stage<'_>, idle: f64) -> anyhow::Result<f64> {
    let (begun, mut least) = (Instant::now(), f64::INFINITY);
    while begun.elapsed() < GIVEN_BACK_IN && least > idle {
        least = least.min(rss_bytes(stage.pid())?);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(least)
}

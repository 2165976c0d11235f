//! C: the memory of a session before and after traffic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crowd::{Crowd, stream_in};
use crate::ledger::Ledger;
use crate::measure::rss_bytes;
use crate::report::{AFTER_BROADCAST, AFTER_WINDOW, Figures, Who};
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

/// The least memory of the process within its bound, or as soon as it is back at `idle`.
async fn given_back(stage: &Stage<'_>, idle: f64) -> anyhow::Result<f64> {
    let (begun, mut least) = (Instant::now(), f64::INFINITY);
    while begun.elapsed() < GIVEN_BACK_IN && least > idle {
        least = least.min(rss_bytes(stage.pid())?);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(least)
}

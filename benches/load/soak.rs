//! Whether memory is constant over a long run at a steady rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crowd::Crowd;
use crate::event;
use crate::ledger::Ledger;
use crate::measure::rss_bytes;
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, names};
use crate::services::Services;
use crate::stage::Stage;

/// The most memory in the first minute.
pub const WARM_UP: &str = "soak: most RSS in the first minute, MB";
/// The most memory after it.
pub const AFTER: &str = "soak: most RSS after it, MB";
const PER_SECOND: f64 = 2_000.0;
/// By then every buffer has its size.
const WARM: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The most memory in the first minute, and after it.
pub async fn soak(services: &Services, seconds: u64) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let events = (PER_SECOND * seconds as f64) as usize;
    let ledger = Arc::new(Ledger::new(events, events));
    let _reading = Crowd::connect(&stage.server, names(MERCHANTS))
        .await?
        .read(&ledger);
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let (begun, mut warm, mut after) = (Instant::now(), 0.0_f64, 0.0_f64);
    let mut publishing = std::pin::pin!(stage.publisher().await?.publish_at(
        "k".into(),
        ledger.clone(),
        0..events,
        PER_SECOND,
        to
    ));
    let mut polls = tokio::time::interval(POLL_INTERVAL);
    loop {
        tokio::select! {
            published = &mut publishing => break published?,
            _ = polls.tick() => {
                let rss = rss_bytes(stage.pid())?;
                let most = if begun.elapsed() < WARM { &mut warm } else { &mut after };
                *most = most.max(rss);
                eprintln!("[{:>4} s] {} received, {:.1} MB", begun.elapsed().as_secs(), ledger.receipts(), rss / 1e6);
            }
        }
    }
    ledger.complete().await?;
    stage.balanced(events).await?;
    let mut figures = Figures::default();
    figures.set(WARM_UP, Who::Shopbell, warm / 1e6);
    figures.set(AFTER, Who::Shopbell, after / 1e6);
    figures.set_latencies("soak 2000/s", Who::Shopbell, ledger.latencies_ms(|_| true));
    stage.strike().await?;
    Ok(figures)
}

//! Publishers that are faster than the service, while a tenth of the merchants read slowly.
//!
//! A quiet part of the same load comes before and after. RabbitMQ keeps the surplus of events, so the
//! overload ends when the service has stored them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::interval;

use crate::crowd::{Crowd, Pace};
use crate::event;
use crate::ledger::Ledger;
use crate::measure::rss_bytes;
use crate::report::{Figures, Who};
use crate::scenarios::names;
use crate::services::Services;
use crate::stage::Stage;

/// The most memory in the first minute.
pub const WARM_UP: &str = "overload: most RSS in the first minute, MB";
/// The most memory after it.
pub const AFTER: &str = "overload: most RSS after it, MB";
/// The latency of the quiet part before, and at the end of the bound after the overload.
pub const LATENCY_BEFORE: &str = "overload: p99 ms of the worst second before";
pub const LATENCY_AFTER: &str = "overload: p99 ms in second 5 after";
/// Merchants that read as fast as they can, and slow ones.
const FAST: usize = 900;
const SLOW: usize = 100;
/// Wait of a slow merchant before each message: less than half of its events in the overload.
const SLOW_WAIT: Duration = Duration::from_millis(250);
/// Publishers of the overload. Each has merchants of its own, so that their order is defined.
const PUBLISHERS: usize = 2;
/// Room for the events of a faster machine than any that was seen.
const EVENTS_PER_SECOND_MAX: usize = 60_000;
/// The load before and after.
const QUIET_PER_SECOND: usize = 500;
const QUIET_SECONDS: usize = 20;
/// Seconds until latency must be as before ([`LATENCY_AFTER`]).
const NORMAL_WITHIN_SECONDS: usize = 5;
/// By then every buffer has its size.
const WARM: Duration = Duration::from_secs(60);
/// Bound for the surplus, in lengths of the overload.
const STORED_WITHIN: u32 = 10;
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Measures memory during the overload, and latency after it. Fails if an event is lost.
pub async fn overload(services: &Services, duration: Duration) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let quiet = QUIET_PER_SECOND * QUIET_SECONDS;
    let most = 2 * quiet + EVENTS_PER_SECOND_MAX * duration.as_secs() as usize;
    let ledger = Arc::new(Ledger::new(most, most));
    let mut all = names(FAST + SLOW);
    let slow_names = all.split_off(FAST);
    let _fast = Crowd::connect(&stage.server, all).await?.read(&ledger);
    let pace = Pace::default();
    let _slow = Crowd::connect(&stage.server, slow_names)
        .await?
        .read_at(&pace, &ledger);

    publish_quietly(&stage, &ledger, 0).await?;
    ledger.reach(quiet).await?;
    let before = worst_second(&ledger, 0);

    pace.set(SLOW_WAIT);
    let first = quiet;
    let published = Arc::new(AtomicUsize::new(0));
    let publishing = publish_too_fast(&stage, &ledger, first..most - quiet, duration, &published);
    let mut memory = Memory::default();
    let surplus = async {
        publishing.await?;
        let overload = published.load(Ordering::Relaxed);
        let stored = stage.metric("shopbell_events_stored_total").await? as usize - quiet;
        let ended = Instant::now();
        stage
            .stored_within(quiet + overload, STORED_WITHIN * duration)
            .await?;
        anyhow::Ok((overload, stored, ended.elapsed()))
    };
    let (overload, stored, caught_up) = tokio::select! {
        done = surplus => done?,
        Err(error) = sample_memory(&stage, &mut memory, &published, quiet) => return Err(error),
    };
    let backlog = overload - stored;
    pace.set(Duration::ZERO);

    let after = most - quiet;
    publish_quietly(&stage, &ledger, after).await?;
    ledger.reach(2 * quiet + overload).await?;
    stage.balanced(2 * quiet + overload).await?;
    let mut figures = Figures::default();
    let mut set = |what: &str, value: f64| figures.set(what, Who::Shopbell, value);
    let seconds = duration.as_secs_f64();
    set("overload: events/s published", overload as f64 / seconds);
    set("overload: events/s stored", stored as f64 / seconds);
    set(
        "overload: events that waited in RabbitMQ at its end",
        backlog as f64,
    );
    set(
        "overload: seconds until they were stored",
        caught_up.as_secs_f64(),
    );
    set(WARM_UP, memory.warm / 1e6);
    set(AFTER, memory.after / 1e6);
    set(LATENCY_BEFORE, before);
    for second in 0..NORMAL_WITHIN_SECONDS {
        let p99 = p99_of_second(&ledger, after, second);
        set(&format!("overload: p99 ms in second {second} after"), p99);
    }
    set(
        LATENCY_AFTER,
        p99_of_second(&ledger, after, NORMAL_WITHIN_SECONDS),
    );
    stage.strike().await?;
    Ok(figures)
}

/// The merchant of an event. Each publisher has merchants of its own, fast and slow ones.
fn merchant(index: usize) -> String {
    event::merchant(index % (FAST + SLOW))
}

async fn publish_quietly(
    stage: &Stage<'_>,
    ledger: &Arc<Ledger>,
    first: usize,
) -> anyhow::Result<()> {
    let indices = first..first + QUIET_PER_SECOND * QUIET_SECONDS;
    let publisher = stage.publisher().await?;
    let publishing = publisher.publish_at(
        "o".into(),
        ledger.clone(),
        indices,
        QUIET_PER_SECOND as f64,
        merchant,
    );
    publishing.await
}

/// Publishes as fast as RabbitMQ confirms.
async fn publish_too_fast(
    stage: &Stage<'_>,
    ledger: &Arc<Ledger>,
    indices: std::ops::Range<usize>,
    duration: Duration,
    published: &Arc<AtomicUsize>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..PUBLISHERS {
        let (publisher, ledger) = (stage.publisher().await?, ledger.clone());
        let (indices, published) = (indices.clone(), published.clone());
        tasks.spawn(async move {
            let own = indices.skip(number).step_by(PUBLISHERS);
            let until = own.take_while(|_| begun.elapsed() < duration).inspect(|_| {
                published.fetch_add(1, Ordering::Relaxed);
            });
            publisher.publish_all("o", &ledger, until, merchant).await?;
            publisher.close().await;
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// The most memory of Shopbell, in bytes.
#[derive(Default)]
struct Memory {
    warm: f64,
    after: f64,
}

/// Runs until it is dropped.
async fn sample_memory(
    stage: &Stage<'_>,
    memory: &mut Memory,
    published: &AtomicUsize,
    quiet: usize,
) -> anyhow::Result<Infallible> {
    let (begun, mut polls) = (Instant::now(), interval(POLL_INTERVAL));
    loop {
        polls.tick().await;
        let rss = rss_bytes(stage.pid())?;
        let most = if begun.elapsed() < WARM {
            &mut memory.warm
        } else {
            &mut memory.after
        };
        *most = most.max(rss);
        if begun.elapsed().as_secs().is_multiple_of(10) {
            let stored = stage.metric("shopbell_events_stored_total").await? as usize - quiet;
            let published = published.load(Ordering::Relaxed);
            eprintln!(
                "[{:>4} s] {published} published, {stored} stored, {:.1} MB",
                begun.elapsed().as_secs(),
                rss / 1e6
            );
        }
    }
}

/// The highest p99 of the seconds of a quiet part, in milliseconds, without the first seconds.
fn worst_second(ledger: &Ledger, first: usize) -> f64 {
    (3..QUIET_SECONDS)
        .map(|second| p99_of_second(ledger, first, second))
        .fold(0.0, f64::max)
}

/// Of the fast merchants.
fn p99_of_second(ledger: &Ledger, first: usize, second: usize) -> f64 {
    let begin = first + second * QUIET_PER_SECOND;
    let of_second = begin..begin + QUIET_PER_SECOND;
    let is_fast = |index: usize| index % (FAST + SLOW) < FAST;
    ledger.latencies_ms(|index| of_second.contains(&index) && is_fast(index))["p99"]
}

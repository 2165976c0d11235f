//! The measurements of Shopbell. `peers` measures the same of its peers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crowd::{Crowd, storm};
use crate::event;
use crate::ledger::Ledger;
use crate::measure::{Cpu, Processes, own_cpu_seconds, peak_rss_bytes, reset_peak_rss, rss_bytes};
use crate::publisher::Publisher;
use crate::report::{Figures, Who};
use crate::services::Services;
use crate::stage::Stage;
use crate::wire::Server;

/// The default number of recipients.
pub const MERCHANTS: usize = 1_000;
/// The length of a latency measurement, after a warm-up of connections, plans and caches.
const OPEN_LOOP_SECONDS: usize = 20;
const WARM_SECONDS: usize = 3;
/// Memory is read if it has not changed for so long.
const SETTLED: Duration = Duration::from_millis(500);
const MEGABYTE: f64 = 1e6;
const WHO: Who = Who::Shopbell;

/// The first merchants.
pub fn names(count: usize) -> Vec<String> {
    (0..count).map(event::merchant).collect()
}

/// The number of events in an open loop.
pub fn open_loop_events(per_second: usize) -> usize {
    per_second * (WARM_SECONDS + OPEN_LOOP_SECONDS)
}

/// Whether an event of the open loop counts.
pub fn is_warm(index: usize, per_second: usize) -> bool {
    index >= per_second * WARM_SECONDS
}

/// T: as fast as RabbitMQ confirms, to connected merchants who acknowledge each.
pub async fn throughput(services: &Services, events: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let mut figures = Figures::default();
    reset_peak_rss(stage.pid())?;
    let own = own_cpu_seconds()?;
    let publisher = stage.publisher().await?;
    let run = publish_to_connected(&stage, publisher, "t", events, MERCHANTS).await?;
    stage.balanced(events).await?;
    figures.set("T events/s", WHO, events as f64 / run.elapsed.as_secs_f64());
    for (process, seconds) in run.cpu.each() {
        figures.set_per_100k(format!("T {process} CPU-s"), WHO, seconds, events);
    }
    figures.set_per_100k("T all server CPU-s", WHO, run.cpu.sum(), events);
    figures.set_per_100k(
        "T publisher and clients CPU-s",
        WHO,
        own_cpu_seconds()? - own,
        events,
    );
    figures.set(
        "T peak RSS, MB",
        WHO,
        peak_rss_bytes(stage.pid())? / MEGABYTE,
    );
    stage.strike().await?;
    Ok(figures)
}

/// The cost of one run.
pub struct Run {
    pub elapsed: Duration,
    pub cpu: Cpu,
}

/// Publishes to connected merchants in turn, until every ack is in the database.
pub async fn publish_to_connected(
    stage: &Stage<'_>,
    publisher: Publisher,
    run: &str,
    events: usize,
    merchants: usize,
) -> anyhow::Result<Run> {
    let ledger = Arc::new(Ledger::new(events, events));
    let _reading = Crowd::connect(&stage.server, names(merchants))
        .await?
        .read(&ledger);
    let cpu = stage.processes().cpu()?;
    publisher
        .publish_all(run, &ledger, 0..events, |index| {
            event::merchant(index % merchants)
        })
        .await?;
    ledger.complete().await?;
    stage.settled().await?;
    let cpu = stage.processes().cpu()?.since(&cpu);
    ledger.no_fault()?;
    publisher.close().await;
    Ok(Run {
        elapsed: ledger.elapsed(),
        cpu,
    })
}

/// L: an open loop, from publish to receipt.
pub async fn latency(services: &Services, per_second: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let publisher = stage.publisher().await?;
    let processes = stage.processes();
    let figures = open_loop(WHO, &stage.server, publisher, &processes, per_second).await?;
    stage.balanced(open_loop_events(per_second)).await?;
    stage.strike().await?;
    Ok(figures)
}

/// Publishes at a steady rate to connected merchants of any server. Returns the latencies, and the
/// processor time of these processes.
pub async fn open_loop(
    who: Who,
    server: &Server,
    publisher: Publisher,
    processes: &Processes,
    per_second: usize,
) -> anyhow::Result<Figures> {
    let events = open_loop_events(per_second);
    let ledger = Arc::new(Ledger::new(events, events));
    let _reading = Crowd::connect(server, names(MERCHANTS))
        .await?
        .read(&ledger);
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let cpu = processes.cpu()?;
    publisher
        .publish_at("l".into(), ledger.clone(), 0..events, per_second as f64, to)
        .await?;
    ledger.complete().await?;
    let cpu = processes.cpu()?.since(&cpu);
    let mut figures = Figures::default();
    let warm = ledger.latencies_ms(|index| is_warm(index, per_second));
    figures.set_latencies(&format!("L {per_second}/s"), who, warm);
    for (process, seconds) in cpu.each() {
        let what = format!("L {per_second}/s, {process} CPU-s");
        figures.set_per_100k(what, who, seconds, events);
    }
    Ok(figures)
}

/// H: the same at 2,000/s, of which one merchant gets half.
pub async fn hot(services: &Services) -> anyhow::Result<Figures> {
    const PER_SECOND: usize = 2_000;
    let stage = Stage::set(services).await?;
    let events = open_loop_events(PER_SECOND);
    let ledger = Arc::new(Ledger::new(events, events));
    let _reading = Crowd::connect(&stage.server, names(MERCHANTS))
        .await?
        .read(&ledger);
    let is_hot = |index: usize| index.is_multiple_of(2);
    let to = move |index: usize| {
        event::merchant(if is_hot(index) {
            0
        } else {
            1 + index / 2 % (MERCHANTS - 1)
        })
    };
    stage
        .publisher()
        .await?
        .publish_at("h".into(), ledger.clone(), 0..events, PER_SECOND as f64, to)
        .await?;
    ledger.complete().await?;
    stage.balanced(events).await?;
    let mut figures = Figures::default();
    figures.set_latencies(
        "H others",
        WHO,
        ledger.latencies_ms(|index| is_warm(index, PER_SECOND) && !is_hot(index)),
    );
    figures.set_latencies(
        "H hot merchant",
        WHO,
        ledger.latencies_ms(|index| is_warm(index, PER_SECOND) && is_hot(index)),
    );
    stage.strike().await?;
    Ok(figures)
}

/// R: merchants with a backlog who connect all at once.
pub async fn replay(services: &Services, events: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let run = replay_backlog(&stage, "r", events, MERCHANTS).await?;
    stage.balanced(events).await?;
    let mut figures = Figures::default();
    figures.set("R events/s", WHO, events as f64 / run.elapsed.as_secs_f64());
    for (process, seconds) in run.cpu.each() {
        figures.set_per_100k(format!("R {process} CPU-s"), WHO, seconds, events);
    }
    figures.set_per_100k("R all server CPU-s", WHO, run.cpu.sum(), events);
    let (pages, queries) = ("shopbell_pages_read_total", "shopbell_page_queries_total");
    figures.set("R pages", WHO, stage.metric(pages).await?);
    figures.set(
        "R pages a query",
        WHO,
        stage.metric(pages).await? / stage.metric(queries).await?,
    );
    figures.set(
        "R peak RSS, MB",
        WHO,
        peak_rss_bytes(stage.pid())? / MEGABYTE,
    );
    stage.strike().await?;
    Ok(figures)
}

/// Publishes while no merchant is connected, then all merchants connect at once.
pub async fn replay_backlog(
    stage: &Stage<'_>,
    run: &str,
    events: usize,
    merchants: usize,
) -> anyhow::Result<Run> {
    let stored_before = stage.metric("shopbell_events_stored_total").await? as usize;
    let ledger = Arc::new(Ledger::new(events, events));
    let publisher = stage.publisher().await?;
    publisher
        .publish_all(run, &ledger, 0..events, |index| {
            event::merchant(index % merchants)
        })
        .await?;
    publisher.close().await;
    stage.stored(stored_before + events).await?;
    reset_peak_rss(stage.pid())?;
    let (cpu, begun) = (stage.processes().cpu()?, Instant::now());
    let _reading = storm(&stage.server, names(merchants), &ledger);
    ledger.complete().await?;
    stage.settled().await?;
    let cpu = stage.processes().cpu()?.since(&cpu);
    ledger.no_fault()?;
    Ok(Run {
        elapsed: ledger.elapsed_since(begun),
        cpu,
    })
}

/// C: idle connections, then an event to each. B: then one to everyone.
pub async fn idle(services: &Services, connections: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let rss = settled_rss(stage.pid()).await?;
    let (cpu, begun) = (stage.processes().cpu()?, Instant::now());
    let crowd = Crowd::connect(&stage.server, names(connections)).await?;
    let mut figures = Figures::default();
    figures.set(
        "C connects/s",
        WHO,
        connections as f64 / begun.elapsed().as_secs_f64(),
    );
    let connecting = stage.processes().cpu()?.since(&cpu).sum() * 10_000.0 / connections as f64;
    figures.set("C server CPU-s per 10,000 connects", WHO, connecting);
    figures.set(
        "C KiB a connection",
        WHO,
        (settled_rss(stage.pid()).await? - rss) / 1024.0 / connections as f64,
    );

    let ledger = Arc::new(Ledger::new(connections + 1, 2 * connections));
    let _reading = crowd.read(&ledger);
    let publisher = stage.publisher().await?;
    let begun = Instant::now();
    publisher
        .publish_all("c", &ledger, 0..connections, event::merchant)
        .await?;
    ledger.reach(connections).await?;
    figures.set(
        "C seconds until each has one event",
        WHO,
        ledger.elapsed_since(begun).as_secs_f64(),
    );

    let begun = Instant::now();
    publisher
        .publish_all("c", &ledger, connections..connections + 1, |_| {
            event::EVERYONE.into()
        })
        .await?;
    ledger.complete().await?;
    figures.set(
        "B seconds to all",
        WHO,
        ledger.elapsed_since(begun).as_secs_f64(),
    );
    stage.balanced(connections + 1).await?;
    publisher.close().await;
    stage.strike().await?;
    Ok(figures)
}

/// Memory that no longer changes.
pub async fn settled_rss(pid: u32) -> anyhow::Result<f64> {
    let mut before = rss_bytes(pid)?;
    loop {
        tokio::time::sleep(SETTLED).await;
        let now = rss_bytes(pid)?;
        if (now - before).abs() < 0.01 * before {
            return Ok(now);
        }
        before = now;
    }
}

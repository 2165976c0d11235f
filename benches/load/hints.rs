//! Hints with many gateways: the cost of whole and of lean ones. All merchants are connected to one
//! gateway. The other gateways serve no recipient, and the stage itself ingests.

use std::sync::Arc;

use crate::crowd::Crowd;
use crate::event;
use crate::ledger::Ledger;
use crate::measure::{Cpu, Processes};
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, names};
use crate::services::{SentBytes, Services};
use crate::stage::{Gateway, Stage};
use crate::wire::Server;

/// How much less lean hints cost.
pub const BYTES_SAVED: &str = "hints: bytes to a gateway without recipients, whole of lean";
/// See [`BYTES_SAVED`].
pub const CPU_SAVED: &str = "hints: CPU-s of a gateway without recipients, whole of lean";
/// The rate of the events.
const PER_SECOND: usize = 10_000;
/// The rate and the length of the measurement of latencies.
const QUIET_PER_SECOND: usize = 200;
const QUIET_SECONDS: usize = 10;
const INVOLVED: &str = "gateway with the recipients";
const OTHERS: &str = "other gateways";

/// Publishes so many events with whole hints, and as many with lean ones, to `gateways` gateways.
pub async fn hints(services: &Services, gateways: usize, events: usize) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let whole = measure(services, gateways, events, "whole", 0, &mut figures).await?;
    let lean = measure(services, gateways, events, "lean", 1, &mut figures).await?;
    figures.set(BYTES_SAVED, Who::Shopbell, whole.bytes / lean.bytes);
    figures.set(CPU_SAVED, Who::Shopbell, whole.cpu / lean.cpu);
    Ok(figures)
}

/// The cost of one gateway without recipients, for 100,000 events.
struct Cost {
    bytes: f64,
    cpu: f64,
}

async fn measure(
    services: &Services,
    gateways: usize,
    events: usize,
    kind: &str,
    lean_from: usize,
    figures: &mut Figures,
) -> anyhow::Result<Cost> {
    let lean_from = ("SHOPBELL_LEAN_HINTS_FROM", lean_from.to_string());
    let stage = Stage::set_with(services, &[lean_from]).await?;
    let involved = stage.gateway(None).await?;
    let mut others = Vec::new();
    for _ in 1..gateways {
        others.push(stage.gateway(None).await?);
    }
    let server = server(&stage, &involved);
    let processes = processes(&stage, &involved, &others);
    let mut set = |what: &str, value: f64| {
        figures.set(format!("hints {kind}: {what}"), Who::Shopbell, value);
    };

    let bytes = services.sent_bytes()?;
    let cpu = processes.cpu()?;
    let ledger = publish(&stage, &server, kind, events, PER_SECOND).await?;
    stage.settled().await?;
    let cpu = processes.cpu()?.since(&cpu);
    let bytes = services.sent_bytes()?.since(&bytes);
    stage.balanced(events).await?;

    let per_100k = 100_000.0 / events as f64;
    let seconds = ledger.elapsed().as_secs_f64();
    set("events/s received", events as f64 / seconds);
    let cost = cost(&cpu, &bytes, others.len(), per_100k);
    set("MB that RabbitMQ sends", bytes.all * per_100k / 1e6);
    set("MB to a gateway without recipients", cost.bytes / 1e6);
    set("CPU-s of a gateway without recipients", cost.cpu);
    for (name, seconds) in cpu.each().filter(|(name, _)| *name != OTHERS) {
        set(&format!("CPU-s of {name}"), seconds * per_100k);
    }
    let quiet = QUIET_PER_SECOND * QUIET_SECONDS;
    let run = format!("{kind}-quiet");
    let ledger = publish(&stage, &server, &run, quiet, QUIET_PER_SECOND).await?;
    for (quantile, milliseconds) in ledger.latencies_ms(|index| index >= quiet / 2) {
        let what = format!("{quantile} ms at {QUIET_PER_SECOND}/s");
        set(&what, milliseconds);
    }
    drop(others);
    drop(involved);
    stage.strike().await?;
    Ok(cost)
}

/// Publishes at a steady rate to merchants at one gateway, until each has acked all.
async fn publish(
    stage: &Stage<'_>,
    server: &Server,
    run: &str,
    events: usize,
    per_second: usize,
) -> anyhow::Result<Arc<Ledger>> {
    let ledger = Arc::new(Ledger::new(events, events));
    let _reading = Crowd::connect(server, names(MERCHANTS))
        .await?
        .read(&ledger);
    let to = |index: usize| event::merchant(index % MERCHANTS);
    let publisher = stage.publisher().await?;
    publisher
        .publish_at(
            run.to_owned(),
            ledger.clone(),
            0..events,
            per_second as f64,
            to,
        )
        .await?;
    ledger.complete().await?;
    ledger.no_fault()?;
    Ok(ledger)
}

fn cost(cpu: &Cpu, bytes: &SentBytes, others: usize, per_100k: f64) -> Cost {
    // The gateway with the recipients gets the same hints.
    let each = bytes.hints / (others + 1) as f64;
    Cost {
        bytes: each * per_100k,
        cpu: cpu.of(OTHERS) / others as f64 * per_100k,
    }
}

fn processes(stage: &Stage<'_>, involved: &Gateway, others: &[Gateway]) -> Processes {
    let processes = stage.processes().with(INVOLVED, involved.pid());
    others.iter().fold(processes, |processes, gateway| {
        processes.with(OTHERS, gateway.pid())
    })
}

/// The gateway as the server of clients.
fn server(stage: &Stage<'_>, gateway: &Gateway) -> Server {
    let mut server = stage.server.clone();
    if let Server::Shopbell { port, .. } = &mut server {
        *port = gateway.port;
    }
    server
}

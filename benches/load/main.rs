//! `make bench`: the speed of Shopbell, beside the cost of its parts alone and beside its peers.
//!
//! It uses its own real RabbitMQ and Postgres, and the release binary as a process. Publisher and
//! clients run in this process. Each receipt is checked: if a run loses, repeats or reorders an
//! event, it has an error and no figure.

#![expect(
    unreachable_pub,
    reason = "a program exports nothing: `pub` means: for the other modules"
)]

mod crowd;
mod event;
mod floors;
mod goals;
mod herd;
mod hints;
mod jetstream;
mod ledger;
mod many;
mod measure;
mod memory;
mod minimal;
mod nats;
mod overload;
mod peers;
mod publisher;
mod report;
mod retention;
mod scale;
mod scenarios;
mod services;
mod soak;
mod stage;
mod wire;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;

use self::measure::fdatasync_ms;
use self::minimal::Minimal;
use self::report::{Figures, Report};
use self::services::{Place, Services};

/// A peer gets a tenth of the idle connections, because each costs it more than ten of Shopbell's.
const PEERS_IDLE_SHARE: usize = 10;

/// The scenarios of a run without `--only`.
const ALL: &str = "F,T,L,R,C,H,S";
/// The scenarios that run with the services of `--other-root` too.
const COMPARED: [&str; 3] = ["T", "L", "R"];
/// Memory after traffic is measured with half as many, because each replays a window.
const MEMORY_SHARE: usize = 2;
/// In a burst, each has notifications of its own.
const BURST_SHARE: usize = 4;

/// Measures Shopbell.
#[derive(Debug, Parser)]
struct Arguments {
    /// The scenarios to run.
    #[arg(long, value_delimiter = ',', default_value = ALL)]
    only: Vec<String>,
    /// Rounds. The table has the medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events of T, R and the floors.
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Idle connections of C.
    #[arg(long, default_value_t = 15_000)]
    idle: usize,
    /// Without the peers.
    #[arg(long)]
    alone: bool,
    /// The length of the soak (`--only soak`).
    #[arg(long, default_value_t = 600)]
    soak_seconds: u64,
    /// Old notifications of `--only retention`.
    #[arg(long, default_value_t = 10_000_000)]
    stored: usize,
    /// The length of the removal under load (`--only retention`).
    #[arg(long, default_value_t = 600)]
    retention_seconds: u64,
    /// The length of the overload (`--only overload`).
    #[arg(long, default_value_t = 600)]
    overload_seconds: u64,
    /// Idle sessions of `--only many`.
    #[arg(long, default_value_t = 90_000)]
    sessions: usize,
    /// Gateways of `--only hints`.
    #[arg(long, default_value_t = 20)]
    gateways: usize,
    /// The directory of another Debian, as `scripts/install` prints it. T, L and R run with its
    /// RabbitMQ and Postgres too.
    #[arg(long)]
    other_root: Option<PathBuf>,
    /// The folder for the figures as JSON and the plans of Postgres.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
    /// `cargo bench` always adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Whether the goals apply. With less, for example, the memory of the process hides that of its
    /// sessions.
    fn is_full_size(&self) -> bool {
        !cfg!(debug_assertions)
            && self.events >= 100_000
            && self.idle >= 10_000
            && self.soak_seconds >= 300
            && self.stored >= 10_000_000
            && self.retention_seconds >= 120
            && self.overload_seconds >= 300
            && self.sessions >= 50_000
            && self.gateways >= 20
    }

    /// The scenarios whose goals need a figure. Some goals compare figures of several scenarios.
    fn must_measure(&self) -> Vec<String> {
        let ran = |scenario: &str| self.only.iter().any(|run| run == scenario);
        let is_whole = !self.alone && ALL.split(',').all(ran);
        let only = self.only.iter();
        only.filter(|run| is_whole || ALL.split(',').all(|other| other != *run))
            .cloned()
            .collect()
    }
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, outstanding, frames] = arguments.as_slice()
        && role == floors::BARE_SERVER
    {
        return runtime.block_on(floors::bare_server(outstanding.parse()?, frames.parse()?));
    }
    if let [_, role, database_url, amqp_url] = arguments.as_slice()
        && role == minimal::PIPELINE
    {
        return runtime.block_on(minimal::pipeline(database_url, amqp_url));
    }
    if let [_, role, port, secret, first, clients] = arguments.as_slice()
        && role == herd::HERD
    {
        let (port, first, clients) = (port.parse()?, first.parse()?, clients.parse()?);
        return runtime.block_on(herd::herd(port, secret, first, clients));
    }
    runtime.block_on(run(Arguments::parse()))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    std::fs::create_dir_all(&arguments.output)?;
    let is_large = arguments
        .only
        .iter()
        .any(|scenario| scenario == "retention");
    let services = Services::up(Place::Here, is_large).await?;
    let others = match &arguments.other_root {
        Some(root) => Some(Services::up(Place::Root(root.clone()), is_large).await?),
        None => None,
    };
    let mut versions = services.versions().await?;
    let has_peers = |scenario: &String| !peers::of(scenario).is_empty();
    if !arguments.alone && arguments.only.iter().any(has_peers) {
        match jetstream::version()? {
            Some(version) => versions = format!("{versions}, {version}"),
            None => eprintln!(
                "without NATS JetStream, because nats-server is not installed; run: scripts/install nats-server"
            ),
        }
    }
    let machine = format!(
        "{}; fdatasync {:.2} ms; {versions}",
        machine(),
        fdatasync_ms(&arguments.output)?,
    );
    let mut measured = Vec::new();
    let begun = Instant::now();
    for round in 1..=arguments.rounds {
        for scenario in &arguments.only {
            let mut figures = one(scenario, &services, &arguments).await?;
            if let Some(others) = &others
                && COMPARED.contains(&scenario.as_str())
            {
                let compared = one(scenario, others, &arguments).await?;
                figures.append(compared.of_others(&others.versions().await?));
            }
            let seconds = begun.elapsed().as_secs();
            eprintln!(
                "[{seconds:>4} s] round {round} of {}, {scenario}: {}",
                arguments.rounds,
                figures.line()
            );
            measured.push(figures);
        }
    }
    let report = Report::of(machine, arguments.rounds, measured);
    println!("{}", report.table());
    let file = arguments.output.join("figures.json");
    std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
    eprintln!("also in {}", file.display());
    if !arguments.is_full_size() {
        eprintln!("too short for goals: an unoptimised build, or less than the defaults");
        return Ok(());
    }
    let missed = report.missed();
    ensure!(missed.is_empty(), "goals missed: {}", missed.join("; "));
    let unmeasured = report.unmeasured(&arguments.must_measure());
    ensure!(
        unmeasured.is_empty(),
        "goals without a figure: {}",
        unmeasured.join("; ")
    );
    Ok(())
}

async fn one(
    scenario: &str,
    services: &Services,
    arguments: &Arguments,
) -> anyhow::Result<Figures> {
    let events = arguments.events;
    let peers = if arguments.alone {
        &[]
    } else {
        peers::of(scenario)
    };
    let mut figures = Figures::default();
    match scenario {
        "F" => {
            figures.append(floors::rabbitmq(services, events).await?);
            figures.append(floors::postgres(services, events).await?);
            figures.append(floors::websocket(events).await?);
        }
        "T" => {
            figures.append(scenarios::throughput(services, events).await?);
            if !arguments.alone {
                let minimal = Minimal::start(services).await?;
                figures.append(minimal.throughput(events).await?);
                minimal.stop().await?;
            }
            figures.append(
                peers::each(peers, services, async |peer| peer.throughput(events).await).await?,
            );
        }
        "L" => {
            figures.append(floors::rabbitmq_latency(services, 500).await?);
            for per_second in [500, 2_000] {
                figures.append(scenarios::latency(services, per_second).await?);
                if !arguments.alone {
                    let minimal = Minimal::start(services).await?;
                    figures.append(minimal.latency(per_second).await?);
                    minimal.stop().await?;
                }
                figures.append(
                    peers::each(peers, services, async |peer| peer.latency(per_second).await)
                        .await?,
                );
            }
        }
        "R" => {
            figures.append(scenarios::replay(services, events).await?);
            figures.append(
                peers::each(peers, services, async |peer| peer.replay(events).await).await?,
            );
        }
        "C" => {
            figures.append(scenarios::idle(services, arguments.idle).await?);
            figures.append(memory::after_traffic(services, arguments.idle / MEMORY_SHARE).await?);
            figures.append(memory::after_burst(services, arguments.idle / BURST_SHARE).await?);
            let connections = arguments.idle / PEERS_IDLE_SHARE;
            figures.append(
                peers::each(peers, services, async |peer| peer.idle(connections).await).await?,
            );
        }
        "H" => figures.append(scenarios::hot(services).await?),
        "S" => figures.append(scale::all(services, events / 2, &arguments.output).await?),
        "soak" => figures.append(soak::soak(services, arguments.soak_seconds).await?),
        "retention" => {
            let seconds = arguments.retention_seconds;
            figures
                .append(retention::retention(services, events, arguments.stored, seconds).await?);
        }
        "many" => figures.append(many::many(services, arguments.sessions).await?),
        "hints" => figures.append(hints::hints(services, arguments.gateways, events).await?),
        "overload" => {
            let duration = Duration::from_secs(arguments.overload_seconds);
            figures.append(overload::overload(services, duration).await?);
        }
        other => {
            anyhow::bail!(
                "there is no scenario {other}: F, T, L, R, C, H, S, many, hints, soak, overload and retention are"
            )
        }
    }
    Ok(figures)
}

/// Date and processor.
fn machine() -> String {
    let today = time::OffsetDateTime::now_utc().date();
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model)
        .collect();
    format!(
        "{today}, {} x {}",
        models.len(),
        models.first().unwrap_or(&"processor")
    )
}

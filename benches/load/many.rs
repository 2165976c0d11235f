//! Many idle sessions on several gateways: their cost while nothing happens, an event to each, a
//! broadcast, and the return of all after a kill of all gateways.
//!
//! A process may open a limited number of files, so the clients are in processes of their own too
//! (`herd`). The stage itself ingests.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::event;
use crate::floors::EndedWhenDropped;
use crate::herd::{self, HERD, Line};
use crate::ledger::Ledger;
use crate::measure::{Cpu, kernel_bytes, pss_bytes};
use crate::publisher::Publisher;
use crate::report::{Figures, Who};
use crate::scenarios::settled_rss;
use crate::services::Services;
use crate::stage::{Gateway, Stage};
use crate::wire::Server;

/// Processor time while nothing happens, in percent of a core.
pub const IDLE_POSTGRES: &str = "many: Postgres while nothing happens, % of a core";
pub const IDLE_ALL: &str = "many: Shopbell and Postgres while nothing happens, % of a core";
/// Memory of the gateways.
pub const MEMORY: &str = "many: KiB of RSS a session";
const SHOPBELL: &str = "Shopbell";
const POSTGRES: &str = "Postgres";
/// Sessions of one gateway and clients of one process. With its other connections, each opens fewer
/// than 20,000 files.
const SESSIONS_PER_PROCESS: usize = 18_000;
/// Length of the measurement while nothing happens. It has a heartbeat of each session at least.
const IDLE: Duration = Duration::from_secs(30);
/// Bound for each step.
const PATIENCE: Duration = Duration::from_secs(300);
/// Measures `sessions` sessions, on as many gateways as they need, but on two at least.
pub async fn many(services: &Services, sessions: usize) -> anyhow::Result<Figures> {
    let stage = Stage::set(services).await?;
    let gateways = sessions.div_ceil(SESSIONS_PER_PROCESS).max(2);
    let fleet = Fleet::start(&stage, gateways).await?;
    let herds = Herds::start(&stage.server, &fleet, sessions).await?;
    let mut run = Run {
        empty: fleet.rss().await?,
        kernel: kernel_bytes()?,
        ledger: Ledger::new(2 * sessions + 1, 0),
        publisher: stage.publisher().await?,
        figures: Figures::default(),
        stage,
        fleet,
        herds,
        sessions,
    };
    run.set("many: gateways", gateways as f64);
    run.connect().await?;
    run.rest().await?;
    run.send_to_each().await?;
    run.broadcast().await?;
    run.kill_all().await?;
    run.stage.balanced(2 * sessions + 1).await?;
    run.leave().await
}

struct Run<'a> {
    figures: Figures,
    herds: Herds,
    fleet: Fleet,
    publisher: Publisher,
    ledger: Ledger,
    sessions: usize,
    /// Memory of the gateways without sessions, and of the kernel.
    empty: f64,
    kernel: f64,
    stage: Stage<'a>,
}

impl Run<'_> {
    async fn connect(&mut self) -> anyhow::Result<()> {
        let (cpu, begun) = (self.cpu()?, Instant::now());
        self.herds.go()?;
        self.herds.all(Line::Connected).await?;
        let seconds = begun.elapsed().as_secs_f64();
        self.set("many: connects/s", self.sessions as f64 / seconds);
        let cpu = self.cpu()?.since(&cpu);
        for name in [SHOPBELL, POSTGRES] {
            let each = cpu.of(name) * 10_000.0 / self.sessions as f64;
            self.set(&format!("many: {name} CPU-s per 10,000 connects"), each);
        }
        self.set_memory(MEMORY).await?;
        let pss = self.fleet.pss()? / 1024.0 / self.sessions as f64;
        self.set("many: KiB of PSS a session, with the program", pss);
        // Both ends of each connection are here.
        let kernel = (kernel_bytes()? - self.kernel) / 1024.0 / (2 * self.sessions) as f64;
        self.set("many: KiB of the kernel a socket", kernel);
        Ok(())
    }

    /// Nothing happens, except heartbeats.
    async fn rest(&mut self) -> anyhow::Result<()> {
        self.stage.clean_up().await?;
        let cpu = self.cpu()?;
        tokio::time::sleep(IDLE).await;
        let cpu = self.cpu()?.since(&cpu);
        let percent = |name| cpu.of(name) / IDLE.as_secs_f64() * 100.0;
        self.set(
            "many: Shopbell while nothing happens, % of a core",
            percent(SHOPBELL),
        );
        self.set(IDLE_POSTGRES, percent(POSTGRES));
        self.set(IDLE_ALL, percent(SHOPBELL) + percent(POSTGRES));
        Ok(())
    }

    async fn send_to_each(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.publish(0..self.sessions, event::merchant).await?;
        self.herds.all(Line::Received(1)).await?;
        let seconds = begun.elapsed().as_secs_f64();
        self.set("many: seconds until each has one event", seconds);
        self.stage.settled().await
    }

    async fn broadcast(&mut self) -> anyhow::Result<()> {
        let (cpu, begun) = (self.cpu()?, Instant::now());
        let one = self.sessions..self.sessions + 1;
        self.publish(one, |_| event::EVERYONE.into()).await?;
        self.herds.all(Line::Received(2)).await?;
        let seconds = begun.elapsed().as_secs_f64();
        self.set("many: seconds until all have a broadcast", seconds);
        self.stage.acked_by(event::EVERYONE, self.sessions).await?;
        let cpu = self.cpu()?.since(&cpu);
        for name in [SHOPBELL, POSTGRES] {
            let what = format!("many: {name} CPU-s, a broadcast and its acks");
            self.set(&what, cpu.of(name));
        }
        self.set_memory("many: KiB of RSS a session, after a broadcast")
            .await
    }

    /// All reconnect at once. Meanwhile each has got another event.
    async fn kill_all(&mut self) -> anyhow::Result<()> {
        let refused = self.herds.refused();
        let ports = self.fleet.kill()?;
        let first = self.sessions + 1;
        let to = |index: usize| event::merchant(index - first);
        self.publish(first..first + self.sessions, to).await?;
        self.stage
            .stored_within(2 * self.sessions + 1, PATIENCE)
            .await?;
        let (cpu, begun) = (self.cpu()?, Instant::now());
        self.fleet.restart(&self.stage, ports).await?;
        self.herds.all(Line::Received(3)).await?;
        let seconds = begun.elapsed().as_secs_f64();
        self.set(
            "many: seconds until all are caught up after a kill",
            seconds,
        );
        let cpu = self.cpu()?.since(&cpu);
        for name in [SHOPBELL, POSTGRES] {
            let what = format!("many: {name} CPU-s, the return of all");
            self.set(&what, cpu.of(name));
        }
        let attempts = (self.herds.refused() - refused) as f64 / self.sessions as f64;
        self.set(
            "many: failed attempts a session, the return of all",
            attempts,
        );
        self.stage.settled().await
    }

    async fn leave(mut self) -> anyhow::Result<Figures> {
        self.herds.0.clear();
        for gateway in &self.fleet.0 {
            gateway.has_no_sessions().await?;
        }
        self.set_memory("many: KiB of RSS a session that has gone")
            .await?;
        self.publisher.close().await;
        self.fleet.0.clear();
        self.stage.strike().await?;
        Ok(self.figures)
    }

    fn set(&mut self, what: &str, value: f64) {
        self.figures.set(what, Who::Shopbell, value);
    }

    async fn set_memory(&mut self, what: &str) -> anyhow::Result<()> {
        let grown = self.fleet.rss().await? - self.empty;
        self.set(what, grown / 1024.0 / self.sessions as f64);
        Ok(())
    }

    fn cpu(&self) -> anyhow::Result<Cpu> {
        let mut processes = self.stage.processes();
        for gateway in &self.fleet.0 {
            processes = processes.with(SHOPBELL, gateway.pid());
        }
        processes.cpu()
    }

    async fn publish(
        &self,
        indices: Range<usize>,
        to: impl Fn(usize) -> String,
    ) -> anyhow::Result<()> {
        self.publisher
            .publish_all("m", &self.ledger, indices, to)
            .await
    }
}

/// The gateways.
struct Fleet(Vec<Gateway>);

impl Fleet {
    async fn start(stage: &Stage<'_>, count: usize) -> anyhow::Result<Self> {
        let mut gateways = Vec::new();
        for _ in 0..count {
            gateways.push(stage.gateway(None).await?);
        }
        Ok(Self(gateways))
    }

    /// Kills all. Returns their ports.
    fn kill(&mut self) -> anyhow::Result<Vec<(u16, u16)>> {
        self.0.drain(..).map(Gateway::kill).collect()
    }

    async fn restart(&mut self, stage: &Stage<'_>, ports: Vec<(u16, u16)>) -> anyhow::Result<()> {
        let starting = ports.into_iter().map(|ports| stage.gateway(Some(ports)));
        self.0 = try_join_all(starting).await?;
        Ok(())
    }

    async fn rss(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for gateway in &self.0 {
            sum += settled_rss(gateway.pid()).await?;
        }
        Ok(sum)
    }

    fn pss(&self) -> anyhow::Result<f64> {
        self.0.iter().map(|gateway| pss_bytes(gateway.pid())).sum()
    }
}

/// The clients: one process for each gateway.
struct Herds(Vec<HerdProcess>);

struct HerdProcess {
    child: EndedWhenDropped,
    lines: UnboundedReceiver<String>,
    refused: usize,
}

impl Herds {
    async fn start(server: &Server, fleet: &Fleet, sessions: usize) -> anyhow::Result<Self> {
        let Server::Shopbell { secret, .. } = server else {
            bail!("the stage is no Shopbell");
        };
        let each = sessions.div_ceil(fleet.0.len());
        let mut herds = Self(vec![]);
        for (place, gateway) in fleet.0.iter().enumerate() {
            let first = place * each;
            let clients = each.min(sessions - first);
            let [port, first, clients] =
                [gateway.port.into(), first, clients].map(|n: usize| n.to_string());
            let child = Command::new(std::env::current_exe()?)
                .args([HERD, &port, secret, &first, &clients])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let mut child = EndedWhenDropped(child);
            let output = child.0.stdout.take().context("no stdout")?;
            let (sender, lines) = unbounded_channel();
            std::thread::spawn(move || {
                let read = BufReader::new(output).lines().map_while(Result::ok);
                read.for_each(|line| _ = sender.send(line));
            });
            herds.0.push(HerdProcess {
                child,
                lines,
                refused: 0,
            });
        }
        herds.all(Line::Prepared).await?;
        Ok(herds)
    }

    /// Lets the clients connect.
    fn go(&mut self) -> anyhow::Result<()> {
        for herd in &mut self.0 {
            let input = herd.child.0.stdin.as_mut().context("no stdin")?;
            input.write_all(b"go\n")?;
        }
        Ok(())
    }

    /// Waits for this line of each process.
    async fn all(&mut self, awaited: Line) -> anyhow::Result<()> {
        for herd in &mut self.0 {
            let waiting = async {
                loop {
                    let line = herd.lines.recv().await.context("clients ended")?;
                    let (line, refused) = herd::parse(&line)?;
                    herd.refused = refused.max(herd.refused);
                    if line == awaited {
                        return anyhow::Ok(());
                    }
                }
            };
            let waited = tokio::time::timeout(PATIENCE, waiting).await;
            waited
                .with_context(|| format!("not all clients after {PATIENCE:?}: {awaited:?}"))??;
        }
        Ok(())
    }

    /// Attempts to connect that failed.
    fn refused(&self) -> usize {
        self.0.iter().map(|herd| herd.refused).sum()
    }
}

//! The same with RabbitMQ's own WebSocket plugins and with NATS JetStream: persistent messages,
//! durable subscriptions, QoS 1 or client acks.

use std::sync::Arc;
use std::time::Instant;

use crate::crowd::{Crowd, storm};
use crate::event;
use crate::jetstream::JetStream;
use crate::ledger::Ledger;
use crate::measure::Processes;
use crate::publisher::{Publisher, Target};
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, names, open_loop, settled_rss};
use crate::services::Services;
use crate::wire::Server;

/// The peers of a scenario.
pub fn of(scenario: &str) -> &'static [Who] {
    match scenario {
        "T" | "L" | "C" => &[Who::WebMqtt, Who::JetStream],
        "R" => &[Who::WebMqtt, Who::WebStomp, Who::JetStream],
        _ => &[],
    }
}

/// Measures one after the other, as far as they are installed.
pub async fn each<'a>(
    peers: &[Who],
    services: &'a Services,
    measure: impl AsyncFn(Peer<'a>) -> anyhow::Result<Figures>,
) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    for who in peers {
        if let Some(peer) = Peer::start(*who, services).await? {
            figures.append(measure(peer).await?);
        }
    }
    Ok(figures)
}

/// One peer, ready for one scenario.
pub enum Peer<'a> {
    /// One of the plugins.
    RabbitMq(Who, &'a Services),
    JetStream(JetStream),
}

impl<'a> Peer<'a> {
    /// Starts it. `None` if it is not installed.
    async fn start(who: Who, services: &'a Services) -> anyhow::Result<Option<Self>> {
        match who {
            Who::JetStream => Ok(JetStream::start(services).await?.map(Self::JetStream)),
            plugin => Ok(Some(Self::RabbitMq(plugin, services))),
        }
    }

    /// T.
    pub async fn throughput(self, events: usize) -> anyhow::Result<Figures> {
        let (who, process) = (self.who(), self.process().0);
        self.subscribe(MERCHANTS).await?;
        let ledger = Arc::new(Ledger::new(events, events));
        let reading = Crowd::connect(self.server(), names(MERCHANTS))
            .await?
            .read(&ledger);
        let publisher = self.publisher().await?;
        let processes = self.processes();
        let cpu = processes.cpu()?;
        publisher
            .publish_all("t", &ledger, 0..events, |index| {
                event::merchant(index % MERCHANTS)
            })
            .await?;
        ledger.complete().await?;
        let cpu = processes.cpu()?.since(&cpu);
        publisher.close().await;
        let mut figures = Figures::default();
        figures.set(
            "T events/s",
            who,
            events as f64 / ledger.elapsed().as_secs_f64(),
        );
        figures.set_per_100k(format!("T {process} CPU-s"), who, cpu.sum(), events);
        figures.set_per_100k("T all server CPU-s", who, cpu.sum(), events);
        drop(reading);
        self.forget(MERCHANTS).await?;
        Ok(figures)
    }

    /// L.
    pub async fn latency(self, per_second: usize) -> anyhow::Result<Figures> {
        self.subscribe(MERCHANTS).await?;
        let (processes, publisher) = (self.processes(), self.publisher().await?);
        let measuring = open_loop(self.who(), self.server(), publisher, &processes, per_second);
        let figures = measuring.await?;
        self.forget(MERCHANTS).await?;
        Ok(figures)
    }

    /// R.
    pub async fn replay(self, events: usize) -> anyhow::Result<Figures> {
        let who = self.who();
        match &self {
            // Their subscriptions begin with the first connection.
            Self::RabbitMq(..) => drop(Crowd::connect(self.server(), names(MERCHANTS)).await?),
            Self::JetStream(_) => self.subscribe(MERCHANTS).await?,
        }
        let ledger = Arc::new(Ledger::new(events, events));
        let publisher = self.publisher().await?;
        publisher
            .publish_all("r", &ledger, 0..events, |index| {
                event::merchant(index % MERCHANTS)
            })
            .await?;
        publisher.close().await;
        let processes = self.processes();
        let (cpu, begun) = (processes.cpu()?, Instant::now());
        let reading = storm(self.server(), names(MERCHANTS), &ledger);
        ledger.complete().await?;
        let cpu = processes.cpu()?.since(&cpu);
        let mut figures = Figures::default();
        figures.set(
            "R events/s",
            who,
            events as f64 / ledger.elapsed_since(begun).as_secs_f64(),
        );
        figures.set_per_100k("R all server CPU-s", who, cpu.sum(), events);
        drop(reading);
        self.forget(MERCHANTS).await?;
        Ok(figures)
    }

    /// C.
    pub async fn idle(self, connections: usize) -> anyhow::Result<Figures> {
        let (who, pid) = (self.who(), self.process().1);
        let rss = settled_rss(pid).await?;
        self.subscribe(connections).await?;
        let begun = Instant::now();
        let crowd = Crowd::connect(self.server(), names(connections)).await?;
        let mut figures = Figures::default();
        figures.set(
            "C connects/s",
            who,
            connections as f64 / begun.elapsed().as_secs_f64(),
        );
        let grown = settled_rss(pid).await? - rss;
        figures.set(
            "C KiB a connection",
            who,
            grown / 1024.0 / connections as f64,
        );
        drop(crowd);
        self.forget(connections).await?;
        Ok(figures)
    }

    fn who(&self) -> Who {
        match self {
            Self::RabbitMq(plugin, _) => *plugin,
            Self::JetStream(_) => Who::JetStream,
        }
    }

    /// Makes durable subscriptions of these clients, if their first connection does not make them.
    async fn subscribe(&self, clients: usize) -> anyhow::Result<()> {
        match self {
            Self::RabbitMq(..) => Ok(()),
            Self::JetStream(jetstream) => jetstream.make_consumers(&names(clients)).await,
        }
    }

    fn server(&self) -> &Server {
        match self {
            Self::RabbitMq(Who::WebStomp, services) => &services.web_stomp,
            Self::RabbitMq(_, services) => &services.web_mqtt,
            Self::JetStream(jetstream) => &jetstream.server,
        }
    }

    /// The name and id of its process.
    fn process(&self) -> (&'static str, u32) {
        match self {
            Self::RabbitMq(_, services) => ("RabbitMQ", services.rabbitmq()),
            Self::JetStream(jetstream) => ("nats-server", jetstream.pid()),
        }
    }

    fn processes(&self) -> Processes {
        let (name, pid) = self.process();
        Processes::default().with(name, pid)
    }

    async fn publisher(&self) -> anyhow::Result<Publisher> {
        match self {
            Self::RabbitMq(_, services) => {
                Publisher::connect(&services.amqp_url, Target::Topics).await
            }
            Self::JetStream(jetstream) => Ok(Publisher::to_jetstream(jetstream.link().await?)),
        }
    }

    /// Deletes the queues of these clients. JetStream ends with all its files instead.
    async fn forget(self, clients: usize) -> anyhow::Result<()> {
        let Self::RabbitMq(plugin, services) = self else {
            return Ok(());
        };
        let queue = |name: String| match plugin {
            Who::WebStomp => format!("stomp-{name}"),
            _ => format!("mqtt-subscription-{name}qos1"),
        };
        services
            .delete_queues(names(clients).into_iter().map(queue))
            .await
    }
}

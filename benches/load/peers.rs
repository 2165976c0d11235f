//! The same with RabbitMQ's own WebSocket plugins: persistent messages, durable subscriptions, QoS
//! 1 or client acks.

use std::sync::Arc;
use std::time::Instant;

use crate::crowd::{Crowd, storm};
use crate::event;
use crate::ledger::Ledger;
use crate::measure::Processes;
use crate::publisher::{Publisher, Target};
use crate::report::{Figures, Who};
use crate::scenarios::{MERCHANTS, names, open_loop, settled_rss};
use crate::services::Services;
use crate::wire::Server;

/// One of the plugins.
pub struct Peer<'a> {
    pub who: Who,
    pub services: &'a Services,
}

impl Peer<'_> {
    /// T.
    pub async fn throughput(&self, events: usize) -> anyhow::Result<Figures> {
        let ledger = Arc::new(Ledger::new(events, events));
        let reading = Crowd::connect(self.server(), names(MERCHANTS))
            .await?
            .read(&ledger);
        let publisher = self.publisher().await?;
        let processes = self.services.processes();
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
            self.who,
            events as f64 / ledger.elapsed().as_secs_f64(),
        );
        figures.set_per_100k("T RabbitMQ CPU-s", self.who, cpu.of("RabbitMQ"), events);
        figures.set_per_100k("T all server CPU-s", self.who, cpu.of("RabbitMQ"), events);
        drop(reading);
        self.forget(MERCHANTS).await?;
        Ok(figures)
    }

    /// L.
    pub async fn latency(&self, per_second: usize) -> anyhow::Result<Figures> {
        let rabbitmq = Processes::default().with("RabbitMQ", self.services.rabbitmq());
        let publisher = self.publisher().await?;
        let figures = open_loop(self.who, self.server(), publisher, &rabbitmq, per_second).await?;
        self.forget(MERCHANTS).await?;
        Ok(figures)
    }

    /// R.
    pub async fn replay(&self, events: usize) -> anyhow::Result<Figures> {
        // Their subscriptions begin with the first connection.
        drop(Crowd::connect(self.server(), names(MERCHANTS)).await?);
        let ledger = Arc::new(Ledger::new(events, events));
        let publisher = self.publisher().await?;
        publisher
            .publish_all("r", &ledger, 0..events, |index| {
                event::merchant(index % MERCHANTS)
            })
            .await?;
        publisher.close().await;
        let processes = self.services.processes();
        let (cpu, begun) = (processes.cpu()?, Instant::now());
        let reading = storm(self.server(), names(MERCHANTS), &ledger);
        ledger.complete().await?;
        let cpu = processes.cpu()?.since(&cpu);
        let mut figures = Figures::default();
        figures.set(
            "R events/s",
            self.who,
            events as f64 / ledger.elapsed_since(begun).as_secs_f64(),
        );
        figures.set_per_100k("R all server CPU-s", self.who, cpu.of("RabbitMQ"), events);
        drop(reading);
        self.forget(MERCHANTS).await?;
        Ok(figures)
    }

    /// C.
    pub async fn idle(&self, connections: usize) -> anyhow::Result<Figures> {
        let rss = settled_rss(self.services.rabbitmq()).await?;
        let begun = Instant::now();
        let crowd = Crowd::connect(self.server(), names(connections)).await?;
        let mut figures = Figures::default();
        figures.set(
            "C connects/s",
            self.who,
            connections as f64 / begun.elapsed().as_secs_f64(),
        );
        let grown = settled_rss(self.services.rabbitmq()).await? - rss;
        figures.set(
            "C KiB a connection",
            self.who,
            grown / 1024.0 / connections as f64,
        );
        drop(crowd);
        self.forget(connections).await?;
        Ok(figures)
    }

    fn server(&self) -> &Server {
        match self.who {
            Who::WebStomp => &self.services.web_stomp,
            _ => &self.services.web_mqtt,
        }
    }

    async fn publisher(&self) -> anyhow::Result<Publisher> {
        Publisher::connect(&self.services.amqp_url, Target::Topics).await
    }

    /// Deletes the queues of these clients.
    async fn forget(&self, clients: usize) -> anyhow::Result<()> {
        let who = self.who;
        let queue = |name: String| match who {
            Who::WebStomp => format!("stomp-{name}"),
            _ => format!("mqtt-subscription-{name}qos1"),
        };
        self.services
            .delete_queues(names(clients).into_iter().map(queue))
            .await
    }
}

//! `shopbell serve`: builds the parts, runs them, stops them in order.

mod gateway;
mod parts;
mod urls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::parts::{Part, Parts, STOP_STEP_TIMEOUT};
use super::broker_of;
use crate::amqp::Broker;
use crate::amqp::depths::DepthProbe;
use crate::amqp::publisher::Publisher;
use crate::config::{IngestConfig, Role, ServeConfig};
use crate::fanout::Fanout;
use crate::fanout::heartbeat::Heartbeat;
use crate::fanout::hub::Hub;
use crate::fanout::publisher::HintPublisher;
use crate::gateway::websocket::Gateway;
use crate::http::connections::Connections;
use crate::http::listener;
use crate::ingest::dead_letters::DeadLetterPublisher;
use crate::ingest::held_feeds::HeldFeeds;
use crate::ingest::traces::TraceKeeper;
use crate::ingest::{Ingest, claims, connections};
use crate::model::event::Limits;
use crate::ops::housekeeping;
use crate::ops::probes;
use crate::ops::retention::Retention;
use crate::ops::routes::{self, Operations};
use crate::receipts::ReceiptPublisher;
use crate::store::epoch::known::Epochs;
use crate::store::pools::Pools;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::{ConnectionMetrics, Metrics};
use crate::telemetry::process::Process;

/// Most connections to the public port that are not sessions. Anybody can open them, and each costs up to 32 KiB, so all cost
/// at most 64 MiB. With 300 ms of network delay, they allow 6,000 new sessions a second.
pub(super) const CONNECTIONS_MAX: usize = 2_048;
/// Connections that wait to be accepted. If the queue is full when all clients reconnect, a client retries only after a
/// second. The kernel has its own bound (`net.core.somaxconn`, 4096 on Linux).
pub(super) const BACKLOG: u32 = 4_096;
/// Connections to the operations port.
pub(super) const OPERATIONS_CONNECTIONS_MAX: usize = 64;

/// The arguments of `shopbell serve`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run one role only (default: both).
    #[arg(
        long,
        value_enum,
        value_name = "ingest|gateway",
        hide_possible_values = true
    )]
    pub role: Option<Role>,
}

/// Runs until SIGTERM or SIGINT, then stops in order.
///
/// # Errors
/// A part cannot start or ends unexpectedly, or a second signal arrives.
pub async fn run(config: ServeConfig) -> anyhow::Result<()> {
    run_with(config, Router::new()).await
}

/// Runs with more routes on the public port. See [`run`].
pub async fn run_with(config: ServeConfig, more: Router) -> anyhow::Result<()> {
    raise_open_files();
    let base = Base::new(&config)?;
    let mut parts = Parts::default();
    base.operate(config.ops_listen, &mut parts).await?;
    parts.spawn(
        Part::Urls,
        urls::follow(
            config.url_files.clone(),
            base.broker.clone(),
            base.pools.clone(),
        ),
    );
    let gateway = match config.roles.gateway() {
        Some(config) => Some(base.serve(config, more, &mut parts)?),
        None => None,
    };
    if let Some(config) = config.roles.ingest() {
        base.ingest(config, &mut parts);
    }
    base.beat(&mut parts);
    tracing::info!(operations = %config.ops_listen, "shopbell serves");

    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        part = parts.first_ended() => bail!("a part of the service ended unexpectedly: {part}"),
    }
    let drain = config
        .roles
        .gateway()
        .map_or(Duration::ZERO, |gateway| gateway.session.drain);
    tracing::info!(
        drain_seconds = drain.as_secs(),
        "shopbell stops; a second signal ends it at once"
    );
    base.health.draining.store(true, Ordering::Relaxed);
    tokio::select! {
        () = stop_in_order(&base.stops, &mut parts, gateway.as_deref(), drain) => {}
        _ = terminated.recv() => bail!("ended by a second signal; RabbitMQ delivers unacknowledged events again"),
        _ = interrupted.recv() => bail!("ended by a second signal; RabbitMQ delivers unacknowledged events again"),
    }
    if !base.pools.close().await {
        tracing::warn!("the connections to the database did not close in time; they are dropped");
    }
    tracing::info!("shopbell stopped");
    Ok(())
}

/// Raises the soft limit of open files to the hard limit, because each session is one and some containers start with 1024.
fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is unlimited.
    if current.is_some()
        && current != maximum
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
    {
        tracing::warn!(%error, ?current, "the limit of open files stays as it is: it bounds how many clients can connect");
    }
}

/// One token for each step of the stop.
#[derive(Debug, Default)]
struct Stops {
    ingest: CancellationToken,
    listeners: CancellationToken,
    cursors: CancellationToken,
    last: CancellationToken,
}

/// Stops in order: ingest ends its batch, the sessions close over the drain time, their acks are written, then the rest ends.
async fn stop_in_order(
    stops: &Stops,
    parts: &mut Parts,
    gateway: Option<&Gateway>,
    drain: Duration,
) {
    stops.ingest.cancel();
    parts.ended(Part::Ingest).await;
    parts.ended(Part::Canary).await;
    if let Some(gateway) = gateway {
        gateway.drain.cancel();
        gateway.sessions.close();
        if tokio::time::timeout(drain + STOP_STEP_TIMEOUT, gateway.sessions.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                sessions = gateway.sessions.len(),
                "some sessions did not end in time and are dropped"
            );
        }
    }
    stops.listeners.cancel();
    parts.ended(Part::PublicPort).await;
    stops.cursors.cancel();
    parts.ended(Part::CursorWriter).await;
    parts.ended(Part::Marks).await;
    parts.ended(Part::Presence).await;
    parts.ended(Part::Events).await;
    parts.ended(Part::DeadLetters).await;
    parts.ended(Part::HeldFeeds).await;
    parts.ended(Part::Receipts).await;
    parts.ended(Part::Retention).await;
    stops.last.cancel();
    parts.ended(Part::Heartbeat).await;
    parts.ended(Part::OperationsPort).await;
    parts.ended(Part::Fanout).await;
    parts.ended(Part::BrokerProbe).await;
}

/// The parts that both roles use.
struct Base {
    broker: Broker,
    pools: Pools,
    epochs: Arc<Epochs>,
    hub: Arc<Hub>,
    fanout: Arc<Fanout>,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    health: Arc<Health>,
    stops: Stops,
}

impl Base {
    fn new(config: &ServeConfig) -> anyhow::Result<Self> {
        let broker = broker_of(&config.amqp)?;
        let epochs = Arc::<Epochs>::default();
        let pools = Pools::lazy(&config.database, connections(broker.partitions), &epochs);
        let ingests = if config.roles.ingest().is_some() {
            connections(broker.partitions)
        } else {
            0
        };
        let health = Arc::new(Health::new(
            usize::from(ingests),
            usize::from(config.roles.gateway().is_some()),
        ));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::starting()));
        registry
            .sub_registry_with_prefix("shopbell")
            .register_collector(Box::new(pools.clone()));
        let (metrics, hub) = (
            Arc::new(Metrics::new(&mut registry)),
            Arc::new(Hub::new(epochs.clone())),
        );
        let fanout = Arc::new(Fanout::new(
            hub.clone(),
            epochs.clone(),
            metrics.clone(),
            health.clone(),
            &broker,
            config.amqp.lean_hints_from,
        ));
        let registry = Arc::new(registry);
        Ok(Self {
            broker,
            pools,
            epochs,
            hub,
            fanout,
            metrics,
            registry,
            health,
            stops: Stops::default(),
        })
    }

    /// Starts the operations port and the probes.
    async fn operate(&self, listen: SocketAddr, parts: &mut Parts) -> anyhow::Result<()> {
        let listener = bind("SHOPBELL_OPS_LISTEN", listen)?;
        let (health, metrics, pool) = (
            self.health.clone(),
            self.metrics.clone(),
            self.pools.reads.clone(),
        );
        let registry = self.registry.clone();
        parts.spawn(
            Part::DatabaseProbe,
            probes::database(self.pools.upkeep.clone(), self.hub.clone(), metrics.clone()),
        );
        parts.spawn(
            Part::BrokerProbe,
            probes::broker(
                DepthProbe::new(&self.broker),
                metrics.clone(),
                self.stops.last.clone(),
            ),
        );
        let routes = routes::router(Operations {
            health,
            metrics,
            registry,
            pool,
        });
        let stop = self.stops.last.clone();
        let connections =
            Connections::new(OPERATIONS_CONNECTIONS_MAX, ConnectionMetrics::default());
        parts.spawn(
            Part::OperationsPort,
            listener::serve(listener, routes, connections, stop),
        );
        Ok(())
    }

    /// Starts the heartbeats. All streams of this process are open then.
    fn beat(&self, parts: &mut Parts) {
        let heartbeat = Heartbeat::new(self.fanout.clone(), Publisher::lazy(&self.broker));
        parts.spawn(Part::Heartbeat, heartbeat.run(self.stops.last.clone()));
    }

    /// Starts ingest, with one task for each connection.
    fn ingest(&self, config: &IngestConfig, parts: &mut Parts) {
        let (traces, trace_writer) = TraceKeeper::new(self.pools.upkeep.clone());
        parts.spawn(Part::Traces, trace_writer.run());
        let (dead_letter_stored, limits) = (
            Arc::<Notify>::default(),
            Limits {
                event_bytes_max: config.event_bytes_max,
            },
        );
        for claims in claims(self.broker.partitions) {
            let ingest = Ingest {
                broker: self.broker.clone(),
                claims,
                pool: self.pools.ingest.clone(),
                fanout: self.fanout.clone(),
                stream: self.fanout.open_stream(),
                traces: traces.clone(),
                limits,
                broadcast_feed: config.broadcast_feed.clone(),
                dead_letter_stored: dead_letter_stored.clone(),
                metrics: self.metrics.clone(),
                health: self.health.clone(),
            };
            let stop = self.stops.ingest.clone();
            parts.spawn(Part::Ingest, async move { ingest.run(stop).await });
        }
        let publisher = DeadLetterPublisher {
            broker: self.broker.clone(),
            pool: self.pools.upkeep.clone(),
            stored: dead_letter_stored,
            metrics: self.metrics.clone(),
        };
        parts.spawn(Part::DeadLetters, publisher.run(self.stops.cursors.clone()));
        let held = HeldFeeds {
            pool: self.pools.upkeep.clone(),
            fanout: self.fanout.clone(),
            stream: self.fanout.open_stream(),
            limits,
            broadcast_feed: config.broadcast_feed.clone(),
            metrics: self.metrics.clone(),
        };
        let publisher = Publisher::lazy(&self.broker);
        parts.spawn(
            Part::HeldFeeds,
            held.run(publisher, self.stops.ingest.clone()),
        );
        self.receipts(parts);
        parts.spawn(
            Part::Housekeeping,
            housekeeping::run(self.pools.upkeep.clone()),
        );
        if let Some(kept) = config.retention {
            let stream = self.fanout.open_stream();
            let publisher = Publisher::lazy(&self.broker);
            let hints = HintPublisher::new(self.fanout.clone(), publisher, stream.clone());
            let retention = Retention {
                pool: self.pools.retention.clone(),
                kept,
                broadcast_feed: config.broadcast_feed.clone(),
                fanout: self.fanout.clone(),
                stream,
                metrics: self.metrics.clone(),
            };
            let stop = self.stops.ingest.clone();
            parts.spawn(Part::Retention, retention.run(hints, stop));
        }
    }

    /// Starts the publisher of receipts.
    fn receipts(&self, parts: &mut Parts) {
        let stream = self.fanout.open_stream();
        let publisher = Publisher::lazy(&self.broker);
        let hints = HintPublisher::new(self.fanout.clone(), publisher, stream.clone());
        let receipts = ReceiptPublisher {
            broker: self.broker.clone(),
            pool: self.pools.upkeep.clone(),
            fanout: self.fanout.clone(),
            stream,
            metrics: self.metrics.clone(),
        };
        let stop = self.stops.ingest.clone();
        parts.spawn(Part::Receipts, receipts.run(hints, stop));
    }
}

pub(super) fn bind(variable: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        // Without it, a restart waits until the kernel drops the connections of the last run.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("cannot listen on {variable}={address}"))
}

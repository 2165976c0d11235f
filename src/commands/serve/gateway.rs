//! Builds the gateway from its parts and starts them.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::parts::{Part, Parts};
use super::{Base, CONNECTIONS_MAX, bind};
use crate::amqp::publisher::Publisher;
use crate::config::GatewayConfig;
use crate::fanout::publisher::HintPublisher;
use crate::gateway::admission::Admission;
use crate::gateway::auth::{Authenticator, Tokens};
use crate::gateway::cursors::Cursors;
use crate::gateway::dashboard;
use crate::gateway::events::publishing::EventPublisher;
use crate::gateway::events::{self, Events};
use crate::gateway::feed_paths;
use crate::gateway::marks::Marks;
use crate::gateway::presence::Presence;
use crate::gateway::rates::Rates;
use crate::gateway::replay::newest::NewestReader;
use crate::gateway::replay::{Replay, epoch, round, sweep};
use crate::gateway::session::state::{Rules, Transport};
use crate::gateway::session::task::{self, Shared};
use crate::gateway::websocket::{self, Gateway, Places};
use crate::http::connections::Connections;
use crate::http::listener;
use crate::http::problem::Problem;
use crate::model::event::Limits;
use crate::ops::canary::Canary;

impl Base {
    /// Starts the gateway, with the routes of `more` beside its own.
    pub(super) fn serve(
        &self,
        config: &GatewayConfig,
        more: Router,
        parts: &mut Parts,
    ) -> anyhow::Result<Arc<Gateway>> {
        let listener = bind("SHOPBELL_LISTEN", config.listen)?;
        let tokens = Arc::new(Tokens::new(&config.jwt, &self.metrics));
        tokens.report(&self.health);
        parts.spawn(Part::Keys, tokens.clone().follow(self.health.clone()));
        let gateway = self.gateway(config, tokens.clone(), parts);
        let connections = Connections::new(CONNECTIONS_MAX, self.metrics.connections.clone());
        let stop = self.stops.listeners.clone();
        let routes = routes(&gateway, self.events(config, parts), config, more);
        parts.spawn(
            Part::PublicPort,
            listener::serve(listener, routes, connections, stop),
        );
        self.receive_hints(config, parts);
        if let Some(every) = config.canary {
            let canary = Canary {
                address: listener::reachable(config.listen),
                tokens,
                broker: self.broker.clone(),
                pool: self.pools.upkeep.clone(),
                broadcast_feed: config.session.broadcast_feed.clone(),
                metrics: self.metrics.clone(),
            };
            // It stops before the drain, because new sessions are refused then.
            parts.spawn(Part::Canary, canary.run(every, self.stops.ingest.clone()));
        }
        tracing::info!(listen = %config.listen, "clients are served");
        Ok(gateway)
    }

    /// Builds the endpoint of publishers, and starts its worker.
    fn events(&self, config: &GatewayConfig, parts: &mut Parts) -> Arc<Events> {
        let (publisher, worker) = EventPublisher::new(Publisher::lazy(&self.broker));
        parts.spawn(Part::Events, worker.run(self.stops.cursors.clone()));
        let limits = Limits {
            event_bytes_max: config.event_bytes_max,
        };
        let broadcast_feed = config.session.broadcast_feed.clone();
        let exchange = self.broker.names.events();
        Arc::new(Events::new(publisher, exchange, limits, broadcast_feed))
    }

    /// Builds the gateway, and starts the parts that read pages and write cursors and marks.
    fn gateway(
        &self,
        config: &GatewayConfig,
        tokens: Arc<Tokens>,
        parts: &mut Parts,
    ) -> Arc<Gateway> {
        let (session, limits) = (&config.session, &config.limits);
        let (reads, metrics) = (&self.pools.reads, &self.metrics);
        let (replay, replay_worker) = Replay::new(
            reads.clone(),
            metrics.clone(),
            session.sessions_max,
            session.page_bytes_max,
        );
        parts.spawn(Part::Replay, replay_worker.run());
        let (cursors, cursor_reader) =
            Cursors::new(reads.clone(), self.epochs.clone(), metrics.clone());
        parts.spawn(Part::CursorReader, cursor_reader.run());
        let (writer, acks) = (cursors.clone(), self.pools.acks.clone());
        let stop = self.stops.cursors.clone();
        parts.spawn(Part::CursorWriter, async move {
            writer.write(&acks, stop).await
        });
        let stream = self.fanout.open_stream();
        let (marks, mark_writer) = Marks::new(
            self.pools.marks.clone(),
            self.fanout.clone(),
            stream.clone(),
            self.epochs.clone(),
            metrics.clone(),
        );
        let publisher = Publisher::lazy(&self.broker);
        let others = HintPublisher::new(self.fanout.clone(), publisher, stream);
        parts.spawn(
            Part::Marks,
            mark_writer.run(others, self.stops.cursors.clone()),
        );
        let presence = self.presence(config, parts);
        task::begin_counting(metrics);
        metrics
            .sessions_max
            .set(i64::try_from(session.sessions_max).unwrap_or(i64::MAX));
        Arc::new(Gateway {
            shared: Arc::new(Shared {
                authenticator: Authenticator::new(
                    tokens,
                    session.broadcast_feed.clone(),
                    metrics.clone(),
                ),
                rates: Rates::new(limits, Instant::now()),
                replay,
                cursors,
                presence,
                marks,
                epochs: self.epochs.clone(),
                metrics: metrics.clone(),
                rules: Rules {
                    window: session.window,
                    heartbeat: session.heartbeat,
                    transport: Transport::WebSocket,
                },
                age_max: session.age_max,
                drain: session.drain,
            }),
            hub: self.hub.clone(),
            admission: Admission::new(
                session.sessions_max,
                session.sessions_per_subscriber_max,
                limits.sessions_per_address.unwrap_or(usize::MAX),
                metrics.clone(),
            ),
            proxies: config.proxies.clone(),
            health: self.health.clone(),
            history: self.pools.history.clone(),
            allowed_origins: session.allowed_origins.clone(),
            frame_bytes_max: session.frame_bytes_max,
            places: Places::default(),
            sessions: TaskTracker::new(),
            drain: CancellationToken::new(),
        })
    }

    /// Builds the presence of sessions, and starts its writer.
    fn presence(&self, config: &GatewayConfig, parts: &mut Parts) -> Arc<Presence> {
        let presence = Presence::new(
            self.pools.history.clone(),
            config.session.broadcast_feed.clone(),
            self.metrics.clone(),
        );
        let (writer, pool) = (presence.clone(), self.pools.upkeep.clone());
        let stop = self.stops.cursors.clone();
        parts.spawn(
            Part::Presence,
            async move { writer.write(&pool, stop).await },
        );
        presence
    }

    /// Starts the parts that wake sessions: the receiver of hints, the reads that make up for lost ones, and the watch over
    /// the epoch.
    fn receive_hints(&self, config: &GatewayConfig, parts: &mut Parts) {
        let (hub, epochs, metrics) = (&self.hub, &self.epochs, &self.metrics);
        let reader = NewestReader {
            pool: self.pools.reads.clone(),
            hub: hub.clone(),
            epochs: epochs.clone(),
            metrics: metrics.clone(),
            damaged: Arc::default(),
        };
        parts.spawn(
            Part::Rounds,
            round::run(reader.clone(), self.fanout.evidence()),
        );
        parts.spawn(Part::Sweep, sweep::run(reader, config.sweep));
        parts.spawn(
            Part::Epoch,
            epoch::run(self.pools.reads.clone(), epochs.clone(), metrics.clone()),
        );
        parts.spawn(
            Part::Epoch,
            epoch::follow(hub.clone(), epochs.clone(), metrics.clone()),
        );
        let (fanout, broker) = (self.fanout.clone(), self.broker.clone());
        let stop = self.stops.last.clone();
        parts.spawn(Part::Fanout, async move {
            fanout.receive(&broker, stop).await;
        });
    }
}

fn routes(
    gateway: &Arc<Gateway>,
    events: Arc<Events>,
    config: &GatewayConfig,
    more: Router,
) -> Router {
    let routes = Router::new()
        .route("/v1/ws", get(websocket::connect))
        .merge(feed_paths::router(&config.session.allowed_origins))
        .merge(events::router(events))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "there is /v1/ws, /v1/stream, /v1/events, /v1/feeds/{feed}/notifications and /v1/feeds/{feed}/presence",
            )
        })
        .with_state(gateway.clone())
        .merge(more);
    if config.dashboard {
        routes.merge(dashboard::router())
    } else {
        routes
    }
}

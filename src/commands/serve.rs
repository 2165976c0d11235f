//! `shopbell serve`: builds the parts, runs them, stops them in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::UsageError;
use crate::amqp::Broker;
use crate::auth::Authenticator;
use crate::config::ServeConfig;
use crate::cursors::Cursors;
use crate::event::Limits;
use crate::fanout::Fanout;
use crate::feed::Feed;
use crate::health::Health;
use crate::http::admission::Admission;
use crate::http::listener;
use crate::http::operations::{self, Operations};
use crate::http::problem::Problem;
use crate::http::websocket::{self, Gateway};
use crate::hub::Hub;
use crate::ingest::Ingest;
use crate::pager::{self, Pager};
use crate::session::state::Rules;
use crate::session::task::{Shared, socket_config};
use crate::store::Pools;
use crate::telemetry::Metrics;

/// Connections that are not sessions yet, beside one for each session there may be.
const HANDSHAKES_MAX: usize = 1_024;
/// Connections to the operations port.
const OPERATIONS_CONNECTIONS_MAX: usize = 64;
/// Beyond the drain time, for what a step of the stop needs at most: ending the batch, closing sessions, writing acks.
const STOP_STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// A part that runs until it is told to stop, by its name.
type Parts = JoinSet<&'static str>;

/// Runs until SIGTERM or SIGINT; then stops in order and returns. A part that ends by itself is an error.
pub async fn run(config: ServeConfig) -> anyhow::Result<()> {
    let broker = Broker::new(config.amqp.url.reveal(), &config.amqp.prefix, config.amqp.declare)
        .map_err(|problem| UsageError(format!("AMQP_URL {problem}")))?;
    let broadcast_feed = Feed::parse(&config.session.broadcast_feed)?;
    let (audience, issuer) = (config.jwt.audience.as_deref(), config.jwt.issuer.as_deref());
    let authenticator = Authenticator::new(config.jwt.secret.reveal().as_bytes(), audience, issuer, broadcast_feed);
    let public = bind("SHOPBELL_LISTEN", config.listen).await?;
    let operations = bind("SHOPBELL_OPS_LISTEN", config.ops_listen).await?;

    let metrics = Arc::<Metrics>::default();
    let health = Arc::<Health>::default();
    let hub = Arc::<Hub>::default();
    let pools = Pools::lazy(&config.database);
    let (pager, pager_worker) = Pager::new(pools.reads.clone(), metrics.clone(), config.session.sessions_max);
    let (cursors, cursor_reader) = Cursors::new(pools.reads.clone());
    let fanout = Arc::new(Fanout::new(hub.clone(), metrics.clone(), health.clone(), &broker));
    let ingest = Ingest {
        broker: broker.clone(),
        pool: pools.ingest.clone(),
        fanout: fanout.clone(),
        limits: Limits { event_bytes_max: config.event_bytes_max },
        metrics: metrics.clone(),
        health: health.clone(),
    };
    let gateway = Arc::new(Gateway {
        shared: Arc::new(Shared {
            authenticator,
            pager,
            cursors: cursors.clone(),
            metrics: metrics.clone(),
            rules: Rules { window: config.session.window, heartbeat: config.session.heartbeat },
            age_max: config.session.age_max,
            drain: config.session.drain,
        }),
        hub: hub.clone(),
        admission: Admission::new(
            config.session.sessions_max,
            config.session.sessions_per_subscriber_max,
            metrics.clone(),
        ),
        health: health.clone(),
        allowed_origins: config.session.allowed_origins.clone(),
        socket_config: socket_config(config.session.frame_bytes_max),
        sessions: TaskTracker::new(),
        drain: CancellationToken::new(),
    });

    let stops = Stops::default();
    let mut parts = Parts::new();
    let stop = stops.listeners.clone();
    let connections_max = config.session.sessions_max + HANDSHAKES_MAX;
    let routes = Router::new()
        .route("/v1/ws", get(websocket::connect))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is /v1/ws"))
        .with_state(gateway.clone());
    parts.spawn(named("public port", listener::serve(public, routes, connections_max, stop)));
    let stop = stops.last.clone();
    let routes = operations::router(Operations { health: health.clone(), metrics, pool: pools.reads.clone() });
    parts.spawn(named("operations port", listener::serve(operations, routes, OPERATIONS_CONNECTIONS_MAX, stop)));
    parts.spawn(named("pager", pager_worker.run()));
    parts.spawn(named("cursor reader", cursor_reader.run()));
    parts.spawn(named("sweep", pager::sweep(pools.reads.clone(), hub)));
    let (stop, acks) = (stops.cursors.clone(), pools.acks.clone());
    parts.spawn(named("cursor writer", async move { cursors.write(&acks, stop).await }));
    let stop = stops.last.clone();
    parts.spawn(named("fan-out", async move { fanout.receive(&broker, stop).await }));
    let stop = stops.ingest.clone();
    parts.spawn(named("ingest", async move { ingest.run(stop).await }));
    tracing::info!(listen = %config.listen, operations = %config.ops_listen, "shopbell serves");

    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        ended = parts.join_next() => bail!("a part of the service ended by itself: {}", name_of(ended)),
    }
    tracing::info!(drain_seconds = config.session.drain.as_secs(), "shopbell stops; a second signal ends it at once");
    health.draining.store(true, Ordering::Relaxed);
    tokio::select! {
        () = stop_in_order(&stops, &mut parts, &gateway, config.session.drain) => {}
        _ = terminated.recv() => bail!("ended by a second signal; what was not acknowledged is delivered again"),
        _ = interrupted.recv() => bail!("ended by a second signal; what was not acknowledged is delivered again"),
    }
    if tokio::time::timeout(STOP_STEP_TIMEOUT, pools.close()).await.is_err() {
        tracing::warn!("the database did not let go of its connections in time; they are dropped");
    }
    tracing::info!("shopbell stopped");
    Ok(())
}

/// One switch for each step of the stop.
#[derive(Debug, Default)]
struct Stops {
    ingest: CancellationToken,
    listeners: CancellationToken,
    cursors: CancellationToken,
    last: CancellationToken,
}

/// Ingest ends its batch, sessions are closed spread over the drain time, their acks are written, and the rest goes.
async fn stop_in_order(stops: &Stops, parts: &mut Parts, gateway: &Gateway, drain: Duration) {
    stops.ingest.cancel();
    ended(parts, "ingest").await;
    gateway.drain.cancel();
    gateway.sessions.close();
    if tokio::time::timeout(drain + STOP_STEP_TIMEOUT, gateway.sessions.wait()).await.is_err() {
        tracing::warn!(sessions = gateway.sessions.len(), "some sessions did not end in time and are dropped");
    }
    stops.listeners.cancel();
    ended(parts, "public port").await;
    stops.cursors.cancel();
    ended(parts, "cursor writer").await;
    stops.last.cancel();
    ended(parts, "operations port").await;
}

/// Waits for one part. Others that end meanwhile were told to, before.
async fn ended(parts: &mut Parts, part: &'static str) {
    let ending = async {
        while let Some(Ok(name)) = parts.join_next().await {
            if name == part {
                break;
            }
        }
    };
    if tokio::time::timeout(STOP_STEP_TIMEOUT, ending).await.is_err() {
        tracing::warn!(part, "this part did not end in time and is dropped");
    }
}

async fn named(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

fn name_of(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> String {
    match ended {
        Some(Ok(name)) => name.into(),
        Some(Err(error)) => error.to_string(),
        None => "all of them".into(),
    }
}

async fn bind(variable: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{variable}={address} cannot be listened on"))
}

//! `shopbell demo`: runs the service behind a relay, with routes for the buttons of the dashboard:
//! place orders, run an import, cut the connection.
//!
//! It listens on loopback only, or in a container whose ports are published on loopback only.

mod relay;

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::process::Command;

use self::relay::Relay;
use super::{UsageError, serve, terminal};
use crate::config::ServeConfig;
use crate::gateway::auth::{Authenticator, Right, Tokens};
use crate::gateway::handshake::bearer;
use crate::http::listener::reachable;
use crate::http::problem::Problem;
use crate::model::feed::{Feed, Subscriber};
use crate::telemetry::health::Health;

/// Lifetime of the token in the address of the dashboard.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Bounds of one request.
const ORDERS_MAX: u32 = 100;
const ITEMS_MAX: u32 = 10_000;
const CUT_SECONDS_MAX: u64 = 60;
/// Items of an import per second, slow enough to watch.
const ITEMS_PER_SECOND: &str = "60";
/// Delay of a cut, so that the response to its own request is sent.
const CUT_DELAY: Duration = Duration::from_millis(100);

/// The merchant, and the network of the demo.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The merchant of the dashboard
    #[arg(long, default_value = "merchant-42", value_name = "FEED", value_parser = Feed::parse)]
    recipient: Feed,
    /// Allow other addresses than loopback, for a container whose ports are published on loopback
    /// only
    #[arg(long)]
    in_container: bool,
}

/// The state of the routes.
#[derive(Debug)]
struct Demo {
    authenticator: Authenticator,
    recipient: Feed,
    relay: Arc<Relay>,
}

/// Runs the service, and prints the address of the dashboard with a token.
pub async fn run(arguments: Arguments, mut config: ServeConfig) -> anyhow::Result<()> {
    let Some(gateway) = config.roles.gateway_mut() else {
        return Err(UsageError("the demo needs both roles".into()).into());
    };
    let public = gateway.listen;
    for (variable, address) in [
        ("SHOPBELL_LISTEN", public),
        ("SHOPBELL_OPS_LISTEN", config.ops_listen),
    ] {
        if !address.ip().is_loopback() && !arguments.in_container {
            let problem = "must be on loopback, like 127.0.0.1:8080, because a visitor of the demo can place orders";
            return Err(UsageError(format!("{variable} {problem}")).into());
        }
    }
    gateway.dashboard = true;
    gateway.listen = free_address().context("could not find a free port for the service")?;
    let relay = Relay::start(public, gateway.listen)
        .await
        .with_context(|| format!("could not listen on SHOPBELL_LISTEN={public}"))?;
    let tokens = Arc::new(Tokens::new(&gateway.jwt, &Arc::default()));
    // The health of the service is that of its own tokens.
    tokio::spawn(tokens.clone().follow(Arc::new(Health::new(0, 0))));
    let token = token(&tokens, &arguments.recipient)?;
    let broadcast_feed = gateway.session.broadcast_feed.clone();
    let authenticator = Authenticator::new(tokens, broadcast_feed, Arc::default());
    let demo = Arc::new(Demo {
        authenticator,
        recipient: arguments.recipient,
        relay,
    });
    let routes = Router::new()
        .route("/demo/orders", post(place_orders))
        .route("/demo/imports", post(run_import))
        .route("/demo/cut", post(cut_connections))
        .with_state(demo);
    // A container publishes the same port.
    let address = reachable(public);
    terminal::write_lines(&terminal::text_line(&format!(
        "http://{address}/#token={token}&demo"
    )))?;
    serve::run_with(config, routes).await
}

fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn token(tokens: &Tokens, recipient: &Feed) -> anyhow::Result<String> {
    let subscriber = Subscriber::parse(recipient.as_str())?;
    tokens
        .mint(&subscriber, &[], &[], Right::None, TOKEN_TTL)
        .map_err(super::cannot_sign)
}

#[derive(Deserialize)]
struct OrdersRequest {
    count: u32,
}

async fn place_orders(
    State(demo): State<Arc<Demo>>,
    headers: HeaderMap,
    Json(orders): Json<OrdersRequest>,
) -> Result<StatusCode, Problem> {
    demo.check_token(&headers).await?;
    demo.publish(&["--count", &orders.count.clamp(1, ORDERS_MAX).to_string()])?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
struct ImportRequest {
    items: u32,
    failed: u32,
}

async fn run_import(
    State(demo): State<Arc<Demo>>,
    headers: HeaderMap,
    Json(import): Json<ImportRequest>,
) -> Result<StatusCode, Problem> {
    demo.check_token(&headers).await?;
    let items = import.items.clamp(1, ITEMS_MAX);
    let (failed, items) = (import.failed.min(items).to_string(), items.to_string());
    demo.publish(&[
        "--import",
        &items,
        "--failed",
        &failed,
        "--rate",
        ITEMS_PER_SECOND,
    ])?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
struct CutRequest {
    seconds: u64,
    #[serde(default)]
    orders: u32,
}

async fn cut_connections(
    State(demo): State<Arc<Demo>>,
    headers: HeaderMap,
    Json(cut): Json<CutRequest>,
) -> Result<StatusCode, Problem> {
    demo.check_token(&headers).await?;
    let seconds = Duration::from_secs(cut.seconds.clamp(1, CUT_SECONDS_MAX));
    tokio::spawn(async move {
        tokio::time::sleep(CUT_DELAY).await;
        demo.relay.cut(seconds);
        if cut.orders > 0
            && let Err(problem) =
                demo.publish(&["--count", &cut.orders.min(ORDERS_MAX).to_string()])
        {
            tracing::warn!(?problem, "could not place orders during the cut");
        }
    });
    Ok(StatusCode::ACCEPTED)
}

impl Demo {
    /// Rejects a request without a token of the merchant.
    async fn check_token(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let unauthorized = |detail: &str| {
            Problem::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, "Bearer")
        };
        let admitting = self.authenticator.admit(bearer(headers));
        let grant = admitting
            .await
            .map_err(|error| unauthorized(&error.to_string()))?;
        match grant.feeds.contains(&self.recipient) {
            true => Ok(()),
            false => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "the token is for another merchant",
            )),
        }
    }

    /// Runs `shopbell publish`.
    fn publish(&self, arguments: &[&str]) -> Result<(), Problem> {
        let spawned = std::env::current_exe().and_then(|shopbell| {
            let mut command = Command::new(shopbell);
            command
                .args(["publish", "--recipient", self.recipient.as_str()])
                .args(arguments);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
        });
        match spawned {
            Ok(mut publisher) => {
                // The wait leaves no zombie process. The command prints its own errors.
                tokio::spawn(async move { publisher.wait().await });
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "could not start shopbell publish");
                Err(Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "could not start shopbell publish",
                ))
            }
        }
    }
}

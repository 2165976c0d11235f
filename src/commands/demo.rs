//! `shopbell demo`: the service behind doors that can be shut, with buttons for the dashboard: place orders, run an import, cut
//! the connection. For one's own machine: it listens on loopback only, or in a container that is published there only.

mod doors;

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

use self::doors::Doors;
use super::{UsageError, serve, terminal};
use crate::config::ServeConfig;
use crate::gateway::auth::{Authenticator, Right, Tokens};
use crate::gateway::handshake::bearer;
use crate::http::listener::reachable;
use crate::http::problem::Problem;
use crate::model::feed::{Feed, Subscriber};

/// A development token is good for so long.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// What one press of a button may ask for.
const ORDERS_MAX: u32 = 100;
const ITEMS_MAX: u32 = 10_000;
const CUT_SECONDS_MAX: u64 = 60;
/// Items of an import a second: slow enough to watch.
const ITEMS_PER_SECOND: &str = "60";
/// The answer to the button is let out before the doors are shut.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Who is the merchant.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The merchant whose dashboard it is.
    #[arg(long, default_value = "merchant-42", value_name = "FEED", value_parser = Feed::parse)]
    recipient: Feed,
    /// Listen beyond loopback too: for a container, whose ports are published on this machine's loopback only.
    #[arg(long)]
    in_container: bool,
}

/// What the buttons need.
#[derive(Debug)]
struct Stage {
    authenticator: Authenticator,
    recipient: Feed,
    doors: Arc<Doors>,
}

/// Runs the service, and writes the dashboard's address with a token to stdout.
pub async fn run(arguments: Arguments, mut config: ServeConfig) -> anyhow::Result<()> {
    let Some(gateway) = config.roles.gateway_mut() else {
        return Err(UsageError("the demo needs the whole service".into()).into());
    };
    let public = gateway.listen;
    for (variable, address) in [
        ("SHOPBELL_LISTEN", public),
        ("SHOPBELL_OPS_LISTEN", config.ops_listen),
    ] {
        if !address.ip().is_loopback() && !arguments.in_container {
            let complaint =
                "must be on loopback, like 127.0.0.1:8080: the demo lets its visitor place orders";
            return Err(UsageError(format!("{variable} {complaint}")).into());
        }
    }
    gateway.dashboard = true;
    gateway.listen = free_address().context("no free port for the service")?;
    let doors = Doors::open(public, gateway.listen)
        .await
        .with_context(|| format!("SHOPBELL_LISTEN={public}"))?;
    let tokens = Arc::new(Tokens::new(&gateway.jwt));
    tokio::spawn(tokens.clone().follow());
    let token = token(&tokens, &arguments.recipient)?;
    let broadcast_feed = gateway.session.broadcast_feed.clone();
    let authenticator = Authenticator::new(tokens, broadcast_feed);
    let stage = Arc::new(Stage {
        authenticator,
        recipient: arguments.recipient,
        doors,
    });
    let buttons = Router::new()
        .route("/demo/orders", post(orders))
        .route("/demo/imports", post(import))
        .route("/demo/cut", post(cut))
        .with_state(stage);
    // In a container it is published under the same port.
    let address = reachable(public);
    terminal::write_lines(&terminal::text_line(&format!(
        "http://{address}/#token={token}&demo"
    )))?;
    serve::run_with(config, buttons).await
}

fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn token(tokens: &Tokens, recipient: &Feed) -> anyhow::Result<String> {
    let subscriber = Subscriber::parse(recipient.as_str())?;
    tokens
        .mint(&subscriber, &[], Right::None, TOKEN_TTL)
        .context("could not sign the token")
}

#[derive(Deserialize)]
struct Orders {
    count: u32,
}

async fn orders(
    State(stage): State<Arc<Stage>>,
    headers: HeaderMap,
    Json(orders): Json<Orders>,
) -> Result<StatusCode, Problem> {
    stage.admit(&headers)?;
    stage.publish(&["--count", &orders.count.clamp(1, ORDERS_MAX).to_string()])?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
struct ImportOf {
    items: u32,
    failed: u32,
}

async fn import(
    State(stage): State<Arc<Stage>>,
    headers: HeaderMap,
    Json(import): Json<ImportOf>,
) -> Result<StatusCode, Problem> {
    stage.admit(&headers)?;
    let items = import.items.clamp(1, ITEMS_MAX);
    let (failed, items) = (import.failed.min(items).to_string(), items.to_string());
    stage.publish(&[
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
struct Cut {
    seconds: u64,
    #[serde(default)]
    orders: u32,
}

async fn cut(
    State(stage): State<Arc<Stage>>,
    headers: HeaderMap,
    Json(cut): Json<Cut>,
) -> Result<StatusCode, Problem> {
    stage.admit(&headers)?;
    let seconds = Duration::from_secs(cut.seconds.clamp(1, CUT_SECONDS_MAX));
    tokio::spawn(async move {
        tokio::time::sleep(LAST_WORDS).await;
        stage.doors.shut(seconds);
        if cut.orders > 0
            && let Err(problem) =
                stage.publish(&["--count", &cut.orders.min(ORDERS_MAX).to_string()])
        {
            tracing::warn!(?problem, "no order was placed while the doors were shut");
        }
    });
    Ok(StatusCode::ACCEPTED)
}

impl Stage {
    /// Only who has the merchant's token may press a button.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let refused = |detail: &str| {
            Problem::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, "Bearer")
        };
        let token = bearer(headers).ok_or_else(|| refused("no token"))?;
        let grant = self
            .authenticator
            .check(token)
            .map_err(|error| refused(&error.to_string()))?;
        match grant.feeds.contains(&self.recipient) {
            true => Ok(()),
            false => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "the token is for another merchant",
            )),
        }
    }

    /// Publishes as everyone can: with `shopbell publish`.
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
                // Waited for, so that it leaves no trace; what went wrong it tells on stderr itself.
                tokio::spawn(async move { publisher.wait().await });
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "shopbell publish could not be started");
                Err(Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "shopbell publish could not be started",
                ))
            }
        }
    }
}

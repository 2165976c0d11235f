//! `shopbell relay`: publishes the rows of an outbox in the shop's own Postgres.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::serve::{OPERATIONS_CONNECTIONS_MAX, bind};
use super::{UsageError, broker_of, terminal};
use crate::config::{Environment, RelayConfig};
use crate::http::connections::Connections;
use crate::http::listener;
use crate::ops::relay::{RelayOperations, router};
use crate::outbox::relay::Relay;
use crate::outbox::state::State;
use crate::outbox::{self, probe};
use crate::telemetry::metrics::{ConnectionMetrics, RelayMetrics};
use crate::telemetry::process::Process;

/// Longest time of a stop. A confirm that is missing then comes for a row that is published again.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments of `shopbell relay`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the schema of the outbox for the shop's database, and exit
    #[arg(long)]
    print_sql: bool,
    /// Print the roles of the outbox for the shop's database, and exit
    #[arg(long, conflicts_with = "print_sql")]
    print_privileges: bool,
}

/// Runs until SIGTERM or SIGINT, then ends its batch.
///
/// # Errors
/// The operations port cannot be opened, a part ends unexpectedly, or a second signal arrives.
pub async fn run(arguments: Arguments, format: terminal::Format) -> anyhow::Result<()> {
    let text = match &arguments {
        Arguments {
            print_sql: true, ..
        } => outbox::SQL,
        Arguments {
            print_privileges: true,
            ..
        } => outbox::PRIVILEGES,
        _ => return relay(Environment::of_process().relay()?).await,
    };
    if format == terminal::Format::Json {
        return Err(UsageError("SQL has no JSON output".into()).into());
    }
    terminal::write(text.as_bytes())
}

async fn relay(config: RelayConfig) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process::starting()));
    let metrics = Arc::new(RelayMetrics::new(&mut registry));
    let (registry, state) = (Arc::new(registry), Arc::<State>::default());
    // A publisher may declare nothing, and needs no privilege for it.
    let mut broker = broker_of(&config.amqp)?;
    broker.declare = false;

    let (stop, last) = (CancellationToken::new(), CancellationToken::new());
    let listener = bind("SHOPBELL_OPS_LISTEN", config.ops_listen)?;
    let routes = router(RelayOperations {
        state: state.clone(),
        broker: broker.clone(),
        metrics: metrics.clone(),
        registry,
    });
    let connections = Connections::new(OPERATIONS_CONNECTIONS_MAX, ConnectionMetrics::default());
    let mut parts = JoinSet::new();
    parts.spawn(listener::serve(listener, routes, connections, last.clone()));
    let probing = probe::run(config.outbox.clone(), metrics.clone());
    parts.spawn(probing);
    let relay = Relay {
        options: config.outbox,
        broker,
        rows_max: config.batch.into(),
        state: state.clone(),
        metrics,
    };
    let mut relaying = tokio::spawn(relay.run(stop.clone()));
    tracing::info!(operations = %config.ops_listen, "shopbell relays");

    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        ended = &mut relaying => bail!("the relay ended unexpectedly: {ended:?}"),
        ended = parts.join_next() => bail!("a part of the relay ended unexpectedly: {ended:?}"),
    }
    tracing::info!("shopbell relay stops; a second signal ends it at once");
    state.drain();
    stop.cancel();
    tokio::select! {
        ended = tokio::time::timeout(STOP_TIMEOUT, relaying) => {
            if ended.is_err() {
                tracing::warn!("the last rows are not confirmed in time; they are published again");
            }
        }
        _ = terminated.recv() => bail!("ended by a second signal; unconfirmed rows are published again"),
        _ = interrupted.recv() => bail!("ended by a second signal; unconfirmed rows are published again"),
    }
    last.cancel();
    tracing::info!("shopbell relay stopped");
    Ok(())
}

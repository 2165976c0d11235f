//! The command line, with one file for each subcommand. Data goes to stdout, messages to stderr.
//! Only this room uses `anyhow`.

pub mod certificate;
pub mod completions;
pub mod config;
pub mod dead_letters;
pub mod declare;
pub mod demo;
pub mod doctor;
pub mod epoch;
pub mod forget;
pub mod healthcheck;
pub mod inspect;
pub mod migrate;
pub mod presence;
pub mod publish;
pub mod relay;
pub mod serve;
pub mod tail;
pub mod terminal;
pub mod token;
pub mod verify;

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::terminal::Format;
use crate::amqp::{Broker, QueueType};
use crate::config::{AmqpConfig, Environment};
use crate::gateway::auth::SignError;

/// Bound on the wait for RabbitMQ. A publish has its own bound.
const BROKER_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest body that a command reads to publish it: the greatest `SHOPBELL_MAX_EVENT_BYTES`.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The default of `RUST_LOG` for `serve`.
const SERVICE_LOG: &str = "info";

/// Order events from RabbitMQ to the merchant's dashboard over WebSocket: stored, acknowledged,
/// replayed.
#[derive(Debug, Parser)]
#[command(name = "shopbell", version, arg_required_else_help = true)]
pub struct Cli {
    /// Format of the data on stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "text|json", hide_possible_values = true)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve(serve::Arguments),
    /// Run the missing migrations of the database schema
    Migrate,
    /// Declare or verify the exchanges and queues in RabbitMQ
    Declare,
    /// Publish test events
    Publish(publish::Arguments),
    /// Run a client in the terminal: print notifications, send acks, reconnect
    Tail(tail::Arguments),
    /// Run the service with a demo dashboard: place orders, run an import, cut the connection
    Demo(demo::Arguments),
    /// Publish the rows of an outbox in the shop's own Postgres
    Relay(relay::Arguments),
    /// Sign a token for development
    Token(token::Arguments),
    /// List, replay or drop events that could not be stored
    #[command(subcommand)]
    DeadLetters(dead_letters::Action),
    /// Check whether the service on this machine is ready
    Healthcheck,
    /// Print each effective setting of `serve` without secrets, or all bad settings
    Config(config::Arguments),
    /// Print the notifications, cursors and undelivered numbers of a feed
    Inspect(inspect::Arguments),
    /// Print which devices of a feed have a session, and whether they can ring
    Presence(presence::Arguments),
    /// Print the certificate of an event: when it was stored, delivered, read and handled, and by which devices
    Certificate(certificate::Arguments),
    /// Show the epoch of the numbering, or begin a new one after the restore of a volume snapshot
    Epoch(epoch::Arguments),
    /// Erase the feed of one merchant: its notifications, cursors, marks, imports and dead letters
    Forget(forget::Arguments),
    /// Check this machine, Postgres and RabbitMQ for problems, without changes
    Doctor(doctor::Arguments),
    /// Compare the rows of the database with each other, for example after a restore
    Verify(verify::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// The arguments cannot be used. The text names the problem.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl Cli {
    /// The default of `RUST_LOG`. The service logs its work, the other commands log only problems.
    /// They print the errors of lapin themselves.
    pub fn log_default(&self) -> &'static str {
        match self.command {
            Command::Serve(_) | Command::Demo(_) | Command::Relay(_) => SERVICE_LOG,
            _ => "warn,lapin=off",
        }
    }

    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let format = self.output;
        match self.command {
            Command::Serve(arguments) => {
                serve::run(Environment::of_process().serve(arguments.role)?).await
            }
            Command::Demo(arguments) => {
                demo::run(arguments, Environment::of_process().serve(None)?).await
            }
            Command::Migrate => migrate::run(format).await,
            Command::Declare => declare::run(format).await,
            Command::Publish(arguments) => publish::run(arguments, format).await,
            Command::Relay(arguments) => relay::run(arguments, format).await,
            Command::Tail(arguments) => tail::run(arguments, format).await,
            Command::Token(arguments) => token::run(&arguments, format),
            Command::DeadLetters(action) => dead_letters::run(action, format).await,
            Command::Healthcheck => healthcheck::run().await,
            Command::Config(arguments) => config::run(&arguments, format),
            Command::Inspect(arguments) => inspect::run(&arguments, format).await,
            Command::Presence(arguments) => presence::run(&arguments, format).await,
            Command::Certificate(arguments) => certificate::run(&arguments, format).await,
            Command::Epoch(arguments) => epoch::run(&arguments, format).await,
            Command::Forget(arguments) => forget::run(&arguments, format).await,
            Command::Doctor(arguments) => doctor::run(&arguments, format).await,
            Command::Verify(arguments) => verify::run(arguments, format).await,
            Command::Completions(arguments) => completions::run(&arguments),
        }
    }
}

/// RabbitMQ, as the environment configures it.
fn broker() -> anyhow::Result<Broker> {
    broker_of(&Environment::of_process().amqp()?)
}

fn broker_of(config: &AmqpConfig) -> anyhow::Result<Broker> {
    let queue_type = match config.has_classic_queues {
        true => QueueType::Classic,
        false => QueueType::Quorum,
    };
    let broker = Broker::new(
        config.url.reveal(),
        &config.prefix,
        config.partitions,
        queue_type,
        config.declare,
    );
    broker.map_err(|problem| UsageError(format!("AMQP_URL {problem}")).into())
}

/// Reads a body of an event, up to [`BODY_BYTES_MAX`].
fn read_body(source: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    source.take(BODY_BYTES_MAX + 1).read_to_end(&mut body)?;
    if body.len() as u64 > BODY_BYTES_MAX {
        anyhow::bail!("it has more than 16 MiB, which is more than Shopbell can store");
    }
    Ok(body)
}

/// The error of a token that cannot be signed.
fn cannot_sign(error: SignError) -> anyhow::Error {
    match error {
        SignError::NoSecret => UsageError(error.to_string()).into(),
        SignError::Failed(_) => anyhow::Error::new(error).context("could not sign the token"),
    }
}

/// Bounds the time of an operation, and names the operation in its error.
async fn within<T, E: Into<anyhow::Error>>(
    limit: Duration,
    operation: &'static str,
    future: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(result) => result.map_err(Into::into).context(operation),
        Err(_) => anyhow::bail!("{operation}: no response within {} s", limit.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_body_has_up_to_16_mib() {
        let zeros = |bytes| std::io::repeat(0).take(bytes);
        assert!(read_body(zeros(BODY_BYTES_MAX)).is_ok());
        assert!(read_body(zeros(BODY_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn an_argument_has_the_range_of_its_option() {
        for (command, good, bad) in [
            (
                "publish --recipient m --count",
                &["1"][..],
                &["0", "-1", "x"][..],
            ),
            (
                "publish --recipient m --rate",
                &["0.001", "1000000"],
                &["0.0009", "1000001", "NaN"],
            ),
            (
                "publish --recipient m --expires-in-seconds",
                &["0", "3155760000"],
                &["3155760001"],
            ),
            (
                "publish --recipient m --import",
                &["0", "1000000000"],
                &["1000000001"],
            ),
            (
                "token --subscriber m --ttl-seconds",
                &["1", "315360000"],
                &["0", "315360001"],
            ),
            (
                "dead-letters list --limit",
                &["1", "4294967295"],
                &["0", "4294967296"],
            ),
            ("inspect m --seq", &["1"], &["0"]),
            ("tail --count", &["1"], &["0"]),
        ] {
            let accepts = |value: &str| {
                let arguments = ["shopbell"].into_iter().chain(command.split(' '));
                Cli::try_parse_from(arguments.chain([value])).is_ok()
            };
            assert!(good.iter().all(|value| accepts(value)), "{command}");
            assert!(bad.iter().all(|value| !accepts(value)), "{command}");
        }
    }
}

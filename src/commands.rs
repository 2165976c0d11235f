//! The command line: one file a subcommand. Data goes to stdout, talk to stderr; `anyhow` is used here and nowhere else.

pub mod completions;
pub mod config;
pub mod dead_letters;
pub mod declare;
pub mod demo;
pub mod doctor;
pub mod epoch;
pub mod healthcheck;
pub mod inspect;
pub mod migrate;
pub mod publish;
pub mod serve;
pub mod tail;
pub mod terminal;
pub mod token;

use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::terminal::Format;
use crate::amqp::Broker;
use crate::config::{AmqpConfig, Environment};

/// How long RabbitMQ may take to answer anything but a publish, which has a limit of its own.
const BROKER_TIMEOUT: Duration = Duration::from_secs(20);

/// What `serve` logs where `RUST_LOG` says nothing.
const SERVICE_LOG: &str = "info";

/// Order events from RabbitMQ to the merchant's dashboard over WebSocket: stored, acknowledged, replayed.
#[derive(Debug, Parser)]
#[command(name = "shopbell", version, arg_required_else_help = true)]
pub struct Cli {
    /// How data is written to stdout.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "text|json", hide_possible_values = true)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(serve::Arguments),
    /// Bring the database schema up to date.
    Migrate,
    /// Declare the exchanges and queues in RabbitMQ, or verify them, and consume nothing.
    Declare,
    /// Publish test events, each confirmed by RabbitMQ.
    Publish(publish::Arguments),
    /// Be a client in the terminal: print notifications, acknowledge them, reconnect.
    Tail(tail::Arguments),
    /// Run the service on this machine with a dashboard to play with: place orders, run an import, cut the connection.
    Demo(demo::Arguments),
    /// Mint a development token.
    Token(token::Arguments),
    /// Look at events that could not be stored, bring them back, or drop them.
    #[command(subcommand)]
    DeadLetters(dead_letters::Action),
    /// Ask the service on this machine whether it can work now.
    Healthcheck,
    /// Tell each setting that `serve` would run on, without secrets, or all that is wrong with them.
    Config(config::Arguments),
    /// Tell what is known of a feed: what it holds, who has acknowledged how much, what is undelivered.
    Inspect(inspect::Arguments),
    /// Show the epoch of the numbering, or begin a new one after the restore of a volume snapshot.
    Epoch(epoch::Arguments),
    /// Look for what would keep the service from its promise: here, in Postgres, in RabbitMQ. Changes nothing.
    Doctor(doctor::Arguments),
    /// Write a script with which a shell completes these commands.
    Completions(completions::Arguments),
}

/// The command was asked for something that cannot be; the text says what.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl Cli {
    /// What is logged where `RUST_LOG` says nothing: a service tells what it does, a tool only what is wrong. lapin's
    /// errors come back to the tool, which tells them itself.
    pub fn log_default(&self) -> &'static str {
        match self.command {
            Command::Serve(_) | Command::Demo(_) => SERVICE_LOG,
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
            Command::Tail(arguments) => tail::run(arguments, format).await,
            Command::Token(arguments) => token::run(&arguments, format),
            Command::DeadLetters(action) => dead_letters::run(action, format).await,
            Command::Healthcheck => healthcheck::run().await,
            Command::Config(arguments) => config::run(&arguments, format),
            Command::Inspect(arguments) => inspect::run(&arguments, format).await,
            Command::Epoch(arguments) => epoch::run(&arguments, format).await,
            Command::Doctor(arguments) => doctor::run(&arguments, format).await,
            Command::Completions(arguments) => completions::run(&arguments),
        }
    }
}

/// RabbitMQ, as the environment names it.
fn broker() -> anyhow::Result<Broker> {
    broker_of(&Environment::of_process().amqp()?)
}

fn broker_of(config: &AmqpConfig) -> anyhow::Result<Broker> {
    let broker = Broker::new(
        config.url.reveal(),
        &config.prefix,
        config.partitions,
        config.declare,
    );
    broker.map_err(|complaint| UsageError(format!("AMQP_URL {complaint}")).into())
}

/// Gives something a limit and says what it was where it fails.
async fn within<T, E: Into<anyhow::Error>>(
    limit: Duration,
    what: &'static str,
    future: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(result) => result.map_err(Into::into).context(what),
        Err(_) => anyhow::bail!("{what}: no answer within {} s", limit.as_secs()),
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
}

//! Logs, traces and metrics: every name in one place.

mod conventions;
pub mod exposition;
pub mod health;
pub mod instruments;
pub mod labels;
pub mod metrics;
pub mod process;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use self::traces::Traces;

/// Always on top: lapin logs a returned message with its whole body, and a closed channel as an error also where RabbitMQ
/// only says that a queue is not there (what is an error comes back to us, and is told there); and a socket that we end, as
/// one that failed. sqlx logs a slow statement with its text.
const LOG_ALWAYS: [&str; 4] = [
    "lapin::returned_messages=error",
    "lapin::channel=off",
    "lapin::io_loop=off",
    "sqlx::query=off",
];

/// Sends the log to stderr, as text to a terminal, else as JSON, one object a line; and traces where the environment asks
/// for them. What it returns is to be stopped at the end.
pub fn start(log_default: &str) -> Option<Traces> {
    let mut filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(log_default));
    for directive in LOG_ALWAYS {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let (traces, trouble) = match Traces::from_environment() {
        Some(Ok(traces)) => (Some(traces), None),
        Some(Err(trouble)) => (None, Some(trouble)),
        None => (None, None),
    };
    let log = fmt::layer().with_writer(std::io::stderr);
    let log = match std::io::stderr().is_terminal() {
        true => log.boxed(),
        false => log.json().flatten_event(true).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(log.with_filter(filter))
        .init();
    if let Some(trouble) = trouble {
        tracing::error!("{trouble}");
    }
    traces
}

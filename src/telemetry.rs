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

/// Directives that no setting overrides. lapin logs returned messages with their bodies, and logs channels and sockets that
/// we close as errors; real errors are returned to us and logged there. sqlx logs slow statements with their text.
const LOG_ALWAYS: [&str; 4] = [
    "lapin::returned_messages=error",
    "lapin::channel=off",
    "lapin::io_loop=off",
    "sqlx::query=off",
];

/// Logs to stderr: as text to a terminal, else as JSON lines. Exports traces if the environment configures them; call
/// [`Traces::stop`] at the end.
pub fn start(log_default: &str) -> Option<Traces> {
    let mut filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(log_default));
    for directive in LOG_ALWAYS {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let (traces, failure) = match Traces::from_environment() {
        Some(Ok(traces)) => (Some(traces), None),
        Some(Err(failure)) => (None, Some(failure)),
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
    if let Some(failure) = failure {
        tracing::error!("{failure}");
    }
    traces
}

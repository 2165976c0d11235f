//! Parses the command line, runs the command, and sets the exit status: 0 for success, 1 for a
//! failure, 2 for bad arguments or settings.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use shopbell::commands::terminal::{self, StdoutClosed};
use shopbell::commands::{Cli, UsageError};
use shopbell::config::ConfigError;
use shopbell::telemetry;
use tikv_jemallocator::Jemalloc;

/// Its thread returns freed memory to the system, also while nothing happens. The allocator of glibc
/// keeps most of it after a burst of replays.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const FAILED: u8 = 1;
/// Also the status of clap for a command line that it rejects.
const USAGE_ERROR: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let traces = telemetry::start(cli.log_default());
    let result = cli.run().await;
    if let Some(traces) = traces {
        // `stop` blocks for a bounded time. Its panic must not change the exit status.
        let _ = tokio::task::spawn_blocking(|| traces.stop()).await;
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of stdout has ended, as `head` does after its last line.
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            terminal::write_message(&format!("shopbell: {}", terminal::chain(&error)));
            let is_usage_error = error.is::<ConfigError>() || error.is::<UsageError>();
            ExitCode::from(if is_usage_error { USAGE_ERROR } else { FAILED })
        }
    }
}

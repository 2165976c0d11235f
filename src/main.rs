//! Parses the command line, runs the command, sets the exit status: 0 it worked, 1 it failed, 2 it was asked wrongly.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use shopbell::commands::terminal::{self, StdoutClosed};
use shopbell::commands::{Cli, UsageError};
use shopbell::config::ConfigError;
use shopbell::telemetry;

const FAILED: u8 = 1;
/// clap's own status for a command line that it does not take.
const ASKED_WRONGLY: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let traces = telemetry::start(cli.log_default());
    let outcome = cli.run().await;
    if let Some(traces) = traces {
        // It blocks, and has a limit of its own; if it panics there is nobody left to tell.
        let _ = tokio::task::spawn_blocking(|| traces.stop()).await;
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our stdout has had enough, as `head` does: nothing is wrong.
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            terminal::talk(&format!("shopbell: {}", terminal::chain(&error)));
            let asked_wrongly = error.is::<ConfigError>() || error.is::<UsageError>();
            ExitCode::from(if asked_wrongly { ASKED_WRONGLY } else { FAILED })
        }
    }
}

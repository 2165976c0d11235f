//! The other subcommands, run as an operator runs them.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::process::{Environment, shopbell, signal};

/// Bound for a command, also if it waits for events that a story publishes meanwhile.
const COMMAND_BOUND: Duration = Duration::from_secs(60);

/// The output and the exit status of a command.
#[derive(Debug)]
pub struct Done {
    /// The exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// Asserts exit status 0.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    pub fn failed_with(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self:?}");
        self
    }

    /// The output of `--output json`: one object in each line.
    #[track_caller]
    pub fn json_lines<T: DeserializeOwned>(&self) -> Vec<T> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// Runs `shopbell` with `arguments` to its end.
pub async fn run(environment: &Environment, arguments: &[&str]) -> Done {
    let mut command = shopbell(environment);
    command.args(arguments).stdin(Stdio::null());
    run_any(command, COMMAND_BOUND).await
}

/// Runs any command to its end, which must come within `bound`.
pub async fn run_any(mut command: Command, bound: Duration) -> Done {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{:?} does not start: {error}", command.get_program()));
    let pid = child.id();
    let output = spawn_blocking(move || {
        child
            .wait_with_output()
            .expect("a command can be waited for")
    });
    match timeout(bound, output).await {
        Ok(output) => done(output.expect("waiting for a command does not panic")),
        Err(_) => {
            signal(pid, "KILL");
            let (program, arguments) = (
                command.get_program(),
                command.get_args().collect::<Vec<_>>(),
            );
            panic!("{program:?} {arguments:?} did not end within {bound:?}");
        }
    }
}

fn done(output: Output) -> Done {
    Done {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("data on stdout is UTF-8"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

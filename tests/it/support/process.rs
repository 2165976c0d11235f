//! The shipped binary as a process, with a clean environment and signals by its own id.

use std::collections::BTreeMap;
use std::process::Command;

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// The `shopbell` that this run built, with `environment` and none of the tester's own settings.
pub fn shopbell(environment: &Environment) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shopbell"));
    command.env_clear();
    for inherited in ["PATH", "HOME", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(inherited) {
            command.env(inherited, value);
        }
    }
    command
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LOG", "info")
        .envs(environment);
    command
}

/// Sends `signal` (`TERM`, `KILL`) to the process `pid`, which this test started.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {pid}")])
        .status()
        .expect("sh runs");
    assert!(sent.success(), "signal {signal} could not be sent to {pid}");
}

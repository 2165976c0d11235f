//! Prometheus' own checks of our metrics and of our rules.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Done;
use super::command::run_any;

/// Bound for a check.
const BOUND: Duration = Duration::from_secs(60);
/// Bound for the installation on a slow network.
const INSTALL_BOUND: Duration = Duration::from_secs(900);

/// Runs `promtool` with `arguments` and this stdin.
pub async fn promtool(arguments: &[&str], input: Option<&str>) -> Done {
    let mut install = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
    install.arg("promtool").stdin(Stdio::null());
    run_any(install, INSTALL_BOUND).await.succeeded();
    let mut promtool = Command::new("promtool");
    let input = input.map(|file| File::open(file).expect("the file can be read"));
    promtool
        .args(arguments)
        .stdin(input.map_or_else(Stdio::null, Stdio::from));
    run_any(promtool, BOUND).await
}

//! Programs of RabbitMQ and Postgres: those of this machine, or those of another Debian that
//! `SHOPBELL_SERVICES_ROOT` names. `scripts/install forky` makes one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::task::spawn_blocking;

/// A command that runs `program`, and that can use `folder`.
pub fn program(program: &str, folder: &Path) -> Command {
    let Some(root) = other_root() else {
        return Command::new(program);
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/in-root");
    let mut command = Command::new(script);
    command.arg(root).arg(folder).arg(program);
    command
}

/// The path on this machine of a file that belongs to the programs.
pub fn installed(path: &str) -> PathBuf {
    other_root()
        .unwrap_or_else(|| PathBuf::from("/"))
        .join(path.trim_start_matches('/'))
}

/// Its output. Panics if it fails.
pub async fn run(mut command: Command) -> String {
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/");
    let shown = format!("{command:?}");
    let output = spawn_blocking(move || command.output())
        .await
        .expect("waiting does not panic")
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(
        output.status.success(),
        "{shown}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn other_root() -> Option<PathBuf> {
    std::env::var_os("SHOPBELL_SERVICES_ROOT")
        .filter(|root| !root.is_empty())
        .map(PathBuf::from)
}

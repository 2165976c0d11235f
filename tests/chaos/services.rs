//! RabbitMQ and Postgres of this run, which may be killed.

use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::spawn_blocking;

/// Private services. They stop at the end, and one story at a time holds them.
pub struct Services {
    pub database_url: String,
    pub amqp_url: String,
    _alone: MutexGuard<'static, ()>,
}

impl Services {
    /// Starts both as soon as no other story holds them.
    pub async fn up() -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let printed = scripts_services(vec!["up"]).await;
        let url = |name: &str| {
            let line = printed
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("scripts/services up printed no {name}: {printed}"))
                .to_owned()
        };
        Self {
            database_url: url("DATABASE_URL"),
            amqp_url: url("AMQP_URL"),
            _alone: alone,
        }
    }

    /// The process of a service that runs.
    pub fn process(&self, service: &str) -> u32 {
        let file = folder().join(format!("{service}.pid"));
        let text = std::fs::read_to_string(file).expect("the service runs");
        let process = text.split_whitespace().next();
        process
            .and_then(|process| process.parse().ok())
            .expect("scripts/services writes the process and its start")
    }

    /// Runs `scripts/services action service` to its end.
    pub async fn act(&self, action: &'static str, service: &'static str) {
        scripts_services(vec![action, service]).await;
    }

    /// Runs `rabbitmqctl` to its end, and returns its output.
    pub async fn rabbitmqctl<const N: usize>(&self, arguments: [&'static str; N]) -> String {
        let mut all = vec!["rabbitmqctl"];
        all.extend(arguments);
        scripts_services(all).await
    }

    /// Sets the memory limit above which RabbitMQ raises its alarm and accepts no publishes.
    pub async fn set_memory_bound(&self, bound: &'static str) {
        self.rabbitmqctl(["set_vm_memory_high_watermark", bound])
            .await;
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        command(&["down"]).status().ok();
    }
}

/// Its output. Panics if it fails.
async fn scripts_services(arguments: Vec<&'static str>) -> String {
    let shown = arguments.join(" ");
    let run = spawn_blocking(move || command(&arguments).output().expect("scripts/services runs"));
    let output = run.await.expect("waiting for a script does not panic");
    assert!(
        output.status.success(),
        "scripts/services {shown}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("it prints text")
}

/// In a directory of its own, apart from other services of the caller.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services"));
    command
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("AMQP_URL");
    command.env("SHOPBELL_SERVICES_DIR", folder());
    command
}

fn folder() -> PathBuf {
    // The data of one version of Postgres do not start with another.
    let version = std::env::var("SHOPBELL_SERVICES_ROOT").unwrap_or_default();
    let version = Path::new(&version).file_name().unwrap_or_default();
    let name = format!("chaos-services{}", version.display());
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

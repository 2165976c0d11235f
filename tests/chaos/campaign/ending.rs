//! The end of a run: everything is drained, the database is dumped, and the checker judges.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::dump::dump;
use super::history::secrets_in;
use super::population::{HERD, Population, Temper};
use super::stage::{Stage, name};

const POLL: Duration = Duration::from_millis(500);

/// Waits until every good event is stored and every connected device has acknowledged everything.
/// After `bound` without progress, it returns a description of the rest. The backlog of an overload
/// needs longer than any fixed time.
pub async fn drained(
    stage: &Arc<Stage>,
    population: &Population,
    bound: Duration,
) -> Option<String> {
    let (mut deadline, mut before) = (Instant::now() + bound, String::new());
    loop {
        let missing = match behind(stage, population).await {
            Ok(None) => return None,
            Ok(Some(missing)) => missing,
            Err(error) => error.to_string(),
        };
        if missing != before {
            deadline = Instant::now() + bound;
            before.clone_from(&missing);
        }
        if Instant::now() >= deadline {
            return Some(missing);
        }
        sleep(POLL).await;
    }
}

/// The first devices whose cursors are behind.
async fn behind(
    stage: &Arc<Stage>,
    population: &Population,
) -> Result<Option<String>, sqlx::Error> {
    let stored: i64 = sqlx::query_scalar("select coalesce(sum(last_seq), 0)::bigint from feeds")
        .fetch_one(&stage.pool)
        .await?;
    let good = stage.load.good();
    let is_lossy = stage.parts.setting.is_lossy();
    if stored.unsigned_abs() < good && !is_lossy {
        return Ok(Some(format!("{stored} of {good} events are stored")));
    }
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select c.feed, c.subscriber, c.device from cursors c join feeds f on f.feed = c.feed
         where c.acked_seq < f.last_seq and not starts_with(c.subscriber, $1)
         union all
         select f.feed, '', '' from feeds f where not exists (select from cursors c where c.feed = f.feed)",
    )
    .bind(HERD)
    .fetch_all(&stage.pool)
    .await?;
    let offline = |subscriber: &String| {
        population
            .devices
            .iter()
            .any(|device| device.subscriber == *subscriber && device.temper == Temper::Offline)
    };
    let behind: Vec<_> = rows
        .iter()
        .filter(|(feed, subscriber, _)| {
            !offline(if subscriber.is_empty() {
                feed
            } else {
                subscriber
            })
        })
        .map(|(feed, subscriber, device)| format!("{subscriber}/{device} in {feed}"))
        .collect();
    Ok((!behind.is_empty()).then(|| {
        format!(
            "{} devices are behind: {}",
            behind.len(),
            behind[..behind.len().min(5)].join(", ")
        )
    }))
}

/// Writes the final tables, and the texts of the logs that no log may contain.
pub async fn write_down(stage: &Arc<Stage>) {
    dump(&stage.pool, &stage.history).await;
    let forbidden = [
        stage.world.secret().to_owned(),
        password(stage.world.database_url()),
        password(stage.world.amqp_url()),
    ];
    for (replica, process) in stage.replicas.iter().enumerate() {
        let path = log_path(stage.history.folder(), replica);
        let log = std::fs::read(path).expect("the log of a replica can be read");
        for line in String::from_utf8_lossy(&log).lines() {
            let leaks = forbidden.iter().any(|text| line.contains(text))
                || !secrets_in(line).is_empty()
                || line.contains(TOKEN);
            if leaks {
                stage.history.note_leak(&name(replica), line);
            }
        }
        let lines = String::from_utf8_lossy(&log).lines().count();
        stage.history.note_searched(&name(replica), lines);
        for panic in process.panics() {
            let text = format!("{} panicked: {panic}", name(replica));
            stage.history.object(text);
        }
    }
}

/// The start of every JSON Web Token. The body of an event has a secret.
const TOKEN: &str = "eyJ";

fn log_path(folder: &Path, replica: usize) -> PathBuf {
    folder.join("logs").join(format!("{}.log", name(replica)))
}

fn password(url: &str) -> String {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    let (user, _) = rest.split_once('@').unwrap_or_default();
    let (_, password) = user.split_once(':').unwrap_or_default();
    assert!(!password.is_empty(), "the services have passwords");
    password.to_owned()
}

/// Runs the checker, and writes its verdict to `verdict.json`. Returns the verdict, and whether it is
/// good.
pub async fn judge(folder: &Path) -> (Value, bool) {
    let checker = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/checker");
    assert!(
        checker.exists(),
        "the checker is missing: {}",
        checker.display()
    );
    let run = async |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.arg("-B").arg(&checker).arg(folder).args(arguments);
        command.output().await.expect("python3 runs")
    };
    let output = run(&["--json"]).await;
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    std::fs::write(folder.join("verdict.json"), &output.stdout).expect("a file can be written");
    let good = output.status.success();
    if !good {
        let table = run(&[]).await;
        eprintln!(
            "{}{}",
            String::from_utf8_lossy(&table.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    (verdict, good)
}

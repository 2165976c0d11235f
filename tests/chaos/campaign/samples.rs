//! Samples of readiness and memory.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::history::Book;
use super::stage::{Stage, name};

const INTERVAL: Duration = Duration::from_millis(500);
/// Longer than the check of the database behind `/readyz`.
const BOUND: Duration = Duration::from_secs(4);

/// Records one replica. It never returns.
pub async fn sample(stage: &Stage, replica: usize) {
    let (name, process) = (name(replica), &stage.replicas[replica]);
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 0_u64.. {
        tick.tick().await;
        let asked = stage.history.now();
        let reply = timeout(BOUND, process.try_get("/readyz")).await;
        let (status, body) = match reply {
            Ok(Ok(reply)) => (reply.status, serde_json::from_slice(&reply.body).ok()),
            Ok(Err(_)) | Err(_) => (0, None),
        };
        let body: Value = body.unwrap_or_default();
        let sample = json!({
            "replica": name, "asked": asked, "status": status, "postgres": body["database"], "broker": body["broker"],
        });
        stage.history.note(Book::Samples, "readiness", sample);
        if round % 2 == 0
            && let Some(rss) = process.process_id().and_then(rss_bytes)
        {
            let sample = json!({"replica": name, "rss": rss});
            stage.history.note(Book::Samples, "memory", sample);
        }
    }
}

/// Records how long Postgres needs to answer the recorder itself, without a proxy and over a new connection, as a replica
/// needs one after a fault. If it needs long, the machine is overloaded or Postgres is away. It never returns.
pub async fn witness(stage: &Stage) {
    let options = stage.pool.connect_options();
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let asked = stage.history.now();
        let answer = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            sqlx::query("select count(*) from epochs")
                .execute(&mut connection)
                .await?;
            connection.close().await
        };
        let answered = timeout(BOUND, answer)
            .await
            .is_ok_and(|answer| answer.is_ok());
        let sample = json!({"asked": asked, "answered": answered});
        stage.history.note(Book::Samples, "witness", sample);
    }
}

/// `None` if the process has ended meanwhile.
fn rss_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1_024)
}

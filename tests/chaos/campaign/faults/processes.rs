//! Processes that are killed, stopped or paused.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::effects;
use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::{REPLICAS, Stage, name};
use crate::it::support::process::signal;

/// A replica has a deadline for its stop: the drain and 15 seconds. This is far above.
const STOP_BOUND: Duration = Duration::from_secs(60);
/// Bound for a replica of a rolling restart to serve again.
const READY_BOUND: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// `kill -9` of some replicas.
pub fn kill_replicas(stage: &Arc<Stage>, random: &mut Rng, count: usize) -> Plan {
    let (stage, replicas) = (Arc::clone(stage), some(random, count));
    Plan {
        hits: replicas.iter().copied().map(name).collect(),
        target: format!("{} killed", names(&replicas)),
        total: true,
        begin: async move {
            let mut killed = 0;
            for replica in &replicas {
                stage.hold(*replica);
                killed += u64::from(stage.replicas[*replica].is_running());
                stage.replicas[*replica].kill();
            }
            End::by(async move {
                replicas.iter().for_each(|replica| stage.release(*replica));
                killed
            })
        }
        .boxed(),
    }
}

/// SIGSTOP of a replica.
pub fn pause_replica(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, replica) = (Arc::clone(stage), random.usize(..REPLICAS));
    Plan {
        hits: vec![name(replica)],
        target: format!("{} paused", name(replica)),
        total: true,
        begin: async move {
            let processes: Vec<u32> = stage.replicas[replica].process_id().into_iter().collect();
            pause(processes)
        }
        .boxed(),
    }
}

/// SIGTERM of some replicas at once, so that their drains overlap.
pub fn terminate_replicas(stage: &Arc<Stage>, random: &mut Rng, count: usize) -> Plan {
    let (stage, replicas) = (Arc::clone(stage), some(random, count));
    Plan {
        hits: replicas.iter().copied().map(name).collect(),
        target: format!("{} terminated", names(&replicas)),
        total: true,
        begin: async move {
            let ending = replicas.iter().map(|replica| terminate(&stage, *replica));
            let ended: u64 = join_all(ending).await.into_iter().map(u64::from).sum();
            End::by(async move {
                replicas.iter().for_each(|replica| stage.release(*replica));
                ended
            })
        }
        .boxed(),
    }
}

/// Each replica in turn stops, starts and serves again, as in an update.
pub fn restart_in_turn(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: (0..REPLICAS).map(name).collect(),
        target: "all replicas, one after the other".to_owned(),
        total: false,
        // The restart belongs to the end, because another fault may keep the replicas unready until it ends.
        begin: async move {
            End::by(async move {
                let mut restarted = 0;
                for replica in 0..REPLICAS {
                    restarted += u64::from(restart(&stage, replica).await);
                }
                restarted
            })
        }
        .boxed(),
    }
}

/// Returns whether the replica ended in order.
async fn restart(stage: &Stage, replica: usize) -> bool {
    let ended = terminate(stage, replica).await;
    stage.release(replica);
    let deadline = Instant::now() + READY_BOUND;
    while !is_ready(stage, replica).await {
        if Instant::now() >= deadline {
            let name = name(replica);
            stage
                .history
                .object(format!("{name} did not get ready in a rolling restart"));
            break;
        }
        sleep(POLL).await;
    }
    ended
}

/// A service that is away until it is started again. `action` is one of `scripts/services`.
pub fn service(stage: &Arc<Stage>, service: &'static str, action: &'static str) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec![service.to_owned()],
        target: format!("{action} {service}"),
        total: true,
        begin: async move {
            let process = stage.services.process(service);
            stage.services.act(action, service).await;
            let ended = !effects::is_running(process);
            End::by(async move {
                stage.services.act("start", service).await;
                ended.into()
            })
        }
        .boxed(),
    }
}

/// SIGSTOP of a service with its children.
pub fn pause_service(stage: &Arc<Stage>, service: &'static str) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec![service.to_owned()],
        target: format!("{service} paused"),
        total: true,
        begin: async move {
            let first = stage.services.process(service);
            // The parent first, so that it starts no more children.
            let mut processes = vec![first];
            signal(first, "STOP");
            processes.extend(children(first));
            pause(processes)
        }
        .boxed(),
    }
}

fn pause(processes: Vec<u32>) -> End {
    for process in &processes {
        try_signal(*process, "STOP");
    }
    End::by(async move {
        let paused = processes
            .iter()
            .filter(|process| effects::is_paused(**process));
        let paused = paused.count() as u64;
        for process in processes.iter().rev() {
            try_signal(*process, "CONT");
        }
        paused
    })
}

/// Sends SIGTERM, waits for the end, and keeps the replica down. Returns whether it ended so.
async fn terminate(stage: &Stage, replica: usize) -> bool {
    stage.hold(replica);
    let process = &stage.replicas[replica];
    let mut ends = process.is_running();
    if let Some(id) = process.process_id() {
        try_signal(id, "TERM");
    }
    let deadline = Instant::now() + STOP_BOUND;
    while process.is_running() {
        if Instant::now() >= deadline {
            let name = name(replica);
            stage
                .history
                .object(format!("{name} still ran {STOP_BOUND:?} after SIGTERM"));
            process.kill();
            ends = false;
        }
        sleep(POLL).await;
    }
    ends
}

async fn is_ready(stage: &Stage, replica: usize) -> bool {
    let reply = stage.replicas[replica].try_get("/readyz").await;
    reply.is_ok_and(|reply| reply.status == 200)
}

/// The process may have ended meanwhile.
fn try_signal(process: u32, signal: &str) {
    std::process::Command::new("kill")
        .args([format!("-{signal}"), process.to_string()])
        .stderr(std::process::Stdio::null())
        .status()
        .expect("kill runs");
}

fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc can be read");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process| parent_of(*process) == Some(parent))
        .collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Different replicas.
fn some(random: &mut Rng, count: usize) -> Vec<usize> {
    let mut replicas: Vec<_> = (0..REPLICAS).collect();
    random.shuffle(&mut replicas);
    replicas.truncate(count);
    replicas
}

fn names(replicas: &[usize]) -> String {
    replicas
        .iter()
        .copied()
        .map(name)
        .collect::<Vec<_>>()
        .join(" and ")
}

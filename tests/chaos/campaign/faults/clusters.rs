//! Faults of a cluster, of a disk and of clocks.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::{REPLICAS, Stage, name};
use crate::rabbitmq_cluster::NODES;

/// While one node of RabbitMQ is down, so many further events must be stored.
const STORED_MEANWHILE: i64 = 400;
/// Time for them, with the reconnection of everything that was connected to the node.
const MEANWHILE_BOUND: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// A correction of a clock. The tokens of clients are valid for longer.
const CLOCK_SECONDS: std::ops::Range<i64> = 30..300;

/// `kill -9` of one node of RabbitMQ. The others must go on, so it stays down until they have.
pub fn kill_node(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, node) = (Arc::clone(stage), random.usize(..NODES));
    Plan {
        hits: vec!["rabbitmq".to_owned()],
        target: format!("node {node} is killed"),
        total: false,
        begin: async move {
            let killed = stage.parts.rabbitmq().await.kill(node);
            End::by(async move {
                expect_progress(&stage, node).await;
                let mut cluster = stage.parts.rabbitmq().await;
                cluster.restart(node).await;
                cluster.whole().await;
                killed.into()
            })
        }
        .boxed_local(),
    }
}

/// `kill -9` of two nodes of RabbitMQ. The last one has no majority.
pub fn kill_two_nodes(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, survivor) = (Arc::clone(stage), random.usize(..NODES));
    let killed = move || (0..NODES).filter(move |node| *node != survivor);
    Plan {
        hits: vec!["rabbitmq".to_owned()],
        target: format!("all nodes but {survivor} are killed"),
        total: true,
        begin: async move {
            let mut cluster = stage.parts.rabbitmq().await;
            let count = killed().filter(|node| cluster.kill(*node)).count();
            drop(cluster);
            End::by(async move {
                let mut cluster = stage.parts.rabbitmq().await;
                // Each may need the other to start.
                killed().for_each(|node| cluster.launch(node));
                for node in killed() {
                    cluster.serves(node).await;
                }
                cluster.whole().await;
                count as u64
            })
        }
        .boxed_local(),
    }
}

async fn expect_progress(stage: &Stage, node: usize) {
    let (before, deadline) = (stored(stage).await, Instant::now() + MEANWHILE_BOUND);
    loop {
        let more = stored(stage).await - before;
        if more >= STORED_MEANWHILE {
            return;
        }
        if Instant::now() >= deadline {
            let text = format!("only {more} events were stored while node {node} was down");
            stage.history.object(text);
            return;
        }
        sleep(POLL).await;
    }
}

/// Notifications, without those of a failed query.
async fn stored(stage: &Stage) -> i64 {
    sqlx::query_scalar("select count(*) from notifications")
        .fetch_one(&stage.pool)
        .await
        .unwrap_or_default()
}

/// The primary is killed, and after a while its standby is promoted. A new primary first gets a
/// standby, so that this can be repeated.
pub fn fail_over(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["postgres".to_owned()],
        target: "the primary is killed, and the standby takes over".to_owned(),
        total: true,
        begin: async move {
            let mut pair = stage.parts.pair().await;
            pair.complete().await;
            let killed = pair.kill_primary().await;
            drop(pair);
            End::by(async move {
                stage.parts.pair().await.promote_standby().await;
                killed.into()
            })
        }
        .boxed_local(),
    }
}

/// The disk of Postgres has no free space. Postgres may end, and is started again as by an operator.
pub fn fill_disk(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["postgres".to_owned()],
        target: "the disk of Postgres is full".to_owned(),
        total: false,
        begin: async move {
            // It panics if free space is left.
            stage.parts.small().await.fill_disk();
            End::by(async move {
                let mut cluster = stage.parts.small().await;
                cluster.free_disk();
                cluster.start().await;
                1
            })
        }
        .boxed_local(),
    }
}

/// The wall clock of one replica jumps, and jumps back.
pub fn move_clock(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, replica) = (Arc::clone(stage), random.usize(..REPLICAS));
    let seconds = random.i64(CLOCK_SECONDS) * if random.bool() { 1 } else { -1 };
    Plan {
        hits: vec!["clock".to_owned(), name(replica)],
        target: format!("the clock of {} is {seconds:+} s off", name(replica)),
        total: false,
        begin: async move {
            stage.parts.clocks().set(replica, seconds);
            End::by(async move {
                let process = stage.replicas[replica].process_id();
                let moved =
                    process.is_some_and(|process| stage.parts.clocks().move_clock_of(process));
                stage.parts.clocks().set(replica, 0);
                moved.into()
            })
        }
        .boxed_local(),
    }
}

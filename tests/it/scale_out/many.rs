//! More partitions than a replica has connections to consume them.

use super::crowd::Crowd;
use super::{PARTITIONS, declare};
use crate::support::{Event, PATIENCE, Tap, World, eventually, holds};

const MANY: u8 = 24;
/// Most unacknowledged deliveries of each partition, if a connection consumes more than four.
const PREFETCH: u32 = 64;

#[tokio::test]
async fn a_replica_consumes_many_partitions_by_few_connections() {
    /// Four consume, one publishes, one reads the depths of queues.
    const CONNECTIONS_MAX: u64 = 6;
    let world = World::new().await;
    declare(&world, MANY).await;
    let tap = Tap::before(world.amqp_url()).await;
    let url = tap.url(world.amqp_url());
    let ingest = world.replica().role("ingest").with("AMQP_URL", &url);
    let ingest = ingest.with(PARTITIONS, MANY).start().await;
    let merchants: Vec<String> = (0..100)
        .map(|number| format!("merchant-{number}"))
        .collect();
    let orders = merchants.iter().map(|merchant| Event::order(merchant));
    world.publisher().await.publish_all(orders).await;
    ingest
        .metric_reaches("shopbell_events_stored_total", 100)
        .await;
    ingest.metric_reaches("shopbell_broker_up", 1).await;
    assert!(tap.opened() as u64 <= CONNECTIONS_MAX, "{}", tap.opened());
    world.finish().await;
}

/// Deliveries of several queues share a channel, and an acknowledgement covers all lower tags of it. The replica is
/// killed after it has acknowledged two batches.
#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_stored_if_partitions_share_a_connection() {
    /// One of each connection.
    const BATCHES_AT_ONCE: u64 = 4;
    /// More than a partition has in two batches and in its prefetch.
    const ORDERS: usize = 200;
    let world = World::new().await;
    declare(&world, MANY).await;
    let crowd = Crowd::new(60, ORDERS);
    crowd.publish(&world).await;
    let published = depths(&world).await;
    let mut lock = world.lock_feeds().await;
    let ingest = world.replica().role("ingest").with(PARTITIONS, MANY);
    let ingest = ingest.start().await;
    for _ in 0..2 {
        waiting_reaches(&world, BATCHES_AT_ONCE).await;
        // The next lock waits behind these batches and before the next ones.
        let next = async {
            waiting_reaches(&world, BATCHES_AT_ONCE + 1).await;
            drop(lock);
        };
        (lock, ()) = tokio::join!(world.lock_feeds(), next);
    }
    waiting_reaches(&world, BATCHES_AT_ONCE).await;
    let stored = world.stored_in_all().await;
    eventually("all that is stored is acknowledged", PATIENCE, async || {
        let left = depths(&world).await;
        let taken = published.iter().zip(left).map(|(all, left)| all - left);
        // RabbitMQ sends more deliveries for those that are acknowledged.
        let acknowledged: u32 = taken.map(|taken| taken.saturating_sub(PREFETCH)).sum();
        holds(
            u64::from(acknowledged) >= stored,
            format!("{acknowledged} of {stored}"),
        )
    })
    .await;
    ingest.kill();
    drop(lock);
    ingest.restart().await;
    let gateway = world.replica().role("gateway").start().await;
    crowd.expect_all(&world, &[gateway]).await;
    world.finish().await;
}

/// The number of waiting events in each partition.
async fn depths(world: &World) -> Vec<u32> {
    let broker = world.broker().await;
    let mut depths = Vec::new();
    for partition in 1..=MANY {
        let queue = match partition {
            1 => world.name("ingest"),
            partition => world.name(&format!("ingest.{partition}")),
        };
        depths.extend(broker.depth(&queue).await);
    }
    depths
}

/// Waits until so many statements wait for a lock.
async fn waiting_reaches(world: &World, least: u64) {
    let waiting = "select count(*) from pg_stat_activity
                   where wait_event_type = 'Lock' and state = 'active' and datname = current_database()";
    eventually("statements wait for a lock", PATIENCE, async || {
        let waiting = world.number(waiting).await;
        holds(waiting >= least, waiting)
    })
    .await;
}

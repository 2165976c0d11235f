//! The canary goes the whole way, is timed, and leaves nothing behind.

use crate::support::{PATIENCE, World, eventually, holds};

#[tokio::test]
async fn the_canary_of_each_gateway_is_timed_and_leaves_nothing_behind() {
    let world = World::new().await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(world.replica().with("SHOPBELL_CANARY_SECONDS", 1).start().await);
    }
    for replica in &replicas {
        replica.metric_reaches("shopbell_canary_publish_to_ack_seconds_count", 3).await;
        assert_eq!(replica.metric("shopbell_canary_failures_total").await, 0);
    }
    // One event at a time in a feed, and no more feeds than gateways.
    let most = world.number("select coalesce(max(last_seq), 0) from feeds").await;
    let feeds = world.number("select count(distinct feed) from notifications").await;
    assert!(most <= 1 && feeds <= 2, "{most} in a feed, {feeds} feeds");

    // One that dies leaves its last one behind, for any other to find when it is old.
    replicas[0].kill();
    assert!(replicas[1].terminate().await.success());
    world.execute("update notifications set created_at = now() - interval '2 hours'").await;
    world.execute("update cursors set updated_at = now() - interval '2 hours'").await;
    let _other = world.replica().role("ingest").start().await;
    eventually("nothing is left of a canary", PATIENCE, async || {
        let left = world.number("select (select count(*) from feeds) + (select count(*) from notifications)").await;
        let cursors = world.number("select count(*) from cursors").await;
        holds((left, cursors) == (0, 0), format!("{left} rows, {cursors} cursors"))
    })
    .await;
    world.finish().await;
}

//! The canary uses the whole path of an order, measures it, and leaves nothing behind.

use crate::support::{Event, PATIENCE, World, eventually, holds};

#[tokio::test]
async fn the_canary_of_each_gateway_is_timed_and_leaves_nothing_behind() {
    let world = World::new().await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(
            world
                .replica()
                .with("SHOPBELL_CANARY_SECONDS", 1)
                .start()
                .await,
        );
    }
    for replica in &replicas {
        replica
            .metric_reaches("shopbell_canary_publish_to_ack_seconds_count", 3)
            .await;
        assert_eq!(replica.metric("shopbell_canary_failures_total").await, 0);
    }
    // One event at a time in a feed, and at most as many feeds as gateways.
    let most = world
        .number("select coalesce(max(last_seq), 0) from feeds")
        .await;
    let feeds = world
        .number("select count(distinct feed) from notifications")
        .await;
    assert!(most <= 1 && feeds <= 2, "{most} in a feed, {feeds} feeds");

    // A gateway that dies leaves its last event behind. If it is old, any other gateway finds it.
    replicas[0].kill();
    assert!(replicas[1].terminate().await.success());
    let ingest = world.replica().role("ingest").start().await;
    let broker = world.broker().await;
    eventually("the events on their way are stored", PATIENCE, async || {
        let held = ingest
            .get("/metrics")
            .await
            .text()
            .contains("\nshopbell_oldest_delivery_held_seconds 0.0\n");
        let waiting = broker.depth(&world.name("ingest")).await;
        holds(held && waiting == Some(0), format!("{waiting:?} wait"))
    })
    .await;
    assert!(ingest.terminate().await.success());
    world
        .execute("update canaries set started_at = now() - interval '3 hours'")
        .await;
    let _other = world.replica().role("ingest").start().await;
    eventually("no row of a canary is left", PATIENCE, async || {
        let left = world
            .number("select (select count(*) from feeds) + (select count(*) from notifications)")
            .await;
        let cursors = world.number("select count(*) from cursors").await;
        holds(
            (left, cursors) == (0, 0),
            format!("{left} rows, {cursors} cursors"),
        )
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn broadcasts_do_not_disturb_the_canary() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_WINDOW", 4)
        .with("SHOPBELL_CANARY_SECONDS", 1)
        .start()
        .await;
    // More than a window without any ack.
    let notices = (0..20).map(|_| Event::new("notice", "all", "1"));
    world.publisher().await.publish_all(notices).await;
    world.expect_stored("all", 20).await;
    let flown = replica
        .metric("shopbell_canary_publish_to_ack_seconds_count")
        .await;
    replica
        .metric_reaches("shopbell_canary_publish_to_ack_seconds_count", flown + 3)
        .await;
    assert_eq!(replica.metric("shopbell_canary_failures_total").await, 0);
    assert_eq!(
        replica
            .metric("shopbell_publish_to_delivery_seconds_count")
            .await,
        0,
        "the feed of a canary is no merchant's"
    );
    world.finish().await;
}

//! Hints are optional: if a hint is lost, the session finds the notification by itself.

use crate::support::{Event, PATIENCE, World, eventually};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_lost_hint_is_repaired_by_reading_the_feed() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let publisher = world.publisher().await;
    let mut merchants = Vec::new();
    for replica in &replicas {
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant.expect_caught_up(MERCHANT).await;
        merchants.push(merchant);
    }
    publisher.publish(&Event::order(MERCHANT)).await;
    for merchant in &mut merchants {
        merchant.expect_seqs(1..=1).await;
    }
    let standby = eventually("one of the replicas stands by", PATIENCE, async || {
        let received = [
            replicas[0].metric("shopbell_events_received_total").await,
            replicas[1].metric("shopbell_events_received_total").await,
        ];
        match received {
            [0, 1] => Ok(&replicas[0]),
            [1, 0] => Ok(&replicas[1]),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // The exchange exists but leads nowhere, because its bindings went with the one before.
    let broker = world.broker().await;
    broker.delete_exchange(&world.name("fanout")).await;
    broker.declare_fanout(&world.name("fanout")).await;
    let pages_before = standby.metric("shopbell_pages_read_total").await;
    let hints_before = standby.metric("shopbell_hints_received_total").await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    for merchant in &mut merchants {
        merchant.expect_seqs(2..=6).await;
    }

    assert_eq!(
        standby.metric("shopbell_hints_received_total").await,
        hints_before,
        "no hint came"
    );
    assert!(
        standby.metric("shopbell_pages_read_total").await > pages_before,
        "so a page was read"
    );
    assert!(standby.metric("shopbell_page_queries_total").await > 0);
    world.finish().await;
}

#[tokio::test]
async fn a_gateway_receives_a_hint_after_many_other_messages() {
    /// More than RabbitMQ delivers without an acknowledgement.
    const MESSAGES: u32 = 100;
    let world = World::new().await;
    let ingest = world.replica().role("ingest").start().await;
    let gateway = world.replica().role("gateway").start().await;
    let broker = world.broker().await;
    let beat = r#"{"heartbeat":{"every_ms":20000,"numbers":[]}}"#;
    for _ in 0..MESSAGES {
        broker.announce(&world.name("fanout"), beat).await;
    }
    world
        .publisher()
        .await
        .publish(&Event::order(MERCHANT))
        .await;
    ingest
        .metric_reaches("shopbell_hints_published_total", 1)
        .await;
    gateway
        .metric_reaches("shopbell_hints_received_total", 1)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn sessions_that_keep_up_are_served_without_reading_the_database() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;

    let pages_before = replica.metric("shopbell_pages_read_total").await;
    for seq in 2..=30 {
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(seq..=seq).await;
    }
    let pages = replica.metric("shopbell_pages_read_total").await - pages_before;
    // A sweep between the commit and the hint may read one. A session that only reads pages would
    // have read all.
    assert!(pages < 15, "{pages} pages for 29 live notifications");
    world.finish().await;
}

#[tokio::test]
async fn a_single_replica_publishes_no_hints_until_another_joins() {
    let world = World::new().await;
    let first = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(first.public()).await;
    // One by one, and more than ingest stores before it publishes the first hint.
    for seq in 1..=10 {
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(seq..=seq).await;
    }
    assert_eq!(
        first.metric("shopbell_hints_published_total").await,
        0,
        "there is no replica to publish to"
    );

    let second = world.serve().await;
    let mut elsewhere = world
        .merchant(MERCHANT)
        .device("second")
        .connect(second.public())
        .await;
    eventually("the second replica receives a hint", PATIENCE, async || {
        publisher.publish(&Event::order(MERCHANT)).await;
        let (published, received) = (
            first.metric("shopbell_hints_published_total").await,
            second.metric("shopbell_hints_received_total").await,
        );
        if published > 0 && received > 0 {
            Ok(())
        } else {
            Err(format!("{published} published, {received} received"))
        }
    })
    .await;
    let last = world.last_seq().await;
    while elsewhere.through(MERCHANT) < last {
        elsewhere.next_notification().await;
    }
    world.finish().await;
}

//! The other ways into ingest: the cheaper exchange, and classic queues.

use crate::support::{Event, PATIENCE, Publisher, Replica, World, eventually};

const MERCHANT: &str = "merchant-42";
const QUEUE_TYPE: &str = "SHOPBELL_AMQP_QUEUE_TYPE";

#[tokio::test]
async fn both_exchanges_lead_to_one_queue_in_the_order_of_the_channel() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let url = world.publisher_amqp_url();
    let entry = Publisher::connect(url, &world.name("entry")).await;
    let events = world.publisher().await;
    for round in 0..20 {
        let order = Event::order(MERCHANT);
        match round % 2 {
            0 => entry.publish(&order).await,
            _ => events.publish(&order).await,
        }
        merchant.take_seqs(round + 1..=round + 1).await;
    }

    // With partitions, events of one recipient have one queue, whichever exchange they use.
    let partitioned = [("SHOPBELL_INGEST_PARTITIONS", "4")];
    assert!(replica.terminate().await.success());
    world
        .shopbell_with(&partitioned, &["declare"])
        .await
        .succeeded();
    let orders = Event::orders(MERCHANT, 40);
    for (place, order) in orders.iter().enumerate() {
        match place % 2 {
            0 => entry.publish(order).await,
            _ => events.publish(order).await,
        }
    }
    let queues = ["ingest", "ingest.2", "ingest.3", "ingest.4"];
    let broker = world.broker().await;
    let mut depths = Vec::new();
    for queue in queues {
        depths.push(broker.depth(&world.name(queue)).await.unwrap_or_default());
    }
    depths.sort_unstable();
    assert_eq!(depths, [0, 0, 0, 40]);
    let replica = world
        .replica()
        .with("SHOPBELL_INGEST_PARTITIONS", 4)
        .start()
        .await;
    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 20)
        .connect(replica.public())
        .await;
    merchant.take_seqs(21..=60).await;
    world.finish().await;
}

#[tokio::test]
async fn classic_queues_lose_nothing_when_replicas_are_killed() {
    const ORDERS: usize = 600;
    let world = World::new().await;
    let start = || async { world.replica().with(QUEUE_TYPE, "classic").start().await };
    let replicas = [start().await, start().await];
    let publisher = world.publisher().await;
    let killing = async {
        world.stored_reaches(100, PATIENCE).await;
        let working = working(&replicas).await;
        replicas[working].kill();
        replicas[1 - working].kill();
        replicas[working].restart().await;
    };
    tokio::join!(
        publisher.publish_all(Event::orders(MERCHANT, ORDERS)),
        killing
    );
    world.stored_reaches(ORDERS as u64, PATIENCE).await;
    let restarted = start().await;
    let mut merchant = world.merchant(MERCHANT).connect(restarted.public()).await;
    merchant.take_seqs(1..=ORDERS as u64).await;

    // RabbitMQ cannot change the type of a queue that exists.
    let quorum = world.shopbell(&["declare"]).await.failed_with(1);
    let told = [world.name("ingest"), "PRECONDITION_FAILED".to_owned()];
    for part in told {
        assert!(quorum.stderr.contains(&part), "{}", quorum.stderr);
    }
    world.finish().await;
}

/// The place of the replica that ingests.
async fn working(replicas: &[Replica; 2]) -> usize {
    eventually("one of them ingests", PATIENCE, async || {
        let received = "shopbell_events_received_total";
        let first = replicas[0].metric(received).await;
        let second = replicas[1].metric(received).await;
        match (first, second) {
            (0, 0) => Err("none".to_owned()),
            (0, _) => Ok(1),
            _ => Ok(0),
        }
    })
    .await
}

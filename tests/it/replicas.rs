//! Several replicas act as one Shopbell.

use crate::support::{Event, PATIENCE, Replica, World, eventually};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn clients_on_both_replicas_get_every_notification() {
    let world = World::new().await;
    let (one, other) = (world.serve().await, world.serve().await);
    let mut at_one = world.merchant(MERCHANT).connect(one.public()).await;
    let mut at_other = world.merchant(MERCHANT).connect(other.public()).await;

    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 300))
        .await;
    at_one.take_seqs(1..=300).await;
    at_other.take_seqs(1..=300).await;

    let (_, standby) = ingesting_and_standby(&one, &other).await;
    assert!(
        standby.metric("shopbell_hints_received_total").await > 0,
        "the standby received a hint"
    );
    world.finish().await;
}

#[tokio::test]
async fn an_ack_on_one_replica_holds_on_the_others_next_replay() {
    let world = World::new().await;
    let (one, other) = (world.serve().await, world.serve().await);
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(one.public()).await;
    merchant.take_seqs(1..=6).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 6).await;

    let mut merchant = world.merchant(MERCHANT).connect(other.public()).await;
    merchant.take_seqs(7..=10).await;
    merchant.expect_caught_up(MERCHANT).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 10).await;

    let mut merchant = world.merchant(MERCHANT).connect(one.public()).await;
    assert_eq!(merchant.expect_caught_up(MERCHANT).await, 10);
    world.finish().await;
}

#[tokio::test]
async fn a_standby_takes_over_when_the_ingesting_replica_is_killed() {
    let world = World::new().await;
    let (one, other) = (world.serve().await, world.serve().await);
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    let (ingesting, standby) = ingesting_and_standby(&one, &other).await;
    assert_eq!(
        standby.metric("shopbell_events_received_total").await,
        0,
        "one replica ingests"
    );
    let mut merchant = world.merchant(MERCHANT).connect(standby.public()).await;
    merchant.take_seqs(1..=20).await;

    ingesting.kill();
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    merchant.take_seqs(21..=40).await;
    standby
        .metric_reaches("shopbell_events_received_total", 20)
        .await;

    // It comes back, and is the standby now.
    ingesting.restart().await;
    let mut back = world
        .merchant(MERCHANT)
        .device("second")
        .connect(ingesting.public())
        .await;
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    merchant.take_seqs(41..=60).await;
    while back.through(MERCHANT) < 60 {
        back.next_notification().await;
    }
    world.finish().await;
}

/// The replica of the two that consumes the queue, after an event was published.
async fn ingesting_and_standby<'a>(
    one: &'a Replica,
    other: &'a Replica,
) -> (&'a Replica, &'a Replica) {
    eventually("one of the replicas ingests", PATIENCE, async || {
        for (this, that) in [(one, other), (other, one)] {
            if this.metric("shopbell_events_received_total").await > 0 {
                return Ok((this, that));
            }
        }
        Err("neither".to_owned())
    })
    .await
}

#[tokio::test]
async fn a_feed_keeps_its_order_when_a_standby_replaces_a_killed_replica() {
    hand_over(async |replica: &Replica| replica.kill()).await;
}

#[tokio::test]
async fn a_feed_keeps_its_order_when_a_standby_replaces_a_leaving_replica() {
    hand_over(async |replica: &Replica| assert!(replica.terminate().await.success())).await;
}

/// Two replicas. The one that ingests ends again and again while orders arrive.
async fn hand_over(end: impl AsyncFn(&Replica)) {
    const ORDERS: u64 = 4_000;
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let publisher = world.publisher().await;
    let orders = Event::orders(MERCHANT, usize::try_from(ORDERS).expect("fits"));
    let ending = async {
        for (turn, stored) in [600, 1_400, 2_200, 3_000].into_iter().enumerate() {
            world.stored_reaches(stored, PATIENCE).await;
            let replica = &replicas[turn % 2];
            end(replica).await;
            replica.restart().await;
        }
    };
    tokio::join!(publisher.publish_all(&orders), ending);

    let mut merchant = world.merchant(MERCHANT).connect(replicas[0].public()).await;
    let arrived = merchant.take_seqs(1..=ORDERS).await;
    for (notification, order) in arrived.iter().zip(&orders) {
        assert_eq!(
            notification.id,
            order.event_id(),
            "at seq {}",
            notification.seq
        );
    }
    world.finish().await;
}

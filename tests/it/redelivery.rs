//! An event that is delivered several times is stored once, and none is lost for it.

use std::collections::BTreeSet;

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn an_event_that_is_published_again_is_no_second_notification() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;

    let orders = Event::orders(MERCHANT, 3);
    let [one, two, three] = &orders[..] else {
        unreachable!("three orders")
    };
    // Within a batch and across batches.
    publisher.publish_all([one, one, two, one]).await;
    merchant.expect_seqs(1..=2).await;
    publisher.publish_all([one, two, three, two]).await;
    let last = merchant.expect_seqs(3..=3).await;

    assert_eq!(last[0].id, three.event_id());
    replica
        .metric_reaches("shopbell_events_duplicate_total", 5)
        .await;
    world.expect_stored(MERCHANT, 3).await;
    merchant.ping().await;
    world.finish().await;
}

#[tokio::test]
async fn another_source_or_another_recipient_makes_another_notification() {
    let world = World::new().await;
    let replica = world.serve().await;
    let order = Event::new("order.paid", MERCHANT, "{}").id("7");
    let parcel = Event::new("parcel.left", MERCHANT, "{}")
        .id("7")
        .source("/shop/parcels");
    let neighbours = Event::new("order.paid", "merchant-43", "{}").id("7");
    world
        .publisher()
        .await
        .publish_all([&order, &parcel, &neighbours])
        .await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.expect_seqs(1..=2).await;
    assert_eq!(arrived[1].source, "/shop/parcels");
    world.expect_stored("merchant-43", 1).await;
    world.finish().await;
}

#[tokio::test]
async fn a_redelivery_after_the_commit_adds_no_notification_and_no_gap() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_broker_proxy().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;

    // The replica receives from RabbitMQ but cannot send: it stores, and can neither publish hints
    // nor acknowledge.
    network.stall_upstream();
    publisher.publish_all(Event::orders(MERCHANT, 50)).await;
    world.stored_reaches(1, PATIENCE).await;
    network.cut();
    network.mend();

    merchant.take_seqs(1..=50).await;
    replica
        .metric_reaches("shopbell_events_duplicate_total", 1)
        .await;
    world.expect_stored(MERCHANT, 50).await;
    world.finish().await;
}

#[tokio::test]
async fn an_ingest_killed_in_the_middle_loses_nothing_and_repeats_nothing() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let orders = Event::orders(MERCHANT, 3_000);

    let kill_twice = async {
        for stored in [500, 1_500] {
            world.stored_reaches(stored, PATIENCE).await;
            replica.restart().await;
        }
    };
    tokio::join!(publisher.publish_all(&orders), kill_twice);

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=3_000).await;
    let arrived: Vec<_> = arrived
        .iter()
        .map(|notification| notification.id.as_str())
        .collect();
    let published: Vec<_> = orders.iter().map(Event::event_id).collect();
    assert_eq!(
        arrived, published,
        "each once, in the order of the publisher"
    );
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ingests_at_once_make_one_notification_of_an_event_and_no_gap() {
    let world = World::new().await;
    // Two prefixes over one database: both replicas ingest. With one prefix, only one consumer is
    // active.
    let other_prefix = world.another_prefix();
    let one = world.serve().await;
    let other = world
        .replica()
        .with("SHOPBELL_AMQP_PREFIX", &other_prefix)
        .start()
        .await;
    let (to_one, to_other) = (
        world.publisher().await,
        world.publisher_to(&other_prefix).await,
    );

    let feeds = ["merchant-1", "merchant-2", "merchant-3"];
    let both: Vec<_> = (0..900)
        .map(|number| Event::order(feeds[number % feeds.len()]))
        .collect();
    let backwards: Vec<_> = both.iter().rev().cloned().collect();
    tokio::join!(to_one.publish_all(&both), to_other.publish_all(&backwards));

    let counted = async |what: &str| one.metric(what).await + other.metric(what).await;
    eventually(
        "both have stored all events or counted them as duplicates",
        PATIENCE,
        async || {
            let counts = (
                counted("shopbell_events_stored_total").await,
                counted("shopbell_events_duplicate_total").await,
            );
            holds(
                counts == (900, 900),
                format!("(stored, duplicate) = {counts:?}"),
            )
        },
    )
    .await;
    for feed in feeds {
        world.expect_stored(feed, 300).await;
        let mut merchant = world.merchant(feed).connect(one.public()).await;
        let arrived = merchant.take_seqs(1..=300).await;
        let ids: BTreeSet<_> = arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .collect();
        assert_eq!(ids.len(), 300, "each event once");
    }
    world.finish().await;
}

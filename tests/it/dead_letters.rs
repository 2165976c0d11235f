//! A dead letter is stored with its batch and published later, so no order waits for RabbitMQ.

use crate::support::{Event, PATIENCE, Parcel, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

/// A good order before and after each bad event.
fn orders_and_poison(orders: &[Event], bad: usize) -> Vec<Parcel> {
    let mut parcels: Vec<_> = orders.iter().map(Parcel::from).collect();
    for number in 0..bad {
        parcels.insert(2 * number + 1, Parcel::structured("order.created", "{"));
    }
    parcels
}

#[tokio::test]
async fn a_dead_letter_that_rabbitmq_does_not_take_delays_no_order() {
    const BAD: usize = 9;
    let world = World::new().await;
    world.shopbell(&["declare"]).await.succeeded();
    let broker = world.broker().await;
    // Without this queue a publish is unroutable. A replica that only verifies the topology cannot
    // repair that.
    let dead_letter = world.name("dead-letter");
    broker.unbind(&dead_letter, &dead_letter).await;
    let replica = world
        .replica()
        .with("SHOPBELL_AMQP_DECLARE", "false")
        .start()
        .await;
    let orders = Event::orders(MERCHANT, 40);
    world
        .publisher()
        .await
        .publish_all(orders_and_poison(&orders, BAD))
        .await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=40).await;
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(orders.iter().map(Event::event_id))
    );
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", BAD as u64)
        .await;
    replica
        .metric_is("shopbell_dead_letters", "unpublished", BAD as u64)
        .await;
    assert_eq!(
        replica.metric("shopbell_events_duplicate_total").await,
        0,
        "no delivery came twice"
    );
    let listed = world
        .shopbell(&["dead-letters", "list"])
        .await
        .succeeded()
        .stdout;
    assert_eq!(listed.lines().count(), BAD, "{listed}");

    world.shopbell(&["declare"]).await.succeeded();
    let letters = broker.letters(&dead_letter, BAD).await;
    assert!(
        letters
            .iter()
            .all(|letter| letter.header("x-shopbell-reason").as_deref() == Some("malformed_json"))
    );
    replica
        .metric_is("shopbell_dead_letters", "unpublished", 0)
        .await;
    replica
        .metric_is("shopbell_dead_letters", "stored", BAD as u64)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_stored_dead_letter_is_replayed_once_and_leaves_the_queue() {
    let world = World::new().await;
    let replica = world.serve().await;
    let (broker, dead_letter) = (world.broker().await, world.name("dead-letter"));
    let bad: Vec<_> = (0..3)
        .map(|_| Event::new("order.created", MERCHANT, "{}"))
        .collect();
    world.publisher().await.publish_all(&bad).await;
    let letters = broker.letters(&dead_letter, 3).await;
    let id = letters[1].header("x-shopbell-id").expect("an id");

    let mended = Event::order(MERCHANT).id("mended");
    let file = world.file("replayed.json", &mended.body());
    world
        .shopbell(&["dead-letters", "replay", &id, "--body", &file])
        .await
        .succeeded();
    world.expect_stored(MERCHANT, 1).await;
    world
        .shopbell(&["dead-letters", "replay", &id, "--body", &file])
        .await
        .failed_with(1);
    let left = broker.letters(&dead_letter, 2).await;
    assert!(
        left.iter()
            .all(|letter| letter.header("x-shopbell-id").as_ref() != Some(&id))
    );

    world
        .shopbell(&["dead-letters", "drop", "--all"])
        .await
        .succeeded();
    broker.letters(&dead_letter, 0).await;
    assert_eq!(world.number("select count(*) from dead_letters").await, 0);
    replica
        .metric_is("shopbell_dead_letters", "stored", 0)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_letter_that_only_rabbitmq_has_is_listed_and_replayed_too() {
    let world = World::new().await;
    let replica = world.serve().await;
    let (broker, dead_letter) = (world.broker().await, world.name("dead-letter"));
    world
        .publisher()
        .await
        .publish(&Event::new("order.created", MERCHANT, "{}"))
        .await;
    broker.letters(&dead_letter, 1).await;
    // As an earlier version of Shopbell or RabbitMQ's delivery limit left it.
    world.execute("delete from dead_letters").await;

    let listed = world
        .shopbell(&["dead-letters", "list"])
        .await
        .succeeded()
        .stdout;
    assert!(
        listed.lines().count() == 1 && listed.contains("invalid_data"),
        "{listed}"
    );
    world
        .shopbell(&["dead-letters", "replay", "--all"])
        .await
        .succeeded();
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 2)
        .await;
    broker.letters(&dead_letter, 1).await;
    assert_eq!(
        world.number("select count(*) from dead_letters").await,
        1,
        "the replayed event is a new dead letter"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_letter_with_bytes_that_postgres_refuses_as_text_is_stored() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut weird = Parcel::structured("order.\0created", b"{\0\xff".as_slice());
    weird.content_type = Some("application/cloudevents+json\0".to_owned());
    let neighbours = Event::orders(MERCHANT, 2);
    world
        .publisher()
        .await
        .publish_all([
            Parcel::from(&neighbours[0]),
            weird.clone(),
            Parcel::from(&neighbours[1]),
        ])
        .await;
    world.expect_stored(MERCHANT, 2).await;
    let letters = world
        .broker()
        .await
        .letters(&world.name("dead-letter"), 1)
        .await;
    assert!(
        letters[0].body == weird.body && letters[0].content_type == weird.content_type,
        "{letters:?}"
    );
    assert_eq!(
        letters[0].header("x-shopbell-routing-key"),
        Some(weird.routing_key)
    );
    assert_eq!(
        replica.metric("shopbell_events_received_total").await,
        3,
        "no delivery came twice"
    );
    world.finish().await;
}

#[tokio::test]
async fn letters_of_a_killed_replica_are_published_by_another_one() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish(&Parcel::structured("order.created", "{"))
        .await;
    let (broker, dead_letter) = (world.broker().await, world.name("dead-letter"));
    broker.letters(&dead_letter, 1).await;
    replica.kill();
    broker.purge(&dead_letter).await;
    // The replica died after the commit and before the publish.
    world
        .execute("update dead_letters set published_at = null")
        .await;
    let other = world.serve().await;
    broker.letters(&dead_letter, 1).await;
    eventually("the letter counts as published", PATIENCE, async || {
        let left = world
            .number("select count(*) from dead_letters where published_at is null")
            .await;
        holds(left == 0, left)
    })
    .await;
    other
        .metric_is("shopbell_dead_letters", "unpublished", 0)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_commit_with_a_dead_letter_is_repeated_if_its_reply_is_lost() {
    const WARMING: u64 = 8;
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let (publisher, orders) = (world.publisher().await, Event::orders(MERCHANT, 12));

    let bad = || Parcel::structured("order.created", "{");
    // Every connection has prepared the statement before, so only the reply to its execution is
    // lost.
    for number in 1..=WARMING {
        publisher.publish(bad()).await;
        replica
            .metric_reaches("shopbell_events_dead_lettered_total", number)
            .await;
    }

    network.stall_downstream();
    // A batch without a dead letter uses another statement.
    publisher.publish(bad()).await;
    eventually("a dead letter is committed", PATIENCE, async || {
        let stored = world.number("select count(*) from dead_letters").await;
        holds(stored > WARMING, stored)
    })
    .await;
    network.cut();
    network.mend();

    publisher.publish_all(&orders).await;
    let arrived = merchant.take_seqs(1..=12).await;
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(orders.iter().map(Event::event_id))
    );
    assert_eq!(
        world.number("select count(*) from dead_letters").await,
        WARMING + 1
    );
    world.finish().await;
}

//! An event settles earlier notifications: a cancellation stops the bell everywhere, and the counts follow.

use std::time::{Duration, Instant};

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_cancellation_stops_the_bell_on_every_device_on_every_replica() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let publisher = world.publisher().await;
    let pc = world.merchant(MERCHANT).device("pc");
    pc.connect(replicas[1].public()).await.vanish();
    let orders = ["A-1", "A-2"].map(|id| Event::order_with_id(MERCHANT, id));
    publisher.publish_all(orders).await;
    let (phone, till) = (
        world.merchant(MERCHANT).device("phone"),
        world.merchant(MERCHANT).device("till"),
    );
    let mut phone = phone.connect(replicas[0].public()).await;
    let mut till = till.connect(replicas[1].public()).await;
    for device in [&mut phone, &mut till] {
        device.take_seqs(1..=2).await;
    }

    let cancelled = Instant::now();
    publisher
        .publish(&Event::cancellation(MERCHANT, "A-1"))
        .await;
    for device in [&mut phone, &mut till] {
        device.take_seqs(3..=3).await;
        let state = device.next_state().await;
        assert_eq!(
            (state.seqs, state.handled_by.as_deref(), state.version),
            (Some(vec![1]), Some("cancelled"), Some(1))
        );
        assert!(state.handled_at.is_some());
        assert_eq!((state.unread, state.unhandled, state.last), (3, 2, 3));
    }
    let took = cancelled.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(world.unmarked(MERCHANT).await, (3, 2));

    // A device that was away gets the order as handled.
    let mut pc = pc.connect(replicas[1].public()).await;
    let handlers: Vec<_> = pc
        .take_seqs(1..=3)
        .await
        .into_iter()
        .map(|notification| notification.handled_by)
        .collect();
    assert_eq!(handlers, [Some("cancelled".to_owned()), None, None]);
    world.finish().await;
}

#[tokio::test]
async fn a_cancellation_that_comes_first_settles_its_order_on_arrival() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    publisher
        .publish(&Event::cancellation(MERCHANT, "A-1"))
        .await;
    merchant.take_seqs(1..=1).await;
    // Neither a second cancellation nor a change is the order itself.
    publisher
        .publish(&Event::cancellation(MERCHANT, "A-1"))
        .await;
    merchant.take_seqs(2..=2).await;
    assert_eq!(merchant.next_state().await.seqs, Some(vec![1]));
    let change = Event::new("order.updated", MERCHANT, r#"{"order_id":"A-1","items":3}"#);
    publisher.publish(&change).await;
    let change = merchant.take_seqs(3..=3).await.remove(0);
    assert_eq!(change.handled_by.as_deref(), Some("cancelled"));
    assert_eq!(
        world.number("select count(*) from early_settlements").await,
        1
    );
    publisher
        .publish(&Event::order_with_id(MERCHANT, "A-2"))
        .await;
    publisher
        .publish(&Event::order_with_id(MERCHANT, "A-1"))
        .await;
    let orders = merchant.take_seqs(4..=5).await;
    let handlers = orders.iter().map(|order| order.handled_by.as_deref());
    assert_eq!(handlers.collect::<Vec<_>>(), [None, Some("cancelled")]);
    assert_eq!(world.unmarked(MERCHANT).await, (5, 2));

    // The order came, so the cancellation settles nothing that comes later.
    publisher
        .publish(&Event::order_with_id(MERCHANT, "A-1"))
        .await;
    let again = merchant.take_seqs(6..=6).await.remove(0);
    assert_eq!(again.handled_by, None);
    assert_eq!(
        world.number("select count(*) from early_settlements").await,
        0
    );
    world.finish().await;
}

#[tokio::test]
async fn orders_and_cancellations_settle_in_any_mixture_of_batches() {
    const ORDERS: usize = 200;
    let world = World::new().await;
    let _replicas = [world.serve().await, world.serve().await];
    let mut events = Vec::new();
    for number in 0..ORDERS {
        let (merchant, id) = (format!("m-{}", number % 7), format!("o-{number}"));
        let order = Event::order_with_id(&merchant, &id);
        let cancellation = Event::cancellation(&merchant, &id);
        // Every third order comes after its cancellation.
        match number % 3 {
            0 => events.extend([cancellation, order]),
            _ => events.extend([order, cancellation]),
        }
    }
    // Each is published twice, and changes nothing the second time.
    let again = events.clone();
    let publisher = world.publisher().await;
    publisher.publish_all(events).await;
    publisher.publish_all(again).await;
    world.stored_reaches(2 * ORDERS as u64, PATIENCE).await;
    let settled = "select count(*) from notifications where event_type = 'order.created' and handled_by = 'cancelled'";
    assert_eq!(world.number(settled).await, ORDERS as u64);
    let waiting = "select count(*) from notifications where event_type = 'order.cancelled' and handled_at is null";
    assert_eq!(world.number(waiting).await, ORDERS as u64);
    assert_eq!(
        world.number("select count(*) from early_settlements").await,
        0
    );
    world.finish().await;
}

#[tokio::test]
async fn an_event_settles_the_subject_that_it_names_and_no_other() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let open = |recipient: &str, subject: &str| {
        Event::new("invoice.open", recipient, "{}").attribute("subject", subject)
    };
    let others = [
        open("merchant-4", "inv-1"),
        open(MERCHANT, "inv-2"),
        open(MERCHANT, "inv-1").source("/another"),
        Event::new("invoice.open", MERCHANT, "{}"),
    ];
    publisher.publish_all(others).await;
    let named = [
        open(MERCHANT, "inv-1"),
        Event::order_with_id(MERCHANT, "A-1").attribute("subject", "inv-1"),
        Event::order_with_id(MERCHANT, "inv-1").attribute("subject", "A-1"),
    ];
    publisher.publish_all(named).await;
    world.expect_stored(MERCHANT, 6).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=6).await;
    // A person was first with one of them.
    merchant.handle(MERCHANT, &[4]).await;
    assert_eq!(merchant.next_state().await.unhandled, 5);
    let paid = Event::new("invoice.paid", MERCHANT, "{}")
        .attribute("settles", "inv-1")
        .attribute("subject", "inv-1");
    publisher.publish(&paid).await;
    merchant.take_seqs(7..=7).await;
    let state = merchant.next_state().await;
    assert_eq!(
        (state.seqs, state.handled_by.as_deref(), state.unhandled),
        (Some(vec![5, 6]), Some("settled"), 4)
    );
    assert_eq!(world.unmarked("merchant-4").await, (1, 1));

    // A repeated event settles nothing again.
    publisher.publish(&open(MERCHANT, "inv-1")).await;
    publisher.publish(&paid).await;
    merchant.take_seqs(8..=8).await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(9..=9).await;
    assert_eq!(world.unmarked(MERCHANT).await, (9, 6));
    world.finish().await;
}

#[tokio::test]
async fn an_order_misses_no_cancellation_that_another_replica_stores_meanwhile() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    for number in 1..=2 {
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(number..=number).await;
    }
    // The other transaction stores a cancellation, and has the lock of the feed.
    let cancelling = world
        .lock(
            "with counted as (
                 update feeds set early_settlements = early_settlements + 1 where feed = 'merchant-42')
             insert into early_settlements (subject_key, feed, handled_by)
             values (event_identity('merchant-42', '/shop/orders', 'A-1'), 'merchant-42', 'cancelled')",
        )
        .await;
    publisher
        .publish(&Event::order_with_id(MERCHANT, "A-1"))
        .await;
    eventually("the order waits for the feed", PATIENCE, async || {
        let waiting = world
            .number(
                "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock' and query like '%counted%'",
            )
            .await;
        holds(waiting == 1, waiting)
    })
    .await;
    cancelling.commit().await;
    let order = merchant.take_seqs(3..=3).await.remove(0);
    assert_eq!(order.handled_by.as_deref(), Some("cancelled"));
    assert_eq!(world.unmarked(MERCHANT).await, (3, 2));
    world.finish().await;
}

#[tokio::test]
async fn a_settlement_waits_a_week_for_its_order() {
    let world = World::new().await;
    let _first = world.serve().await;
    let publisher = world.publisher().await;
    for id in ["old", "new"] {
        publisher.publish(&Event::cancellation(MERCHANT, id)).await;
    }
    world.expect_stored(MERCHANT, 2).await;
    world
        .change_database(
            "update early_settlements set made_at = now() - interval '8 days'
             where subject_key = event_identity('merchant-42', '/shop/orders', 'old')",
        )
        .await;
    // Housekeeping runs at the start of a replica.
    let _second = world.serve().await;
    eventually("the old settlement is gone", PATIENCE, async || {
        let left = world.number("select count(*) from early_settlements").await;
        holds(left == 1, left)
    })
    .await;
    world.finish().await;
}

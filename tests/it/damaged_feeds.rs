//! A feed whose rows contradict each other is repaired or held alone. Its events are never dead
//! letters.

use crate::support::{Event, Monitor, PATIENCE, Parcel, World};

const MERCHANT: &str = "merchant-42";
const NEIGHBOUR: &str = "merchant-43";

#[tokio::test]
async fn a_last_seq_behind_its_rows_is_repaired_and_costs_no_order() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    world.expect_stored(MERCHANT, 10).await;
    let monitor = Monitor::of(&world, [&replica]).await;
    world
        .execute(
            "update feeds set last_seq = 7, unread = 7, unhandled = 7 where feed = 'merchant-42'",
        )
        .await;

    let (orders, neighbours) = (Event::orders(MERCHANT, 30), Event::orders(NEIGHBOUR, 30));
    publisher
        .publish_all(
            orders
                .iter()
                .zip(&neighbours)
                .flat_map(|(order, other)| [order, other]),
        )
        .await;
    world.expect_stored(NEIGHBOUR, 30).await;
    world.expect_stored(MERCHANT, 40).await;
    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 10)
        .connect(replica.public())
        .await;
    let arrived = merchant.take_seqs(11..=40).await;
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(orders.iter().map(Event::event_id))
    );
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    assert_eq!(replica.metric("shopbell_feeds_repaired_total").await, 1);
    monitor.expect_alert("ShopbellFeedRepaired", "ticket").await;
    world.finish().await;
}

#[tokio::test]
async fn a_feed_without_its_row_uses_no_removed_number_again() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    world.expect_stored(MERCHANT, 10).await;
    // Retention has removed four, then the row was lost.
    world
        .change_database(
            "delete from notifications where feed = 'merchant-42' and seq <= 4;
             delete from feeds where feed = 'merchant-42'",
        )
        .await;
    publisher.publish_all(Event::orders(MERCHANT, 2)).await;
    world.stored_reaches(8, PATIENCE).await;
    assert_eq!(world.stored(MERCHANT).await, (8, 12));
    let exact = "select count(*) from feeds where (last_seq, trimmed_seq, unread) = (12, 4, 8)";
    assert_eq!(world.number(exact).await, 1);
    assert_eq!(replica.metric("shopbell_feeds_repaired_total").await, 1);
    world.finish().await;
}

#[tokio::test]
async fn a_damaged_feed_stops_alone_and_resumes_in_order() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    world.expect_stored(MERCHANT, 5).await;
    let monitor = Monitor::of(&world, [&replica]).await;
    // Stands for a row that Postgres refuses to change although each event is valid.
    world.execute("alter table feeds add constraint broken check (feed <> 'merchant-42' or last_seq <= 5)").await;

    let (orders, neighbours) = (Event::orders(MERCHANT, 300), Event::orders(NEIGHBOUR, 300));
    let mut parcels: Vec<_> = orders
        .iter()
        .zip(&neighbours)
        .flat_map(|(order, other)| [order.into(), other.into()])
        .collect();
    parcels.insert(70, Parcel::structured("order.created", "{"));
    publisher.publish_all(&parcels).await;
    world.expect_stored(NEIGHBOUR, 300).await;
    replica
        .metric_is("shopbell_dead_letters", "held", 300)
        .await;
    replica.metric_is("shopbell_feeds_held", "", 1).await;
    world.expect_stored(MERCHANT, 5).await;
    world
        .broker()
        .await
        .letters(&world.name("dead-letter"), 1)
        .await;
    let listed = world
        .shopbell(&["dead-letters", "list", "--limit", "1"])
        .await
        .succeeded()
        .stdout;
    assert!(listed.contains("feed_damaged"), "{listed}");
    monitor.expect_alert("ShopbellFeedDamaged", "page").await;

    world
        .execute("alter table feeds drop constraint broken")
        .await;
    // It comes after the held events, whether it arrives before or after the release.
    let late = Event::order(MERCHANT);
    publisher.publish(&late).await;
    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 5)
        .connect(replica.public())
        .await;
    let arrived = merchant.take_seqs(6..=306).await;
    let expected = orders.iter().chain([&late]).map(Event::event_id);
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(expected),
        "another order"
    );
    replica.metric_is("shopbell_feeds_held", "", 0).await;
    replica.metric_is("shopbell_dead_letters", "held", 0).await;
    world.finish().await;
}

#[tokio::test]
async fn an_event_that_postgres_refuses_is_a_dead_letter_alone() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .execute("alter table notifications add constraint odd check (event_type <> 'order.odd')")
        .await;
    let orders = Event::orders(MERCHANT, 99);
    let mut parcels: Vec<_> = orders.iter().map(Parcel::from).collect();
    parcels.insert(50, Parcel::from(&Event::new("order.odd", MERCHANT, "{}")));
    world.publisher().await.publish_all(&parcels).await;
    world.expect_stored(MERCHANT, 99).await;
    let letters = world
        .broker()
        .await
        .letters(&world.name("dead-letter"), 1)
        .await;
    assert_eq!(
        letters[0].header("x-shopbell-reason").as_deref(),
        Some("invalid_data")
    );
    assert_eq!(replica.metric("shopbell_feeds_repaired_total").await, 0);
    world.finish().await;
}

//! Many sessions, devices and subscribers: each reads its own feeds from its own place.

use crate::support::{Event, World};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn every_tab_of_a_subscriber_gets_every_notification_and_stays_open() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut tabs = Vec::new();
    for _ in 0..4 {
        tabs.push(world.merchant(MERCHANT).connect(replica.public()).await);
    }
    let sessions = tabs.iter().map(|tab| tab.welcome().session.clone());
    assert_eq!(
        sessions.collect::<std::collections::BTreeSet<_>>().len(),
        4,
        "each session has an id of its own"
    );

    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    for tab in &mut tabs {
        tab.take_seqs(1..=20).await;
    }
    assert_eq!(replica.metric("shopbell_sessions").await, 4);
    tabs.pop().expect("four tabs").leave().await;

    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    for tab in &mut tabs {
        tab.take_seqs(21..=25).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_device_has_a_cursor_of_its_own() {
    let world = World::new().await;
    let replica = world.serve().await;
    let (till, phone) = (
        world.merchant(MERCHANT).device("till"),
        world.merchant(MERCHANT).device("phone"),
    );
    let mut at_the_till = till.connect(replica.public()).await;
    assert_eq!(at_the_till.welcome().device.as_deref(), Some("till"));
    // Known from its first connection on. Acks of other devices do not move it.
    phone.connect(replica.public()).await.leave().await;

    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    at_the_till.take_seqs(1..=10).await;
    at_the_till.leave().await;
    world.expect_cursor(MERCHANT, "till", 10).await;

    let mut on_the_phone = phone.connect(replica.public()).await;
    on_the_phone.expect_seqs(1..=10).await;
    let mut at_the_till = till.connect(replica.public()).await;
    assert_eq!(at_the_till.expect_caught_up(MERCHANT).await, 10);
    world.finish().await;
}

#[tokio::test]
async fn a_client_with_too_many_devices_evicts_its_oldest_ones() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    for number in 0..70 {
        world
            .merchant(MERCHANT)
            .device(&format!("invented-{number}"))
            .connect(replica.public())
            .await
            .leave()
            .await;
    }
    let mut newest = world
        .merchant(MERCHANT)
        .device("one-more")
        .connect(replica.public())
        .await;
    newest.take_seqs(1..=3).await;
    newest.ping().await;
    world.expect_cursor(MERCHANT, "one-more", 3).await;
    assert_eq!(
        world.cursors(MERCHANT).await,
        64,
        "a bound on the cursors of one subscriber"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_client_with_its_own_place_gets_everything_after_it() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=10).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 10).await;

    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 3)
        .connect(replica.public())
        .await;
    merchant.expect_seqs(4..=10).await;
    assert_eq!(merchant.expect_caught_up(MERCHANT).await, 10);
    world.finish().await;
}

#[tokio::test]
async fn a_session_sees_the_feeds_that_its_token_names_and_nothing_else() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let token = world
        .token("accountant")
        .feeds([MERCHANT, "merchant-43"])
        .sign();
    let mut accountant = world
        .merchant("accountant")
        .token(token)
        .connect(replica.public())
        .await;

    publisher
        .publish_all(Event::orders("merchant-43", 10))
        .await;
    publisher.publish_all(Event::orders("accountant", 10)).await;
    publisher.publish_all(Event::orders("merchant-4", 10)).await;
    publisher.publish_all(Event::orders(MERCHANT, 1)).await;

    // Would end these stories: the welcome has no other feed.
    assert_eq!(merchant.next_notification().await.feed, MERCHANT);
    for _ in 0..11 {
        accountant.next_notification().await;
    }
    assert_eq!(
        (
            accountant.through("merchant-43"),
            accountant.through(MERCHANT)
        ),
        (10, 1)
    );
    merchant.ping().await;
    accountant.ping().await;
    world.finish().await;
}

#[tokio::test]
async fn everyone_gets_the_broadcast_feed() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchants = [
        world.merchant(MERCHANT).connect(replica.public()).await,
        world
            .merchant("merchant-43")
            .connect(replica.public())
            .await,
    ];
    let notice = Event::new(
        "notice.maintenance",
        "all",
        r#"{"text":"closed on Sunday"}"#,
    );
    world.publisher().await.publish(&notice).await;
    for merchant in &mut merchants {
        let notification = merchant.next_notification().await;
        assert_eq!(
            (notification.feed.as_str(), notification.id.as_str()),
            ("all", notice.event_id())
        );
        merchant.ack("all", 1).await;
        merchant.ping().await;
    }
    let [one, _other] = merchants;
    one.vanish();
    let mut again = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_eq!(
        again.expect_caught_up("all").await,
        1,
        "it was acknowledged"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_replica_raises_its_limit_of_open_files_to_the_maximum() {
    let world = World::new().await;
    let replica = world.replica().open_files(64).start().await;
    // More than the limit that it was started with.
    let mut merchants = Vec::new();
    for number in 0..80 {
        merchants.push(
            world
                .merchant(&format!("merchant-{number}"))
                .connect(replica.public())
                .await,
        );
    }
    assert_eq!(replica.metric("shopbell_sessions").await, 80);
    world.finish().await;
}

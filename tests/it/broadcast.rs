//! An event for one merchant never reaches the broadcast feed.

use crate::support::{Event, Token, World};

const MERCHANT: &str = "merchant-42";
const FEED: &str = "all";

#[tokio::test]
async fn an_order_for_a_merchant_named_like_the_broadcast_feed_reaches_nobody() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(FEED)).await;
    publisher
        .publish(&Event::import_started(FEED, "i-1", 10))
        .await;
    publisher
        .publish(&Event::new("order.refunded", FEED, "1"))
        .await;
    publisher
        .publish(&Event::new("invoice", FEED, "1").broadcast(false))
        .await;
    // An event cannot be for everyone and for one merchant.
    publisher
        .publish(&Event::new("notice", MERCHANT, "1").broadcast(true))
        .await;
    replica
        .metric_is(
            "shopbell_events_dead_lettered_total",
            "invalid_recipient",
            5,
        )
        .await;
    assert_eq!(world.stored_in_all().await, 0);

    publisher.publish(&Event::new("notice", FEED, "1")).await;
    publisher.publish(&Event::order(FEED).broadcast(true)).await;
    for seq in 1..=2 {
        let notification = merchant.next_notification().await;
        assert_eq!((notification.feed.as_str(), notification.seq), (FEED, seq));
    }
    world.finish().await;
}

#[tokio::test]
async fn the_broadcast_feed_has_the_name_that_is_configured() {
    let world = World::new().await;
    let feed = "everyone/news";
    let replica = world
        .replica()
        .with("SHOPBELL_BROADCAST_FEED", feed)
        .start()
        .await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(FEED)).await;
    publisher.publish(&Event::order(feed)).await;
    replica
        .metric_is(
            "shopbell_events_dead_lettered_total",
            "invalid_recipient",
            1,
        )
        .await;
    let mut merchant = world.merchant(FEED).connect(replica.public()).await;
    assert_eq!(merchant.next_notification().await.feed, FEED);
    world.finish().await;
}

#[tokio::test]
async fn no_token_is_for_the_broadcast_feed_alone() {
    let world = World::new().await;
    let replica = world.serve().await;
    let refused = async |token: &Token| {
        let refusal = world
            .merchant("somebody")
            .token(token.sign())
            .refused(replica.public())
            .await;
        refusal.expect_problem(401);
        assert!(
            refusal.text().contains("SHOPBELL_BROADCAST_FEED"),
            "{}",
            refusal.text()
        );
    };
    refused(&world.token(FEED)).await;
    refused(&world.token(FEED).feeds([MERCHANT])).await;
    refused(&world.token(FEED).broadcast()).await;
    refused(&world.token("somebody").feeds([FEED])).await;
    let closed = world
        .merchant(FEED)
        .by_subprotocol()
        .closed_at_once(replica.public())
        .await;
    assert_eq!(closed.code, 4501);
    world.finish().await;
}

#[tokio::test]
async fn only_a_token_with_the_right_marks_broadcasts() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish(&Event::new("notice", FEED, "1"))
        .await;
    world.expect_stored(FEED, 1).await;
    let token = world.token("cook").feeds([MERCHANT, FEED]);
    let mut cook = world
        .merchant("cook")
        .token(token.sign())
        .connect(replica.public())
        .await;
    assert_eq!(cook.next_notification().await.feed, FEED);
    cook.read(FEED, &[1]).await;
    assert_eq!(
        cook.next_error().await.code,
        "read_only",
        "the name of the feed is not enough"
    );

    let token = world.token("owner").feeds([MERCHANT]).broadcast();
    let mut owner = world
        .merchant("owner")
        .token(token.sign())
        .connect(replica.public())
        .await;
    owner.read(FEED, &[1]).await;
    assert_eq!(owner.next_state().await.unread, 0);
    assert_eq!(cook.next_state().await.feed, FEED);
    world.finish().await;
}

#[tokio::test]
async fn names_of_canaries_are_reserved() {
    let world = World::new().await;
    let replica = world.serve().await;
    let name = "shopbell-canary/shop";
    world.publisher().await.publish(&Event::order(name)).await;
    replica
        .metric_is(
            "shopbell_events_dead_lettered_total",
            "invalid_recipient",
            1,
        )
        .await;
    for token in [
        world.token(name),
        world.token("somebody").feeds([MERCHANT, name]),
    ] {
        let refusal = world
            .merchant("somebody")
            .token(token.sign())
            .refused(replica.public())
            .await;
        refusal.expect_problem(401);
        assert!(refusal.text().contains("reserved"), "{}", refusal.text());
    }
    let done = world
        .shopbell_with(&[("SHOPBELL_BROADCAST_FEED", name)], &["config"])
        .await
        .failed_with(2);
    assert!(done.stderr.contains("SHOPBELL_BROADCAST_FEED"), "{done:?}");
    world.finish().await;
}

#[tokio::test]
async fn commands_refuse_to_confuse_a_merchant_with_everyone() {
    let world = World::new().await;
    for arguments in [
        &["--subscriber", FEED][..],
        &["--subscriber", MERCHANT, "--feed", FEED],
    ] {
        let done = world
            .shopbell(&[&["token"], arguments].concat())
            .await
            .failed_with(2);
        assert!(
            done.stderr.contains("SHOPBELL_BROADCAST_FEED") && done.stdout.is_empty(),
            "{done:?}"
        );
    }
    world
        .shopbell(&["token", "--subscriber", MERCHANT, "--broadcast"])
        .await
        .succeeded();
    let done = world
        .shopbell(&["publish", "--recipient", FEED])
        .await
        .failed_with(2);
    assert!(done.stderr.contains("invalid_recipient"), "{done:?}");

    let replica = world.serve().await;
    world
        .shopbell(&["publish", "--recipient", FEED, "--type", "notice"])
        .await
        .succeeded();
    world
        .shopbell(&["publish", "--recipient", FEED, "--broadcast"])
        .await
        .succeeded();
    world.expect_stored(FEED, 2).await;
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    world.finish().await;
}

//! Notifications that were not acknowledged arrive again in order. Acknowledged ones never do.

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn missed_notifications_are_replayed_in_order_until_acknowledged() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let orders = Event::orders(MERCHANT, 1_000);
    publisher.publish_all(&orders).await;
    world.expect_stored(MERCHANT, 1_000).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let first = merchant.take_seqs(1..=600).await;
    merchant.ping().await;
    merchant.vanish();

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let rest = merchant.take_seqs(601..=1_000).await;
    assert_eq!(merchant.expect_caught_up(MERCHANT).await, 1_000);
    let published: Vec<_> = orders.iter().map(Event::event_id).collect();
    let arrived: Vec<_> = first
        .iter()
        .chain(&rest)
        .map(|notification| notification.id.as_str())
        .collect();
    assert_eq!(
        arrived, published,
        "the numbers follow the order of the publisher"
    );

    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    merchant.take_seqs(1_001..=1_003).await;
    merchant.ping().await;
    merchant.vanish();

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_eq!(
        merchant.expect_caught_up(MERCHANT).await,
        1_003,
        "everything was acknowledged"
    );
    world.finish().await;
}

#[tokio::test]
async fn unacknowledged_notifications_are_sent_again_on_the_next_connection() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    world.expect_stored(MERCHANT, 5).await;

    for _ in 0..3 {
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant.expect_seqs(1..=5).await;
        merchant.expect_caught_up(MERCHANT).await;
        merchant.leave().await;
    }
    world.finish().await;
}

#[tokio::test]
async fn events_published_during_a_replay_follow_it_without_a_gap() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 500)).await;
    world.expect_stored(MERCHANT, 500).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let orders = Event::orders(MERCHANT, 500);
    tokio::join!(
        merchant.take_seqs(1..=1_000),
        publisher.publish_all(&orders)
    );
    merchant.expect_caught_up(MERCHANT).await;
    world.finish().await;
}

#[tokio::test]
async fn the_welcome_has_the_start_of_the_session() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 7))
        .await;
    world.expect_stored(MERCHANT, 7).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=3).await;
    merchant.ping().await;
    merchant.vanish();

    let merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let welcome = merchant.welcome();
    assert_eq!(
        (
            welcome.subscriber.as_str(),
            welcome.window,
            welcome.heartbeat_seconds
        ),
        (MERCHANT, 256, 25)
    );
    assert!((1..=600).contains(&welcome.token_expires_in), "{welcome:?}");
    assert!(!welcome.session.is_empty(), "{welcome:?}");
    let mut feeds: Vec<_> = welcome
        .feeds
        .iter()
        .map(|feed| (feed.feed.as_str(), feed.cursor, feed.last))
        .collect();
    feeds.sort_unstable();
    assert_eq!(feeds, [("all", 0, 0), (MERCHANT, 3, 7)]);
    world.finish().await;
}

#[tokio::test]
async fn a_new_subscriber_starts_above_the_acks_of_all_others() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    world.expect_stored(MERCHANT, 5).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=3).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 3).await;

    let token = world.token("accountant").feeds([MERCHANT]).sign();
    let mut accountant = world
        .merchant("accountant")
        .token(token)
        .connect(replica.public())
        .await;
    accountant.expect_seqs(4..=5).await;
    accountant.expect_caught_up(MERCHANT).await;
    world.finish().await;
}

#[tokio::test]
async fn a_cursor_never_moves_back() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=10).await;
    merchant.ack(MERCHANT, 8).await;
    merchant.ack(MERCHANT, 2).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 8).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(9..=10).await;
    world.finish().await;
}

#[tokio::test]
async fn a_slow_page_delays_no_other_session() {
    const NEIGHBOUR: &str = "merchant-43";
    const HELD: &str = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'shopbell' and wait_event = 'PgSleep'";
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    for recipient in [MERCHANT, NEIGHBOUR] {
        publisher.publish_all(Event::orders(recipient, 10)).await;
        world.expect_stored(recipient, 10).await;
    }
    // Reading the first feed takes until its lock is released.
    world
        .change_database(
            "create table held as select 'merchant-42' as feed;
             create function is_free(one text) returns boolean language plpgsql volatile as $$
             begin
                 while exists (select from held where feed = one) loop
                     perform pg_sleep(0.02);
                 end loop;
                 return true;
             end $$;
             alter table notifications rename to notifications_kept;
             create view notifications as select * from notifications_kept where is_free(feed)",
        )
        .await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    eventually("the page is being read", PATIENCE, async || {
        let held = world.number(HELD).await;
        holds(held == 1, held)
    })
    .await;
    let mut neighbour = world.merchant(NEIGHBOUR).connect(replica.public()).await;
    neighbour.take_seqs(1..=10).await;
    assert_eq!(world.number("select count(*) from held").await, 1);
    world.change_database("delete from held").await;
    merchant.take_seqs(1..=10).await;
    world.finish().await;
}

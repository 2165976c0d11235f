//! A device that Shopbell does not know starts at the place of its subscriber.

use crate::support::{Event, Merchant, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
const DEVICES_MAX: usize = 64;
/// Opens, acknowledges and evicts at random: three subscribers with six devices each in two feeds.
/// Three devices each are kept. It fails if a device starts above its subscriber's highest ack, or
/// at another place than its earlier one. It fails too if a new subscriber does not start at the
/// highest ack of the feed, or if this goes back.
const RANDOM_DEVICES: &str = "
    create table tops (feed text, top bigint);
    create table opened (feed text, subscriber text, device text, place bigint, was_new boolean);
    do $$
    declare
        in_feed text; in_subscriber text; in_device text; own bigint; highest bigint; started bigint; step integer;
        highest_of_all bigint; stored bigint;
    begin
        perform setseed(0.42);
        insert into feeds (feed) values ('a'), ('b');
        insert into tops values ('a', 0), ('b', 0);
        for step in 1..3000 loop
            in_feed := (array['a', 'b'])[1 + floor(random() * 2)];
            in_subscriber := (array['owner', 'cook', 'waiter'])[1 + floor(random() * 3)];
            in_device := 'device-' || floor(random() * 6);
            update feeds set last_seq = last_seq + floor(random() * 5) where feed = in_feed;
            select o.place into own from opened o
                where o.feed = in_feed and o.subscriber = in_subscriber and o.device = in_device
                order by o.place desc limit 1;
            select max(o.place) into highest from opened o where o.feed = in_feed and o.subscriber = in_subscriber;
            select m.acked_seq into started
                from make_cursors(array[in_feed], array[in_subscriber], array[in_device], array[false], 3, 256, 100) m;
            if started <> own or started > highest then
                raise exception '% % in % starts at %, own %, highest %', in_subscriber, in_device, in_feed, started, own, highest;
            end if;
            select t.top into highest_of_all from tops t where t.feed = in_feed;
            if highest is null and started <> highest_of_all then
                raise exception 'the new subscriber % starts at %, not at %', in_subscriber, started, highest_of_all;
            end if;
            update cursors set seen_at = now() + step * interval '1 second'
                where feed = in_feed and subscriber = in_subscriber and device = in_device;
            if random() < 0.5 then
                select least(f.last_seq, started + floor(random() * 10)::bigint) into started from feeds f where f.feed = in_feed;
                update cursors set acked_seq = greatest(acked_seq, started)
                    where feed = in_feed and subscriber = in_subscriber and device = in_device
                    returning acked_seq into started;
                update tops set top = greatest(top, started) where feed = in_feed;
            end if;
            select t.top, greatest(f.acked_seq, (select max(c.acked_seq) from cursors c where c.feed = in_feed))
                into highest_of_all, stored
                from feeds f join tops t on t.feed = f.feed where f.feed = in_feed;
            if stored <> highest_of_all then
                raise exception 'the highest ack of % is % instead of %', in_feed, stored, highest_of_all;
            end if;
            insert into opened values (in_feed, in_subscriber, in_device, started, highest is null);
        end loop;
        delete from feeds;
    end $$";

#[tokio::test]
async fn a_new_device_starts_at_the_place_of_its_subscriber() {
    let world = World::new().await;
    let replica = world.serve().await;
    let (owner, cook) = (
        world.token("owner").feeds([MERCHANT]),
        world.token("cook").feeds([MERCHANT]),
    );
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 100))
        .await;
    world.expect_stored(MERCHANT, 100).await;
    let till = world.merchant("owner").token(owner.sign()).device("till");
    let mut till = till.connect(replica.public()).await;
    let mut kitchen = world
        .merchant("cook")
        .token(cook.sign())
        .connect(replica.public())
        .await;
    till.expect_seqs(1..=5).await;
    till.ack(MERCHANT, 5).await;
    till.leave().await;
    kitchen.take_seqs(1..=100).await;
    kitchen.leave().await;
    world.expect_acked(MERCHANT, "owner", "till", 5).await;
    world.expect_acked(MERCHANT, "cook", "", 100).await;

    let phone = world.merchant("owner").token(owner.sign()).device("phone");
    let mut phone = phone.connect(replica.public()).await;
    assert_eq!(cursor(&phone, MERCHANT), 5);
    phone.expect_seqs(6..=100).await;
    // A subscriber without a place starts at the place of the first one.
    let waiter = world.token("waiter").feeds([MERCHANT]).sign();
    let waiter = world
        .merchant("waiter")
        .token(waiter)
        .connect(replica.public())
        .await;
    assert_eq!(cursor(&waiter, MERCHANT), 100);
    world.finish().await;
}

#[tokio::test]
async fn an_evicted_device_gets_everything_that_it_did_not_acknowledge() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 20))
        .await;
    world.expect_stored(MERCHANT, 20).await;
    let old = world.merchant(MERCHANT).device("old");
    let mut session = old.connect(replica.public()).await;
    session.expect_seqs(1..=5).await;
    session.ack(MERCHANT, 5).await;
    session.leave().await;
    world.expect_cursor(MERCHANT, "old", 5).await;
    world.execute("update cursors set updated_at = now() - interval '1 day', seen_at = now() - interval '1 day'").await;
    let mut till = world
        .merchant(MERCHANT)
        .device("till")
        .connect(replica.public())
        .await;
    till.take_seqs(6..=20).await;
    till.ping().await;
    world.expect_cursor(MERCHANT, "till", 20).await;
    for number in 2..=DEVICES_MAX {
        world
            .merchant(MERCHANT)
            .device(&format!("device-{number}"))
            .connect(replica.public())
            .await
            .leave()
            .await;
    }
    replica
        .metric_reaches("shopbell_devices_evicted_total", 1)
        .await;
    assert_eq!(world.cursors(MERCHANT).await, 64);

    let mut session = old.connect(replica.public()).await;
    assert_eq!(cursor(&session, MERCHANT), 5);
    session.take_seqs(6..=20).await;
    world.finish().await;
}

#[tokio::test]
async fn the_device_that_was_not_seen_for_longest_is_evicted() {
    let world = World::new().await;
    let replica = world.serve().await;
    let device = |name: &str| world.merchant(MERCHANT).device(name);
    for name in ["seen", "unseen"] {
        device(name).connect(replica.public()).await.leave().await;
    }
    // Neither has moved for days, but one of them still connects.
    world
        .execute("update cursors set updated_at = now() - interval '9 days', seen_at = now() - interval '9 days'")
        .await;
    world
        .execute("update cursors set updated_at = now() - interval '10 days' where device = 'seen'")
        .await;
    device("seen").connect(replica.public()).await.leave().await;
    eventually("the time of the connect is stored", PATIENCE, async || {
        let noted = world
            .number("select count(*) from cursors where seen_at > now() - interval '1 hour'")
            .await;
        holds(noted == 2, noted)
    })
    .await;
    for number in 2..=DEVICES_MAX {
        device(&format!("device-{number}"))
            .connect(replica.public())
            .await
            .leave()
            .await;
    }
    let left = "select count(*) from cursors where feed = 'merchant-42' and device = 'seen'";
    assert_eq!(
        world.number(left).await,
        1,
        "the device that connects stays"
    );
    let left = "select count(*) from cursors where feed = 'merchant-42' and device = 'unseen'";
    assert_eq!(world.number(left).await, 0, "the unused device is evicted");
    world.finish().await;
}

#[tokio::test]
async fn a_merchants_first_session_gets_announcements_that_have_not_expired() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher
        .publish(&Event::new("notice", "all", "1").expires_in_seconds(-60))
        .await;
    publisher
        .publish(&Event::new("notice", "all", "2").expires_in_seconds(3_600))
        .await;
    publisher
        .publish(&Event::new("notice", "all", "3").expires_in_seconds(-60))
        .await;
    publisher.publish(&Event::new("notice", "all", "4")).await;
    world.expect_stored("all", 4).await;
    let mut first = world.merchant(MERCHANT).connect(replica.public()).await;
    while first.through("all") < 4 {
        first.next_notification().await;
    }
    first.ack("all", 4).await;
    first.leave().await;
    world.expect_acked("all", MERCHANT, "", 4).await;

    let mut newcomer = world
        .merchant("merchant-43")
        .connect(replica.public())
        .await;
    assert_eq!(
        cursor(&newcomer, "all"),
        1,
        "it starts before the oldest that has not expired"
    );
    assert_eq!(newcomer.next_notification().await.seq, 2);
    let (skips, notification) = newcomer.next_after_skips().await;
    assert_eq!(
        (skips, notification.seq),
        (vec![(3, "expired".to_owned())], 4)
    );
    let mut again = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_eq!(
        again.expect_caught_up("all").await,
        4,
        "a merchant with a place receives nothing again"
    );
    world.finish().await;
}

#[tokio::test]
async fn operators_see_the_unacknowledged_notifications_of_each_device() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut slow = world
        .merchant(MERCHANT)
        .device("slow")
        .connect(replica.public())
        .await;
    let mut fast = world
        .merchant(MERCHANT)
        .device("fast")
        .connect(replica.public())
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    fast.take_seqs(1..=10).await;
    slow.expect_seqs(1..=10).await;
    slow.ack(MERCHANT, 3).await;
    world.expect_cursor(MERCHANT, "fast", 10).await;
    world.expect_cursor(MERCHANT, "slow", 3).await;

    assert_eq!(
        world.number("select count(*) from undelivered").await,
        0,
        "one device has everything"
    );
    let waiting = "select undelivered from undelivered_devices where device = 'slow' and oldest_created_at is not null";
    assert_eq!(world.number(waiting).await, 7);
    assert_eq!(
        world
            .number("select count(*) from undelivered_devices")
            .await,
        1
    );
    let shown = world
        .shopbell(&["inspect", MERCHANT])
        .await
        .succeeded()
        .stdout;
    assert!(
        shown.contains("cursor of merchant-42 on slow: #3, 7 undelivered since 2"),
        "{shown}"
    );
    assert!(
        shown.contains("cursor of merchant-42 on fast: #10, 0 undelivered, moved 2"),
        "{shown}"
    );
    world.finish().await;
}

#[tokio::test]
async fn no_device_starts_above_the_acks_of_its_subscriber() {
    let world = World::new().await;
    world.change_database(RANDOM_DEVICES).await;
    assert_eq!(world.number("select count(*) from opened").await, 3_000);
    assert!(
        world.number("select count(*) from evicted_cursors").await > 10,
        "devices were evicted"
    );
    world.finish_unverified().await;
}

#[tokio::test]
async fn more_new_devices_than_are_kept_all_get_a_place() {
    let world = World::new().await;
    world
        .change_database(
            "insert into feeds (feed, last_seq, acked_seq) values ('m', 100, 100);
             insert into cursors (feed, subscriber, device, acked_seq) values ('m', 'owner', 'till', 5)",
        )
        .await;
    let places = "select count(*) from make_cursors(
                      array_fill('m'::text, array[80]), array_fill('owner'::text, array[80]),
                      (select array_agg('device-' || n) from generate_series(1, 80) n),
                      array_fill(false, array[80]), 64, 256, 0)
                  where acked_seq = 5";
    assert_eq!(world.number(places).await, 80);
    let kept = "select count(*) from cursors where subscriber = 'owner'";
    assert_eq!(world.number(kept).await, 64);
    world.execute("delete from feeds").await;
    world.finish_unverified().await;
}

fn cursor(merchant: &Merchant, feed: &str) -> u64 {
    let feeds = &merchant.welcome().feeds;
    feeds
        .iter()
        .find(|state| state.feed == feed)
        .expect("the feed is in the welcome")
        .cursor
}

//! Retention: only old notifications that every device has acked, or that have expired, are removed.
//! Numbers, counts and totals stay exact, and clients get the true reason of each missing number.

use serde_json::Value;

use crate::support::{Event, Frame, Merchant, PATIENCE, Replica, World, eventually, holds, http};

const MERCHANT: &str = "merchant-42";
const BROADCAST: &str = "all";

/// Makes all notifications of today 31 days old.
const AGE: &str = "update notifications set created_at = created_at - interval '31 days'
                   where created_at > now() - interval '1 day'";

impl World {
    /// Lets retention walk over all feeds, and waits until it has.
    async fn walk(&self) {
        self.change_database(
            "update retention set begins_at = now(), after_feed = '', leased_until = null",
        )
        .await;
        eventually(
            "retention has walked over all feeds",
            PATIENCE,
            async || {
                let waits =
                    "select count(*) from retention where begins_at > now() and after_feed = ''";
                holds(self.number(waits).await == 1, "it walks")
            },
        )
        .await;
    }

    /// The watermark of the merchant's feed.
    async fn trimmed(&self) -> u64 {
        self.number("select trimmed_seq from feeds where feed = 'merchant-42'")
            .await
    }
}

/// A device that gets all up to `seq`, acks, and leaves.
async fn takes(world: &World, replica: &Replica, device: &str, first: u64, seq: u64) {
    let mut session = world
        .merchant(MERCHANT)
        .device(device)
        .connect(replica.public())
        .await;
    session.expect_seqs(first..=seq).await;
    session.ack(MERCHANT, seq).await;
    session.leave().await;
    world.expect_cursor(MERCHANT, device, seq).await;
}

async fn history(world: &World, replica: &Replica, query: &str) -> Value {
    let authorization = format!("Bearer {}", world.token(MERCHANT).sign());
    let path = format!("/v1/feeds/{MERCHANT}/notifications{query}");
    let headers = [("Authorization", authorization.as_str())];
    let reply = http::get_with(replica.public(), &path, &headers)
        .await
        .expect("an answer");
    serde_json::from_slice(&reply.body).expect("a page is JSON")
}

/// The ranges that are skipped before the next notification, and its number.
async fn skips(merchant: &mut Merchant) -> (Vec<(u64, u64, String)>, u64) {
    let mut skips = Vec::new();
    loop {
        match merchant.next_frame().await.expect("the session lives") {
            Frame::Skipped(skipped) => {
                skips.push((skipped.from, skipped.through, skipped.reason));
            }
            Frame::Notification(notification) => return (skips, notification.seq),
            _ => {}
        }
    }
}

/// Sessions get new counts by hints, because a story ends before the first sweep.
async fn serve_with_long_sweep(world: &World) -> Replica {
    let replica = world.replica();
    replica.with("SHOPBELL_SWEEP_SECONDS", 3_600).start().await
}

#[tokio::test]
async fn only_what_every_device_acked_is_removed_and_explained() {
    let world = World::new().await;
    let replica = serve_with_long_sweep(&world).await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    world.expect_stored(MERCHANT, 10).await;
    takes(&world, &replica, "desk", 1, 6).await;
    let mut till = world
        .merchant(MERCHANT)
        .device("till")
        .connect(replica.public())
        .await;
    till.take_seqs(7..=10).await;
    world.expect_cursor(MERCHANT, "till", 10).await;
    till.handle(MERCHANT, &[2, 3]).await;
    till.next_state().await;
    let epoch = till.welcome().feeds[0].epoch.clone();

    // They are not old enough.
    world.walk().await;
    assert_eq!(world.stored(MERCHANT).await, (10, 10));
    world.change_database(AGE).await;
    world.walk().await;
    assert_eq!(
        (world.stored(MERCHANT).await, world.trimmed().await),
        ((4, 10), 6)
    );
    replica
        .metric_reaches("shopbell_notifications_removed_total", 6)
        .await;
    // Sessions get the new counts.
    let state = till.next_state().await;
    assert_eq!(
        (
            state.seqs,
            state.read_at,
            state.unread,
            state.unhandled,
            state.version
        ),
        (Some(vec![]), None, 4, 4, Some(2))
    );
    // A mark of a removed notification is refused, and one of a stored notification is not.
    till.read(MERCHANT, &[6]).await;
    assert_eq!(till.next_error().await.code, "unknown_seq");
    till.read(MERCHANT, &[7]).await;
    assert_eq!(till.next_state().await.unread, 3);

    // The history ends at the watermark.
    let page = history(&world, &replica, "?limit=200").await;
    assert_eq!(page["notifications"].as_array().map(Vec::len), Some(4));
    assert_eq!((&page["next"], &page["unread"]), (&Value::Null, &3.into()));
    let page = history(&world, &replica, "?before=5").await;
    assert_eq!(page["notifications"].as_array().map(Vec::len), Some(0));
    assert_eq!(page["next"], Value::Null);
    let page = history(&world, &replica, "?unhandled=true&limit=2").await;
    let page = history(
        &world,
        &replica,
        &format!("?unhandled=true&before={}", page["next"]),
    )
    .await;
    assert_eq!(
        (&page["notifications"][1]["seq"], &page["next"]),
        (&7.into(), &Value::Null)
    );

    let inspected = world.shopbell(&["inspect", MERCHANT]).await;
    let text = inspected.succeeded().stdout;
    assert!(text.contains("4 notifications, 3 unread"), "{text}");
    assert!(text.contains("all up to #6"), "{text}");

    // A client with a place below the watermark.
    let mut old = world
        .merchant(MERCHANT)
        .device("till")
        .place(MERCHANT, 2, 0, &epoch)
        .connect(replica.public())
        .await;
    let trimmed = (3, 6, "trimmed".to_owned());
    assert_eq!(skips(&mut old).await, (vec![trimmed], 7));
    old.vanish();

    // The desk has missed nothing, and the numbers continue.
    takes(&world, &replica, "desk", 7, 10).await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 10);
    publisher.publish(&Event::order(MERCHANT)).await;
    till.take_seqs(11..=11).await;
    assert_eq!(world.stored(MERCHANT).await, (1, 11));
    assert_eq!(replica.metric("shopbell_notifications_lost_total").await, 0);
    world.finish().await;
}

#[tokio::test]
async fn undelivered_notifications_stay_until_they_expire() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let order = || Event::order(MERCHANT);
    let expired = || Event::order(MERCHANT).expires_in_seconds(-1);
    // Nobody has read the feed.
    publisher
        .publish_all([expired(), expired(), order(), expired(), order()])
        .await;
    world.expect_stored(MERCHANT, 5).await;
    world.change_database(AGE).await;
    world.walk().await;
    // The fourth stays, because only a prefix is removed.
    assert_eq!(
        (world.stored(MERCHANT).await, world.trimmed().await),
        ((3, 5), 2)
    );
    world.walk().await;
    replica
        .metric_is("shopbell_retention_feeds_held_back", "", 1)
        .await;
    let undelivered = "select count(*) from undelivered where feed = 'merchant-42'";
    assert_eq!(world.number(undelivered).await, 3);
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let trimmed = (1, 2, "trimmed".to_owned());
    assert_eq!(skips(&mut merchant).await, (vec![trimmed], 3));
    assert_eq!(
        skips(&mut merchant).await,
        (vec![(4, 4, "expired".to_owned())], 5)
    );

    // The third is lost, and no client has got that reason yet. So retention stops before it.
    world
        .change_database(
            "delete from notifications where seq = 3;
             update notifications set expires_at = now();
             update feeds set unread = 2, unhandled = 2",
        )
        .await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 2);
    merchant.ack(MERCHANT, 5).await;
    world.expect_cursor(MERCHANT, "", 5).await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 5);
    merchant.vanish();
    world.finish().await;
}

#[tokio::test]
async fn announcements_stay_for_subscribers_who_connect_later() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let notice = || Event::new("notice", BROADCAST, "1");
    publisher
        .publish_all([notice().expires_in_seconds(-1), notice(), notice()])
        .await;
    world.expect_stored(BROADCAST, 3).await;
    let mut first = world.merchant("first").connect(replica.public()).await;
    first.expect_seqs(2..=3).await;
    first.ack(BROADCAST, 3).await;
    world.expect_acked(BROADCAST, "first", "", 3).await;
    world.change_database(AGE).await;
    world.walk().await;
    assert_eq!(world.stored(BROADCAST).await, (2, 3));

    let mut second = world.merchant("second").connect(replica.public()).await;
    second.expect_seqs(2..=3).await;
    second.ack(BROADCAST, 2).await;
    world.expect_acked(BROADCAST, "second", "", 2).await;
    // Nobody gets these again. The second subscriber still lacks one of the more than a hundred newer.
    publisher.publish_all((0..100).map(|_| notice())).await;
    world.stored_reaches(102, PATIENCE).await;
    world.walk().await;
    assert_eq!(world.stored(BROADCAST).await, (101, 103));
    world.finish().await;
}

#[tokio::test]
async fn totals_of_imports_stay_and_a_removed_event_is_new_again() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut events = vec![Event::import_started(MERCHANT, "imp", 3)];
    events.extend((1..=3).map(|index| Event::import_item(MERCHANT, "imp", index, index == 2)));
    publisher.publish_all(&events).await;
    world.expect_stored(MERCHANT, 4).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let last = loop {
        let notification = merchant.next_notification().await;
        if notification.seq == 4 {
            break notification;
        }
    };
    assert_eq!(last.progress.map(|progress| progress.done), Some(3));
    merchant.ack(MERCHANT, 4).await;
    world.expect_cursor(MERCHANT, "", 4).await;
    world.change_database(AGE).await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 4);
    let totals = Some((3, 1, Some(3), "running".to_owned()));
    assert_eq!(world.import(MERCHANT, "imp").await, totals);

    // Its identity is gone with it. The item still counts once.
    publisher.publish(&events[2]).await;
    let again = merchant.next_notification().await;
    assert_eq!(
        (again.seq, again.progress.map(|progress| progress.failed)),
        (5, Some(1))
    );
    assert_eq!(world.import(MERCHANT, "imp").await, totals);
    world.finish().await;
}

#[tokio::test]
async fn an_evicted_device_counts_for_the_retention_time() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    world.expect_stored(MERCHANT, 5).await;
    takes(&world, &replica, "till", 1, 5).await;
    world.change_database(AGE).await;
    world
        .execute("insert into evicted_cursors (feed, subscriber, device, acked_seq) values ('merchant-42', 'merchant-42', 'old', 2)")
        .await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 2);
    world
        .execute("update evicted_cursors set evicted_at = now() - interval '31 days'")
        .await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 5);
    let mut old = world
        .merchant(MERCHANT)
        .device("old")
        .connect(replica.public())
        .await;
    loop {
        if let Frame::Skipped(skipped) = old.next_frame().await.expect("the session lives") {
            assert_eq!(
                (skipped.from, skipped.through, &*skipped.reason),
                (3, 5, "trimmed")
            );
            break;
        }
    }
    old.ack(MERCHANT, 5).await;
    old.leave().await;
    world.expect_cursor(MERCHANT, "old", 5).await;
    world.finish().await;
}

/// Makes the cursor of a new subscriber of all broadcasts, and that of a device that was evicted long ago.
const RETURN: &str = "
    select make_cursors(array['all', 'merchant-42'], array['late', 'merchant-42'], array['', 'old'],
                        array[true, false], 64, 256, 100)";

/// The step of retention, with the floors that it has read before.
const STEP: &str = "
    select sum(removed)::bigint
    from trim_feeds(array['all', 'merchant-42'], array[100::bigint, 5], now() - interval '30 days', 1000, 1000000, 1000, true)";

#[tokio::test]
async fn a_device_that_returns_during_a_walk_misses_nothing() {
    let world = World::new().await;
    // The newest broadcasts have expired since retention has read the floor.
    world
        .change_database(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, created_at, expires_at)
                 select 'all', s, event_identity('all', '/s', s::text), '/s', s::text, 'notice', now(), now() - interval '40 days', case when s > 100 then now() end
                 from generate_series(1, 200) s
                 union all
                 select 'merchant-42', s, event_identity('merchant-42', '/m', s::text), '/m', s::text, 'order', now(), now() - interval '40 days', null
                 from generate_series(1, 5) s;
             insert into feeds (feed, last_seq, acked_seq, unread, unhandled)
                 values ('all', 200, 100, 200, 200), ('merchant-42', 5, 2, 5, 5);
             insert into cursors (feed, subscriber, acked_seq) values ('all', 'first', 200), ('merchant-42', 'merchant-42', 5);
             insert into evicted_cursors (feed, subscriber, device, acked_seq, evicted_at)
                 values ('merchant-42', 'merchant-42', 'old', 2, now() - interval '40 days')",
        )
        .await;
    world.execute(RETURN).await;
    assert_eq!(
        world.number(STEP).await,
        2,
        "only up to the place of the device"
    );
    assert_eq!(world.stored(BROADCAST).await, (200, 200));

    // The next walk reads the new cursors themselves.
    world
        .execute("update cursors set acked_seq = 5 where device = 'old'")
        .await;
    let replica = world.serve().await;
    world.walk().await;
    assert_eq!(world.trimmed().await, 5);
    assert_eq!(world.stored(BROADCAST).await, (200, 200));
    let left = "select count(*) from evicted_cursors";
    assert_eq!(world.number(left).await, 0);
    drop(replica);
    world.finish().await;
}

#[tokio::test]
async fn a_feed_that_cannot_be_read_holds_back_no_other() {
    let world = World::new().await;
    // The negative number stands for a row that Postgres cannot read.
    world
        .change_database(
            "alter table cursors drop constraint cursors_acked_seq_check;
             insert into notifications (feed, seq, identity, source, event_id, event_type, time, created_at)
                 select 'm-' || f, 1, event_identity('m-' || f, '/s', f::text), '/s', f::text, 't', now(),
                        now() - interval '40 days'
                 from generate_series(1, 9) f;
             insert into feeds (feed, last_seq, acked_seq, unread, unhandled)
                 select 'm-' || f, 1, 1, 1, 1 from generate_series(1, 9) f;
             insert into cursors (feed, subscriber, acked_seq)
                 select 'm-' || f, 'm-' || f, case when f = 4 then -1 else 1 end from generate_series(1, 9) f",
        )
        .await;
    let replica = world.serve().await;
    world.walk().await;
    assert_eq!(world.stored_in_all().await, 1);
    assert_eq!(world.stored("m-4").await.0, 1);
    replica.logs("WARN", "feed", |feed| feed == "m-4").await;
    world
        .execute("update cursors set acked_seq = 1 where acked_seq < 0")
        .await;
    world.walk().await;
    assert_eq!(world.stored_in_all().await, 0);
    world.finish().await;
}

const REMOVED: &str = "shopbell_notifications_removed_total";

/// The number of steps that run in Postgres.
const STEPS: &str = "
    select count(*) from pg_stat_activity
    where datname = current_database() and state = 'active' and query like '%trim_feeds%' and pid <> pg_backend_pid()";

/// The number of notifications while the shortened lease of a story holds; then 0.
const STORED_WHILE_LEASED: &str = "
    select case when leased_until between now() and now() + interval '10 seconds'
                then (select count(*) from notifications) else 0 end
    from retention";

#[tokio::test]
async fn a_killed_replica_is_replaced_and_two_remove_each_row_once() {
    let world = World::new().await;
    world
        .change_database(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, data, created_at)
                 select 'm-' || f, s, event_identity('m-' || f, '/s', f || '-' || s), '/s', f || '-' || s, 't', now(), repeat('x', 200), now() - interval '40 days'
                 from generate_series(1, 3000) f, generate_series(1, 20) s;
             insert into feeds (feed, last_seq, acked_seq, unread, unhandled)
                 select 'm-' || f, 20, 20, 20, 20 from generate_series(1, 3000) f;
             insert into cursors (feed, subscriber, acked_seq)
                 select 'm-' || f, 'm-' || f, 19 from generate_series(1, 3000) f",
        )
        .await;
    let first = world.replica().role("ingest").start().await;
    let second = world.replica().role("ingest").start().await;
    eventually("the removal has begun", PATIENCE, async || {
        let removed = first.metric(REMOVED).await + second.metric(REMOVED).await;
        holds(removed > 0, removed)
    })
    .await;
    // One of them holds the lease. The other takes over when it ends, and not before.
    let (holder, other) = match first.metric(REMOVED).await {
        0 => (second, first),
        _ => (first, second),
    };
    holder.kill();
    world
        .change_database("update retention set leased_until = now() + interval '3 seconds'")
        .await;
    eventually("the last step has ended", PATIENCE, async || {
        let steps = world.number(STEPS).await;
        holds(steps == 0, steps)
    })
    .await;
    let rest = world.stored_in_all().await;
    assert!(
        rest > 3_000,
        "it is killed between two steps, not after the last: {rest}"
    );
    eventually("the lease has ended", PATIENCE, async || {
        // One statement, because the lease may end between two.
        let stored = world.number(STORED_WHILE_LEASED).await;
        assert!(stored == 0 || stored == rest, "{stored} of {rest}");
        holds(stored == 0, "the lease holds")
    })
    .await;
    eventually("all but the newest are removed", PATIENCE, async || {
        let left = world.stored_in_all().await;
        holds(left == 3_000, left)
    })
    .await;
    let exact = "select count(*) from feeds where (trimmed_seq, read_seq, unread, unhandled, last_seq) = (19, 19, 1, 1, 20)";
    assert_eq!(world.number(exact).await, 3_000);
    let removed = other.metric(REMOVED).await;
    assert!(removed == rest - 3_000, "{removed} of {rest}");
    world.finish().await;
}

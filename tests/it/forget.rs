//! The erasure of one merchant: nothing of it stays, all of the others does, and numbers continue.

use serde_json::Value;

use crate::support::{Event, Merchant, PATIENCE, Parcel, Replica, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Another merchant, whose name is the beginning of the first one's.
const OTHER: &str = "merchant-4";

/// Rows that no client or publisher makes in a story.
const MORE_ROWS: &str = "
    insert into traces (feed, seq, traceparent) values ('merchant-42', 1, 'a'), ('merchant-4', 1, 'a');
    insert into evicted_cursors (feed, subscriber, device, acked_seq)
        values ('merchant-42', 'cook', 'till', 1), ('merchant-4', 'cook', 'till', 1);
    update feeds set acked_seq = 1 where feed in ('merchant-42', 'merchant-4');
    insert into dead_letters (id, reason, detail, exchange, routing_key, properties, body, bytes, feed, received_at)
        values ('held', 'feed_damaged', '', '', '', '', '', 0, 'merchant-42', now());
    insert into early_settlements (subject_key, feed, handled_by)
        values (event_identity('merchant-42', '/s', '1'), 'merchant-42', 'cancelled'),
               (event_identity('merchant-4', '/s', '1'), 'merchant-4', 'cancelled');
    insert into receipts (feed, seq, source, event_id, event_type, stored_at, wanted)
        values ('merchant-42', 1, '/s', '1', 't', now(), 1), ('merchant-4', 1, '/s', '1', 't', now(), 1);
    update feeds set early_settlements = 1 where feed in ('merchant-42', 'merchant-4')";

/// The number of rows with data of the merchant.
const LEFT: &str = "
    select (select count(*) from notifications where feed = 'merchant-42')
         + (select count(*) from evicted_cursors where feed = 'merchant-42')
         + (select count(*) from imports where feed = 'merchant-42')
         + (select count(*) from import_items where feed = 'merchant-42')
         + (select count(*) from early_settlements where feed = 'merchant-42')
         + (select count(*) from receipts where feed = 'merchant-42')
         + (select count(*) from dead_letters where feed = 'merchant-42' or position('merchant-42'::bytea in body) > 0)
         + (select count(*) from traces where feed = 'merchant-42')
         + (select count(*) from marks where feed = 'merchant-42' and seqs is distinct from '{}')";

/// The number of rows of the other merchant, beside its notifications: one of each kind.
const KEPT: &str = "
    select (select count(*) from cursors where feed = 'merchant-4') + (select count(*) from evicted_cursors)
         + (select count(*) from imports) + (select count(*) from import_items) + (select count(*) from early_settlements)
         + (select count(*) from dead_letters) + (select count(*) from traces) + (select count(*) from receipts)";

/// Publishes five orders, an import and a dead letter to each merchant.
async fn publish_to_both(world: &World) {
    let publisher = world.publisher().await;
    for feed in [MERCHANT, OTHER] {
        publisher.publish_all(Event::orders(feed, 5)).await;
        publisher
            .publish(&Event::import_started(feed, "imp", 2))
            .await;
        publisher
            .publish(&Event::import_item(feed, "imp", 1, false))
            .await;
        // An order without a total is a dead letter.
        let order = Event::new("order.created", feed, r#"{"order_id":"7"}"#);
        publisher.publish(&order).await;
        world.expect_stored(feed, 7).await;
    }
    expect_queued(world, 2).await;
}

/// Waits until RabbitMQ has this number of dead letters.
async fn expect_queued(world: &World, count: u32) {
    let (broker, letters) = (world.broker().await, world.name("dead-letter"));
    eventually("the dead letters are in RabbitMQ", PATIENCE, async || {
        let depth = broker.depth(&letters).await.unwrap_or(0);
        holds(depth == count, depth)
    })
    .await;
}

/// A session that has acked five notifications.
async fn acks_five(world: &World, replica: &Replica, feed: &str) -> Merchant {
    let mut merchant = world.merchant(feed).connect(replica.public()).await;
    merchant.expect_seqs(1..=5).await;
    merchant.ack(feed, 5).await;
    world.expect_cursor(feed, "", 5).await;
    merchant
}

#[tokio::test]
async fn forget_erases_one_merchant_and_uses_no_number_again() {
    let world = World::new().await;
    let replica = world.serve().await;
    publish_to_both(&world).await;
    let others = acks_five(&world, &replica, OTHER).await;
    let mut merchant = acks_five(&world, &replica, MERCHANT).await;
    merchant.handle(MERCHANT, &[1]).await;
    assert_eq!(merchant.next_state().await.unhandled, 5);
    let epoch = merchant.welcome().feeds[0].epoch.clone();
    world.change_database(MORE_ROWS).await;

    // Without --yes it only counts.
    let counted = world.shopbell(&["forget", MERCHANT]).await.succeeded();
    assert!(counted.stdout.contains("notifications: 7\n"), "{counted:?}");
    assert_eq!(world.stored(MERCHANT).await, (7, 7));
    let erased = world
        .shopbell(&["forget", MERCHANT, "--yes", "--output", "json"])
        .await
        .succeeded();
    let erased: Value = erased.json_lines().remove(0);
    assert_eq!(
        (&erased["notifications"], &erased["cursors"]),
        (&7.into(), &2.into())
    );
    for what in [
        "evicted_cursors",
        "marks",
        "imports",
        "import_items",
        "early_settlements",
        "receipts",
        "held_events",
        "traces",
        "dead_letters",
        "queued_dead_letters",
    ] {
        assert_eq!(erased[what], 1, "{what} in {erased}");
    }
    // The session gets the new counts.
    let state = merchant.next_state().await;
    assert_eq!(
        (state.seqs, state.unread, state.unhandled),
        (Some(vec![]), 0, 0)
    );
    merchant.vanish();
    assert_eq!(world.number(LEFT).await, 0);
    let depth = world.broker().await.depth(&world.name("dead-letter")).await;
    assert_eq!(depth, Some(1));
    assert_eq!(world.stored(OTHER).await, (7, 7));
    assert_eq!(world.number(KEPT).await, 8);

    // The numbers continue, and a client with an old place gets the reason.
    world
        .publisher()
        .await
        .publish(&Event::order(MERCHANT))
        .await;
    let mut merchant = world
        .merchant(MERCHANT)
        .place(MERCHANT, 3, 0, &epoch)
        .connect(replica.public())
        .await;
    let (skipped, order) = merchant.next_after_skips().await;
    let trimmed: Vec<_> = (4..=7).map(|seq| (seq, "trimmed".to_owned())).collect();
    assert_eq!((skipped, order.seq), (trimmed, 8));
    merchant.vanish();
    others.vanish();
    for refused in ["all", "shopbell-canary/1"] {
        world
            .shopbell(&["forget", refused, "--yes"])
            .await
            .failed_with(2);
    }
    world.finish().await;
}

#[tokio::test]
async fn forget_deletes_dead_letters_to_the_merchant_and_no_others() {
    let world = World::new().await;
    let replica = world.serve().await;
    // AMQP encodes a name of 45 bytes after a `-`, and PHP encodes `/` as `\/`.
    let feed = format!("shops/{}", "4".repeat(39));
    let escaped = feed.replace('/', "\\/");
    let attributes = |recipient| {
        [
            ("specversion", "1.0"),
            ("id", "7"),
            ("source", "/shop"),
            ("type", "order.created"),
            ("recipient", recipient),
        ]
    };
    let order = |body: String| Parcel::structured("order.created", body);
    let to_others = |data: String| {
        let event = Event::new("order.created", "m-7", &data);
        Parcel::structured("order.created", event.body())
    };
    let publisher = world.publisher().await;
    publisher
        .publish_all([
            Parcel::binary("cloudEvents_", &attributes(&feed), "{}"),
            order(format!(r#"{{"recipient":"{escaped}","#)),
            order(format!(r#"{{"id":"8","recipient":"{feed}","data":{{}}}}"#)),
            // These are dead letters of another merchant.
            to_others(format!(r#"{{"note":"{feed}"}}"#)),
            to_others(r#"{"items":42}"#.to_owned()),
            order(format!(r#"{{"recipient":"m-7","note":"{feed}","#)),
        ])
        .await;
    expect_queued(&world, 6).await;

    for (feed, deleted, others) in [("42", 0, 1), (&*feed, 3, 2)] {
        let erased = world
            .shopbell(&["forget", feed, "--yes", "--output", "json"])
            .await
            .succeeded();
        let text = format!("{others} dead letters contain the name");
        assert!(erased.stderr.contains(&text), "{erased:?}");
        let erased: Value = erased.json_lines().remove(0);
        assert_eq!(
            (&erased["dead_letters"], &erased["queued_dead_letters"]),
            (&deleted.into(), &deleted.into()),
            "{feed}"
        );
    }
    let left = "select count(*) from dead_letters";
    assert_eq!(world.number(left).await, 3);
    expect_queued(&world, 3).await;
    drop(replica);
    world.finish().await;
}

/// The cook and 1,100 others read the feed of the merchant. The manager and the last of the others also read
/// other feeds. `walker` has more cursors than one step of the scan reads.
const STAFF: &str = "
    insert into cursors (feed, subscriber, device, acked_seq)
    select feed, 'staff-' || n, 'phone', 0 from generate_series(1, 1100) n, unnest(array['merchant-42', 'all']) feed
    union all select 'feed-' || n, 'walker', '', 0 from generate_series(1, 12000) n
    union all select 'all', 'walker', '', 0 union all select 'zone', 'staff-1100', '', 0;
    insert into evicted_cursors (feed, subscriber, device, acked_seq)
        values ('all', 'cook', 'old', 0), ('all', 'walker', 'old', 0)";

#[tokio::test]
async fn forget_deletes_the_broadcast_cursors_of_staff_who_read_no_other_feed() {
    let world = World::new().await;
    let replica = world.serve().await;
    let notice = Event::new("notice", "all", "1");
    world.publisher().await.publish(&notice).await;
    world.expect_stored("all", 1).await;
    for (subscriber, feeds) in [("cook", &[MERCHANT][..]), ("manager", &[MERCHANT, OTHER])] {
        let feeds = feeds.iter().map(|feed| (*feed).to_owned()).collect();
        let token = world.token(subscriber).feed_list(feeds).sign();
        let staff = world.merchant(subscriber).device("till").token(token);
        let mut staff = staff.connect(replica.public()).await;
        assert_eq!(staff.next_notification().await.feed, "all");
        staff.leave().await;
    }
    world.change_database(STAFF).await;

    let forget = ["forget", MERCHANT, "--output", "json"];
    let counted = world.shopbell(&forget).await.succeeded();
    let erased = world
        .shopbell(&[&forget[..], &["--yes"]].concat())
        .await
        .succeeded();
    for found in [counted, erased] {
        let found: Value = found.json_lines().remove(0);
        // The cook's two and those of 1,099 others.
        let counts = (&found["cursors"], &found["staff_cursors"]);
        assert_eq!(counts, (&1102.into(), &1101.into()));
    }
    let kept = "select count(*) from cursors where feed = 'all' and subscriber in ('manager', 'staff-1100', 'walker')";
    let left = "select (select count(*) from cursors where feed = 'all')
                     + (select count(*) from evicted_cursors) * 100";
    assert_eq!(
        (world.number(kept).await, world.number(left).await),
        (3, 103)
    );
    let others = "select count(*) from cursors where feed not in ('all', 'merchant-42')";
    assert_eq!(world.number(others).await, 12_002);
    world.finish().await;
}

//! The frames of `shopbell.v1`, and the reasons for the end of a session.

use crate::support::{Event, Parcel, World};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn an_ack_above_the_sent_numbers_is_refused_and_the_session_continues() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=3).await;

    merchant.ack(MERCHANT, 4).await;
    assert_eq!(merchant.next_error().await.code, "ack_not_sent");
    merchant.ack("merchant-43", 1).await;
    assert_eq!(merchant.next_error().await.code, "unknown_feed");
    merchant.send_text(r#"{"type":"sing"}"#).await;
    let unknown = merchant.next_error().await;
    assert_eq!(unknown.code, "unknown_type");
    assert!(!unknown.message.is_empty());

    merchant.ack(MERCHANT, 3).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 3).await;
    world.finish().await;
}

#[tokio::test]
async fn an_invalid_frame_closes_the_session() {
    let world = World::new().await;
    let replica = world.serve().await;
    for text in [
        "ding dong",
        "[]",
        r#"{"seq":1}"#,
        r#"{"type":"ack","feed":"merchant-42"}"#,
    ] {
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant.send_text(text).await;
        let closed = merchant.closed().await;
        assert_eq!(
            (closed.code, closed.word.as_deref()),
            (4500, Some("not_the_protocol")),
            "{text}"
        );
    }
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.send_binary(br#"{"type":"ping"}"#).await;
    assert_eq!(merchant.closed().await.code, 4500);
    world.finish().await;
}

#[tokio::test]
async fn a_frame_above_the_bound_closes_the_session_with_1009() {
    let world = World::new().await;
    let replica = world.serve().await;
    let frame = |bytes: usize| format!(r#"{{"type":"ping","pad":"{}"}}"#, "x".repeat(bytes));
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    // Unknown fields are ignored, and 16 KiB are accepted.
    merchant.send_text(&frame(16_000)).await;
    merchant.ping().await;
    merchant.send_text(&frame(17_000)).await;
    assert_eq!(merchant.closed().await.code, 1009);
    world.finish().await;
}

#[tokio::test]
async fn a_flood_of_frames_closes_the_session_with_4429() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    for _ in 0..3_000 {
        merchant.send_text(r#"{"type":"ping"}"#).await;
    }
    let closed = merchant.closed().await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4429, Some("too_many_frames"))
    );
    assert!(
        closed.retry_after_ms.is_some_and(|wait| wait > 0),
        "{closed:?}"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_heartbeat_has_the_last_sent_number() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_HEARTBEAT_SECONDS", 1)
        .start()
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=3).await;
    let sent = merchant.next_heartbeat().await;
    assert_eq!(
        sent,
        [("all".to_owned(), 0), (MERCHANT.to_owned(), 3)].into()
    );
    world.finish().await;
}

#[tokio::test]
async fn a_session_ends_with_its_token_unless_a_fresh_one_is_shown() {
    let world = World::new().await;
    let replica = world.serve().await;
    // It expires now, and clocks may differ by five seconds.
    let short = world.token(MERCHANT).expires_in_seconds(0);
    let merchant = world.merchant(MERCHANT).token(short.sign());
    let mut renewed = merchant.connect(replica.public()).await;
    let expiring = merchant.connect(replica.public()).await;

    renewed
        .show(&world.token("merchant-43").feeds([MERCHANT]))
        .await;
    assert_eq!(
        renewed.next_error().await.code,
        "token_refused",
        "a token of another subscriber for the same feed"
    );
    renewed
        .show(&world.token(MERCHANT).feeds(["another"]))
        .await;
    assert_eq!(
        renewed.next_error().await.code,
        "token_refused",
        "a token without the feed"
    );
    renewed.show(&short.clone().expires_in_seconds(-60)).await;
    assert_eq!(
        renewed.next_error().await.code,
        "token_refused",
        "an expired one"
    );
    renewed.show(&world.token(MERCHANT)).await;
    renewed.ping().await;

    let closed = expiring.closed().await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4401, Some("token_expired"))
    );
    // The other session has outlived the same token, and keeps its place.
    world
        .publisher()
        .await
        .publish(&Event::order(MERCHANT))
        .await;
    renewed.take_seqs(1..=1).await;
    world.finish().await;
}

#[tokio::test]
async fn a_session_ends_at_its_greatest_age_and_may_come_back_at_once() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSION_SECONDS", 1)
        .start()
        .await;
    let closed = world
        .merchant(MERCHANT)
        .connect(replica.public())
        .await
        .closed()
        .await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4409, Some("too_old"))
    );
    world.finish().await;
}

#[tokio::test]
async fn a_replay_sends_the_newest_of_a_collapse_key_and_skips_the_others() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut live = world
        .merchant(MERCHANT)
        .device("live")
        .connect(replica.public())
        .await;
    world
        .merchant(MERCHANT)
        .device("late")
        .connect(replica.public())
        .await
        .leave()
        .await;
    let stock = |left: u32| {
        Event::new("stock.level", MERCHANT, &format!(r#"{{"left":{left}}}"#)).collapse_key("sku-1")
    };
    for (seq, event) in [stock(9), Event::order(MERCHANT), stock(8), stock(7)]
        .iter()
        .enumerate()
    {
        publisher.publish(event).await;
        // A client that keeps up gets every one.
        let seq = seq as u64 + 1;
        live.take_seqs(seq..=seq).await;
    }

    let mut late = world
        .merchant(MERCHANT)
        .device("late")
        .connect(replica.public())
        .await;
    let (skips, order) = late.next_after_skips().await;
    assert_eq!((skips, order.seq), (vec![(1, "collapsed".to_owned())], 2));
    let (skips, newest) = late.next_after_skips().await;
    assert_eq!((skips, newest.seq), (vec![(3, "collapsed".to_owned())], 4));
    assert_eq!(
        (newest.data(), newest.collapse_key.as_deref()),
        (r#"{"left":7}"#, Some("sku-1"))
    );
    assert_eq!(late.expect_caught_up(MERCHANT).await, 4);
    late.ack(MERCHANT, 4).await;
    late.ping().await;
    world.finish().await;
}

#[tokio::test]
async fn a_replay_of_an_import_has_its_failures_and_its_last_state() {
    let world = World::new().await;
    let replica = world.serve().await;
    let item = |index: u32, status: &str| {
        let data = format!(r#"{{"import_id":"i-1","index":{index},"sku":"s","{status}"#);
        Event::new("import.item", MERCHANT, &data)
    };
    let imported = |index| item(index, r#"status":"imported"}"#);
    let failed = |index| item(index, r#"status":"failed","error":"no price"}"#);
    let events = [
        Event::new(
            "import.started",
            MERCHANT,
            r#"{"import_id":"i-1","total":4}"#,
        ),
        imported(1),
        failed(2),
        imported(3),
        imported(4),
        Event::new(
            "import.finished",
            MERCHANT,
            r#"{"import_id":"i-1","status":"finished"}"#,
        ),
    ];
    world.publisher().await.publish_all(&events).await;
    world.expect_stored(MERCHANT, 6).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let (mut came, mut skipped) = (Vec::new(), Vec::new());
    while came.last() != Some(&6) {
        let (skips, notification) = merchant.next_after_skips().await;
        skipped.extend(skips);
        came.push(notification.seq);
    }
    assert_eq!(came, [1, 3, 5, 6]);
    assert_eq!(
        skipped,
        [(2, "collapsed".to_owned()), (4, "collapsed".to_owned())]
    );
    world.finish().await;
}

#[tokio::test]
async fn expired_notifications_are_skipped() {
    let world = World::new().await;
    let replica = world.serve().await;
    let expired = Event::order(MERCHANT).expires_in_seconds(-60);
    let fresh = Event::order(MERCHANT).expires_in_seconds(3_600);
    world
        .publisher()
        .await
        .publish_all([
            &Event::order(MERCHANT),
            &expired,
            &expired.clone().id("also"),
            &fresh,
        ])
        .await;
    world.expect_stored(MERCHANT, 4).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=1).await;
    let (skips, notification) = merchant.next_after_skips().await;
    assert_eq!(
        skips,
        [(2, "expired".to_owned()), (3, "expired".to_owned())]
    );
    assert_eq!(notification.id, fresh.event_id());
    assert_eq!(merchant.expect_caught_up(MERCHANT).await, 4);
    world.finish().await;
}

#[tokio::test]
async fn a_feed_whose_end_was_skipped_can_be_acknowledged_to_its_end() {
    let world = World::new().await;
    let replica = world.serve().await;
    let orders = [
        Event::order(MERCHANT),
        Event::order(MERCHANT).expires_in_seconds(-60),
    ];
    world.publisher().await.publish_all(&orders).await;
    world.expect_stored(MERCHANT, 2).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=1).await;
    assert_eq!(merchant.expect_caught_up(MERCHANT).await, 2);
    merchant.ack(MERCHANT, 2).await;
    merchant.leave().await;
    world.expect_cursor(MERCHANT, "", 2).await;
    world.finish().await;
}

#[tokio::test]
async fn data_goes_through_byte_for_byte() {
    let data = concat!(
        r#"{ "z" : 1e400,"a":12345678901234567890.10, "#,
        r#""nul":"\u0000","half":"\ud800","quoted":"\"\\\/","#,
        "\n\t\"euro\":\"\u{20ac}\" ,\"z\":null}",
    );
    let world = World::new().await;
    let replica = world.serve().await;
    let structured = |id: &str, data: &str| {
        let body = format!(
            r#"{{"data":{data},"recipient":"{MERCHANT}","id":"{id}","source":"/s","type":"order.paid","specversion":"1.0"}}"#
        );
        Parcel::structured("order.paid", body)
    };
    let binary = |prefix: &str, id: &str| {
        let attributes = [
            ("specversion", "1.0"),
            ("id", id),
            ("source", "/s"),
            ("type", "order.paid"),
            ("recipient", MERCHANT),
        ];
        Parcel::binary(prefix, &attributes, data)
    };
    let parcels = [
        structured("s-1", data),
        binary("cloudEvents_", "b-1"),
        binary("cloudEvents:", "b-2"),
        structured("s-2", data).content_type("application/cloudevents+json; charset=UTF-8"),
        structured("s-3", "null"),
    ];
    world.publisher().await.publish_all(&parcels).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let ids = ["s-1", "b-1", "b-2", "s-2"];
    for (notification, id) in merchant.take_seqs(1..=4).await.iter().zip(ids) {
        assert_eq!(
            (notification.id.as_str(), notification.event.as_str()),
            (id, "order.paid")
        );
        assert_eq!(notification.data(), data, "{id}");
    }
    merchant.take_seqs(5..=5).await;
    // The same from the database as live.
    let mut again = world
        .merchant(MERCHANT)
        .after(MERCHANT, 0)
        .connect(replica.public())
        .await;
    assert_eq!(again.next_notification().await.data(), data);
    world.finish().await;
}

#[tokio::test]
async fn an_event_of_any_type_is_routed_and_delivered() {
    let world = World::new().await;
    let replica = world.serve().await;
    let odd = Event::new("Ünusual.type with.spaces", MERCHANT, "{}");
    world.publisher().await.publish(&odd).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=1).await;
    assert_eq!(arrived[0].event, "Ünusual.type with.spaces");
    world.finish().await;
}

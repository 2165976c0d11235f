//! An event that can never be stored is kept with its reason, affects no other event, and can be
//! replayed after a repair.

use std::time::Duration;

use serde::Deserialize;

use crate::support::raw_amqp::{RawMessage, RawPublisher, nested_arrays};
use crate::support::{Event, Parcel, World};

const MERCHANT: &str = "merchant-42";

/// Every defect of the contract, with its reason and the published bytes.
fn defects() -> Vec<(&'static str, Parcel)> {
    let envelope = |rest: &str| {
        format!(r#"{{"specversion":"1.0","id":"x","source":"/s","type":"order.paid",{rest}}}"#)
    };
    let structured = |body: &str| Parcel::structured("order.paid", body);
    let recipient = format!(r#""recipient":"{MERCHANT}""#);
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let mut not_utf8 = envelope(&format!(r#"{recipient},"data":"?""#)).into_bytes();
    *not_utf8
        .iter_mut()
        .rfind(|byte| **byte == b'?')
        .expect("a byte to spoil") = 0xff;
    let no_total = Event::new(
        "order.created",
        MERCHANT,
        r#"{"order_id":"1","currency":"EUR","items":1}"#,
    );
    let old_version = format!(
        r#"{{"specversion":"0.3","id":"x","source":"/s","type":"order.paid",{recipient}}}"#
    );
    vec![
        (
            "malformed_json",
            structured(r#"{"specversion":"1.0","id":"#),
        ),
        ("invalid_recipient", structured(&envelope(r#""data":{}"#))),
        (
            "invalid_recipient",
            structured(&envelope(r#""recipient":"merchant 42","data":{}"#)),
        ),
        (
            "invalid_envelope",
            structured(&format!(
                r#"{{"specversion":"1.0","source":"/s","type":"t",{recipient}}}"#
            )),
        ),
        ("invalid_data", Parcel::from(&no_total)),
        (
            "too_large",
            structured(&envelope(&format!(
                r#"{recipient},"data":"{}""#,
                "x".repeat(300 * 1024)
            ))),
        ),
        ("invalid_utf8", Parcel::structured("order.paid", not_utf8)),
        (
            "too_deep",
            structured(&envelope(&format!(r#"{recipient},"data":{deep}"#))),
        ),
        (
            "unsupported_content_type",
            structured("order paid").content_type("text/plain"),
        ),
        ("unsupported_version", structured(&old_version)),
    ]
}

#[tokio::test]
async fn each_defect_is_dead_lettered_with_its_reason_and_harms_no_event() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let (orders, defects) = (Event::orders(MERCHANT, 999), defects());
    let mut parcels: Vec<_> = orders.iter().map(Parcel::from).collect();
    for (number, (_, defect)) in defects.iter().enumerate() {
        parcels.insert((number + 1) * 90, defect.clone());
    }
    publisher.publish_all(&parcels).await;

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=999).await;
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(orders.iter().map(Event::event_id))
    );

    let letters = world
        .broker()
        .await
        .letters(&world.name("dead-letter"), defects.len())
        .await;
    for ((reason, defect), letter) in defects.iter().zip(&letters) {
        assert_eq!(
            letter.header("x-shopbell-reason").as_deref(),
            Some(*reason),
            "{:?}",
            letter.header("x-shopbell-detail")
        );
        assert!(
            letter
                .header("x-shopbell-detail")
                .is_some_and(|detail| !detail.is_empty()),
            "{reason}"
        );
        assert!(
            letter.body == defect.body,
            "{reason}: the body differs from the published one"
        );
        assert_eq!(letter.content_type, defect.content_type, "{reason}");
        assert_eq!(
            letter.header("x-shopbell-exchange"),
            Some(world.name("events")),
            "{reason}"
        );
        assert_eq!(
            letter.header("x-shopbell-routing-key").as_ref(),
            Some(&defect.routing_key),
            "{reason}"
        );
        let same = defects.iter().filter(|(other, _)| other == reason).count();
        let counted = replica
            .metric_where(
                "shopbell_events_dead_lettered_total",
                &format!("reason=\"{reason}\""),
            )
            .await;
        assert_eq!(counted, same as u64, "{reason}");
    }
    world.finish().await;
}

/// A line of `dead-letters list --output json`.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    reason: String,
    detail: String,
    exchange: String,
    routing_key: String,
    bytes: usize,
}

#[tokio::test]
async fn a_dead_letter_can_be_listed_shown_mended_and_dropped() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let no_total = Event::new(
        "order.created",
        MERCHANT,
        r#"{"order_id":"1","currency":"EUR","items":1}"#,
    )
    .id("mended");
    let (bad, hopeless) = (
        Parcel::from(&no_total),
        Parcel::structured("order.lost", "{"),
    );
    publisher.publish_all([&bad, &hopeless]).await;
    world
        .broker()
        .await
        .letters(&world.name("dead-letter"), 2)
        .await;
    let list = async || -> Vec<Listed> {
        world
            .shopbell(&["dead-letters", "list", "--output", "json"])
            .await
            .succeeded()
            .json_lines()
    };

    let listed = list().await;
    let [first, second] = &listed[..] else {
        panic!("two dead letters: {listed:?}")
    };
    assert_eq!(
        (first.reason.as_str(), second.reason.as_str()),
        ("invalid_data", "malformed_json")
    );
    assert!(first.detail.contains("total"), "{first:?}");
    assert_eq!(
        (first.exchange.as_str(), first.routing_key.as_str()),
        (world.name("events").as_str(), "order.created")
    );
    assert_eq!(
        (first.bytes, second.bytes),
        (bad.body.len(), hopeless.body.len())
    );
    let shown = world
        .shopbell(&["dead-letters", "show", &first.id])
        .await
        .succeeded();
    assert_eq!(shown.stdout.trim_end().as_bytes(), bad.body, "as it came");
    assert_eq!(list().await.len(), 2, "listing removes nothing");

    let mended = Event::order(MERCHANT).id("mended");
    let file = world.file("mended.json", &mended.body());
    world
        .shopbell(&["dead-letters", "replay", &first.id, "--body", &file])
        .await
        .succeeded();
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_eq!(merchant.take_seqs(1..=1).await[0].id, "mended");
    assert_eq!(
        list().await.len(),
        1,
        "a replayed event is no dead letter any more"
    );

    world
        .shopbell(&["dead-letters", "drop", &second.id])
        .await
        .succeeded();
    assert_eq!(list().await.len(), 0);
    let unknown = world.shopbell(&["dead-letters", "show", &second.id]).await;
    assert_eq!(unknown.status, Some(1), "{unknown:?}");
    world.finish().await;
}

#[tokio::test]
async fn dead_letters_that_are_replayed_and_still_broken_are_dead_letters_again() {
    let world = World::new().await;
    let replica = world.serve().await;
    let bad: Vec<_> = (0..5)
        .map(|_| Event::new("order.created", MERCHANT, "{}"))
        .collect();
    world.publisher().await.publish_all(&bad).await;
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 5)
        .await;

    world
        .shopbell(&["dead-letters", "replay", "--all"])
        .await
        .succeeded();
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 10)
        .await;
    let letters = world
        .broker()
        .await
        .letters(&world.name("dead-letter"), 5)
        .await;
    for (letter, bad) in letters.iter().zip(&bad) {
        assert_eq!(
            letter.header("x-shopbell-reason").as_deref(),
            Some("invalid_data")
        );
        assert!(
            letter.body == bad.body(),
            "the body differs from the published one"
        );
    }
    world.finish().await;
}

/// Headers that RabbitMQ confirms and lapin alone could not read, one defect each, with the reason
/// if it is a dead letter.
fn unreadable() -> Vec<(RawMessage, Option<&'static str>)> {
    /// More do not fit RabbitMQ's frame of 128 KiB.
    const LEVELS_MAX: usize = 26_000;
    let good = || {
        let event = Event::order(MERCHANT);
        let content_type = b"application/cloudevents+json".to_vec();
        RawMessage {
            routing_key: b"order.created".to_vec(),
            content_type,
            headers: Vec::new(),
            body: event.body(),
        }
    };
    let header = |name: &[u8], value: &[u8]| [&[name.len() as u8], name, value].concat();
    let nested = |levels| header(b"nested", &nested_arrays(levels));
    // Tables instead of arrays, each with one entry: an empty name and the next table.
    let tables = (0..10_000_u32)
        .rev()
        .flat_map(|inside| [b"\0F", &(inside * 6).to_be_bytes()[..]].concat())
        .collect();
    let not_utf8 = vec![0xff; 255];
    let with_headers = |headers| RawMessage { headers, ..good() };
    let with_key = |routing_key| RawMessage {
        routing_key,
        ..good()
    };
    let with_type = |content_type| RawMessage {
        content_type,
        ..good()
    };
    // The dead-lettered event is published again with its original headers and routing key.
    let cut_off = RawMessage {
        headers: nested(10_000),
        body: b"{".to_vec(),
        ..good()
    };
    let wrong_everywhere = RawMessage {
        routing_key: not_utf8.clone(),
        content_type: not_utf8.clone(),
        headers: header(&not_utf8, b"V"),
        ..good()
    };
    let bad_type = Some("unsupported_content_type");
    vec![
        (with_headers(nested(100)), None),
        (with_headers(nested(10_000)), None),
        (with_headers(nested(LEVELS_MAX)), None),
        (with_headers(tables), None),
        (with_headers(header(b"\xff\xfe", b"V")), None),
        (with_headers(header(&not_utf8, b"t\x01")), None),
        (with_key(b"order.\xff".to_vec()), None),
        (with_type(b"application/\xff\xfe".to_vec()), bad_type),
        (cut_off, Some("malformed_json")),
        (wrong_everywhere, bad_type),
    ]
}

#[tokio::test]
async fn headers_only_rabbitmq_can_read_end_no_connection_and_harm_no_event() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let publisher = world.publisher().await;
    let mut raw = RawPublisher::connect(world.publisher_amqp_url(), &world.name("events")).await;
    let unreadable = unreadable();
    let buried: Vec<_> = unreadable
        .iter()
        .filter_map(|(_, reason)| *reason)
        .collect();

    let story = async {
        let mut seq = 0;
        for (number, (message, reason)) in unreadable.iter().enumerate() {
            let neighbour = Event::order(MERCHANT);
            raw.publish(message).await;
            publisher.publish(&neighbour).await;
            let arriving = 1 + u64::from(reason.is_none());
            let arrived = merchant.take_seqs(seq + 1..=seq + arriving).await;
            assert_eq!(
                arrived.last().map(|last| last.id.as_str()),
                Some(neighbour.event_id()),
                "number {number}"
            );
            seq += arriving;
        }
        let listed = world
            .shopbell(&["dead-letters", "list", "--output", "json"])
            .await
            .succeeded();
        let listed = listed.json_lines::<Listed>();
        assert!(
            listed
                .iter()
                .map(|letter| letter.reason.as_str())
                .eq(buried.iter().copied()),
            "{listed:?}"
        );
        assert!(
            listed.iter().all(|letter| letter.routing_key.len() <= 255),
            "{listed:?}"
        );

        world
            .shopbell(&["dead-letters", "replay", "--all"])
            .await
            .succeeded();
        replica
            .metric_reaches(
                "shopbell_events_dead_lettered_total",
                2 * buried.len() as u64,
            )
            .await;
    };
    // A connection that ends is away for a while, and the metrics show that.
    let watch = async {
        loop {
            let ready = replica.get("/readyz").await.text();
            assert!(ready.contains(r#""broker":"ok""#), "{ready}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = story => {}
        () = watch => {}
    }
    assert_eq!(
        replica.metric("shopbell_events_duplicate_total").await,
        0,
        "redelivered, so a connection had ended"
    );
    world.finish().await;
}

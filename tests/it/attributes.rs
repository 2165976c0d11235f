//! Attributes and data as the libraries of publishers write them are either read correctly or
//! rejected with a reason.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde::Deserialize;

use crate::support::{Event, Parcel, World};

const MERCHANT: &str = "merchant-42";

/// A line of `dead-letters list --output json`.
#[derive(Debug, Deserialize)]
struct Listed {
    reason: String,
    detail: String,
}

/// Publishes events that must be rejected, and returns the rejections in the same order.
async fn rejections(world: &World, parcels: &[Parcel]) -> Vec<Listed> {
    let replica = world.serve().await;
    world.publisher().await.publish_all(parcels).await;
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", parcels.len() as u64)
        .await;
    assert_eq!(
        world.stored_in_all().await,
        0,
        "an unreadable event was stored"
    );
    let listed = world
        .shopbell(&["dead-letters", "list", "--output", "json"])
        .await
        .succeeded()
        .json_lines();
    assert_eq!(listed.len(), parcels.len(), "{listed:?}");
    listed
}

fn binary(more: &[(&str, AMQPValue)]) -> Parcel {
    let attributes = [
        ("specversion", "1.0"),
        ("id", "e-1"),
        ("source", "/shop"),
        ("type", "order.paid"),
        ("recipient", MERCHANT),
    ];
    let mut parcel = Parcel::binary("cloudEvents_", &attributes, "{}");
    for (name, value) in more {
        parcel
            .headers
            .insert(format!("cloudEvents_{name}").into(), value.clone());
    }
    parcel
}

/// Values that are neither text, number, boolean nor time, and the name of their type in a
/// rejection.
fn unreadable() -> Vec<(AMQPValue, &'static str)> {
    let soon = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        + Duration::from_secs(3_600);
    let (seconds, microseconds) = (soon.as_secs_f64(), soon.as_micros() as u64);
    let mut table = FieldTable::default();
    table.insert("a".into(), AMQPValue::Boolean(true));
    let mut array = FieldArray::default();
    array.push(AMQPValue::LongString("a".into()));
    vec![
        (AMQPValue::Double(seconds), "double"),
        (AMQPValue::Float(1.5), "float"),
        (AMQPValue::LongString(b"\xe9t\xe9".to_vec().into()), "UTF-8"),
        (AMQPValue::ByteArray(b"\xff".to_vec().into()), "UTF-8"),
        (AMQPValue::FieldTable(table), "table"),
        (AMQPValue::FieldArray(array), "array"),
        (AMQPValue::Timestamp(microseconds), "timestamp"),
    ]
}

#[tokio::test]
async fn an_unreadable_attribute_is_rejected_by_name_and_type() {
    let world = World::new().await;
    let names = [
        "id",
        "source",
        "type",
        "recipient",
        "time",
        "expirytime",
        "collapsekey",
        "specversion",
    ];
    let cases: Vec<_> = names
        .iter()
        .flat_map(|name| {
            unreadable()
                .into_iter()
                .map(move |(value, named)| (*name, value, named))
        })
        .collect();
    let parcels: Vec<_> = cases
        .iter()
        .map(|(name, value, _)| binary(&[(*name, value.clone())]))
        .collect();

    let rejected = rejections(&world, &parcels).await;
    for ((name, value, named), rejection) in cases.iter().zip(&rejected) {
        let reason = if *name == "recipient" {
            "invalid_recipient"
        } else {
            "invalid_envelope"
        };
        assert_eq!(rejection.reason, reason, "{name} {value:?}");
        let detail = &rejection.detail;
        assert!(
            detail.contains(&format!("`{name}`")) && detail.contains(named),
            "{name} {value:?}: {detail}"
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn headers_that_are_no_attribute_of_ours_may_hold_anything() {
    let world = World::new().await;
    let replica = world.serve().await;
    let more: Vec<_> = unreadable().into_iter().map(|(value, _)| value).collect();
    let mut parcels = Vec::new();
    for (number, value) in more.iter().enumerate() {
        let id = AMQPValue::LongString(format!("e-{number}").as_str().into());
        let mut parcel = binary(&[
            ("id", id),
            ("subject", value.clone()),
            ("traceparent", value.clone()),
        ]);
        parcel.headers.insert("x-other".into(), value.clone());
        parcels.push(parcel);
    }
    world.publisher().await.publish_all(&parcels).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=parcels.len() as u64).await;
    world.finish().await;
}

#[tokio::test]
async fn integers_and_booleans_are_the_same_in_both_modes() {
    let world = World::new().await;
    let replica = world.serve().await;
    let structured = |id: &str, recipient: &str, key: &str| {
        let rest = format!(r#""recipient":{recipient},"collapsekey":{key},"data":{{}}"#);
        Parcel::structured(
            "t",
            format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t",{rest}}}"#),
        )
    };
    let of = |id: &str, key| {
        let text = |text: &str| AMQPValue::LongString(text.into());
        binary(&[
            ("id", text(id)),
            ("recipient", AMQPValue::LongLongInt(1_795_890_651_102_295)),
            ("collapsekey", key),
        ])
    };
    let number = "1795890651102295";
    let parcels = [
        structured("s-1", number, "42"),
        of("b-1", AMQPValue::LongInt(42)),
        structured("s-2", number, "-7"),
        of("b-2", AMQPValue::ShortShortInt(-7)),
        structured("s-3", number, "true"),
        of("b-3", AMQPValue::Boolean(true)),
    ];
    world.publisher().await.publish_all(&parcels).await;
    world.expect_stored(number, 6).await;
    let mut merchant = world.merchant(number).connect(replica.public()).await;
    // Only the newest of each key arrives, so both modes wrote the same key.
    let mut keys = BTreeMap::new();
    for _ in 0..3 {
        let (_, notification) = merchant.next_after_skips().await;
        keys.insert(
            notification.id.clone(),
            notification.collapse_key.clone().unwrap_or_default(),
        );
        merchant.ack(number, notification.seq).await;
    }
    let wanted = [("b-1", "42"), ("b-2", "-7"), ("b-3", "true")];
    assert_eq!(
        keys,
        wanted
            .map(|(id, key)| (id.to_owned(), key.to_owned()))
            .into()
    );
    world.finish().await;
}

#[tokio::test]
async fn a_byte_order_mark_and_a_compressed_body_are_named() {
    let world = World::new().await;
    let body = Event::order(MERCHANT).body();
    let utf_16 = |text: &[u8]| -> Vec<u8> { text.iter().flat_map(|byte| [*byte, 0]).collect() };
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0\x43\xbf\xa6\xa3\x02\0\0\0".to_vec();
    let of = |body: Vec<u8>| Parcel::structured("order.created", body);
    let cases = [
        (
            of([b"\xef\xbb\xbf", &body[..]].concat()),
            "malformed_json",
            "byte order mark",
        ),
        (
            of([b"\xff\xfe".to_vec(), utf_16(&body)].concat()),
            "invalid_utf8",
            "UTF-16",
        ),
        (of(utf_16(&body)), "malformed_json", "UTF-16"),
        (of(gzip.clone()), "invalid_utf8", "gzip"),
        (
            of(b"\x28\xb5\x2f\xfd\x04\0".to_vec()),
            "invalid_utf8",
            "zstd",
        ),
        (
            of(b"\x78\x9c\xab\xae\x05\0".to_vec()),
            "invalid_utf8",
            "deflate",
        ),
        (
            of(b"\x0b\x01\x80{}\x03".to_vec()).content_encoding("br"),
            "invalid_utf8",
            "br",
        ),
        (
            of(b"{ab".to_vec()).content_encoding("GZIP"),
            "malformed_json",
            "gzip",
        ),
    ];
    let parcels: Vec<_> = cases.iter().map(|(parcel, ..)| parcel.clone()).collect();
    let rejected = rejections(&world, &parcels).await;
    for ((_, reason, named), rejection) in cases.iter().zip(&rejected) {
        assert_eq!(rejection.reason, *reason, "{rejection:?}");
        assert!(rejection.detail.contains(named), "{named}: {rejection:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_number_with_a_fraction_of_zero_is_a_whole_number() {
    let world = World::new().await;
    let replica = world.serve().await;
    let order = |items: &str| {
        let data = format!(r#"{{"order_id":"1","total":"1.00","currency":"EUR","items":{items}}}"#);
        Event::new("order.created", MERCHANT, &data)
    };
    let import = |event_type: &str, data: &str| Event::new(event_type, MERCHANT, data);
    let events = [
        order("3.0"),
        order("30E-1"),
        import("import.started", r#"{"import_id":"f","total":1e1}"#),
        import(
            "import.item",
            r#"{"import_id":"f","index":1.0,"sku":"s","status":"imported"}"#,
        ),
    ];
    world.publisher().await.publish_all(&events).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=events.len() as u64).await;
    assert!(
        arrived[0].data().contains(r#""items":3.0"#),
        "as it came: {}",
        arrived[0].data()
    );
    assert_eq!(
        world
            .import(MERCHANT, "f")
            .await
            .map(|(done, _, total, _)| (done, total)),
        Some((1, Some(10)))
    );
    world.finish().await;
}

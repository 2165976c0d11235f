//! Events of the official CloudEvents SDKs for Python (with pika) and Node (with amqplib),
//! structured and binary, arrive unchanged.

use crate::support::{Sdk, World};

const MERCHANT: &str = "merchant-42";
/// The time of the SDKs' events, given as a text, as milliseconds and as an AMQP timestamp.
const TIME: &str = "2026-01-02T03:04:05Z";
/// JSON that changes if it is parsed and written again, as bytes for an SDK.
const RAW: &str = "{ \"z\":123456789012345678901234567890,\"a\" : 1e400, \"nul\":\"\\u0000\",\"a\":-0.0,\r\n\t\"m\":[1.10,2E-0 ],\
    \"half\":\"\\ud800\",\"é\":\"\\u00e9\\/☃\" }";

#[tokio::test]
async fn events_of_the_python_sdk_arrive_byte_for_byte() {
    let object =
        r#"{"z": 123456789012345678901234567890, "a": "\u0000", "\u00e9": [1.1, true, null]}"#;
    let expected = [
        ("structured-object", object),
        ("structured-bytes", RAW),
        ("binary-object", object),
        ("binary-bytes", RAW),
        ("binary-colons", RAW),
        ("binary-rabbitmq", RAW),
    ];
    arrives_byte_for_byte(Sdk::Python, &expected).await;
}

#[tokio::test]
async fn events_of_the_node_sdk_arrive_byte_for_byte() {
    let object = r#"{"z":9007199254740991,"a":"\u0000","é":[1.1,true,null]}"#;
    let expected = [
        ("structured-object", object),
        ("structured-bytes", RAW),
        ("binary-object", object),
        ("binary-bytes", RAW),
        ("binary-text", RAW),
        ("binary-colons", RAW),
    ];
    arrives_byte_for_byte(Sdk::Node, &expected).await;
}

/// `expected`: each event's id, and the data that the SDK produces from its input.
async fn arrives_byte_for_byte(sdk: Sdk, expected: &[(&str, &str)]) {
    let world = World::new().await;
    let replica = world.serve().await;
    let count = expected.len() as u64;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_caught_up(MERCHANT).await;

    let published = sdk.publish(&world, MERCHANT, RAW).await;
    let on_the_wire = published
        .iter()
        .map(|event| (event.id.as_str(), event.data.as_str()));
    assert_eq!(
        on_the_wire.collect::<Vec<_>>(),
        expected,
        "the bytes that the SDK published"
    );

    let live = merchant.expect_seqs(1..=count).await;
    merchant.vanish();
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let replayed = merchant.take_seqs(1..=count).await;
    for (way, notifications) in [("live", live), ("replayed", replayed)] {
        for (notification, event) in notifications.iter().zip(&published) {
            assert_eq!(
                (notification.id.as_str(), notification.data()),
                (event.id.as_str(), event.data.as_str()),
                "{way}"
            );
            assert_eq!(notification.event, "order.paid", "{way}");
            assert_eq!(notification.time, TIME, "{way}: {}", event.id);
            assert_eq!(notification.collapse_key.as_ref(), Some(&event.id), "{way}");
        }
    }
    world.finish().await;
}

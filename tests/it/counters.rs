//! The metrics of a replica are correct, and its counters balance.

use std::collections::BTreeSet;

use crate::support::{Event, Parcel, World};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn every_received_event_is_stored_a_duplicate_or_a_dead_letter() {
    let world = World::new().await;
    let replica = world.serve().await;
    let orders = Event::orders(MERCHANT, 40);
    let mut parcels: Vec<_> = orders.iter().map(Parcel::from).collect();
    parcels.extend(orders[..7].iter().map(Parcel::from));
    parcels.extend((0..3).map(|_| Parcel::structured("order.lost", "{")));
    world.publisher().await.publish_all(&parcels).await;
    let counts = [
        "received",
        "stored",
        "duplicate",
        "dead_lettered",
        "abandoned",
    ];
    for (what, expected) in counts.into_iter().zip([50, 40, 7, 3, 0]) {
        replica
            .metric_is(&format!("shopbell_events_{what}_total"), "", expected)
            .await;
    }
    world.finish().await;
}

#[tokio::test]
async fn the_metrics_of_the_flow_exist_by_name() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    publisher
        .publish(&Parcel::structured("order.lost", "{"))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=10).await;
    merchant.ping().await;
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 1)
        .await;

    let promised = BTreeSet::from(
        [
            "shopbell_events_received_total",
            "shopbell_events_stored_total",
            "shopbell_events_duplicate_total",
            "shopbell_events_dead_lettered_total",
            "shopbell_sessions",
            "shopbell_notifications_sent_total",
            "shopbell_acks_total",
            "shopbell_hints_received_total",
            "shopbell_pages_read_total",
            "shopbell_page_queries_total",
        ]
        .map(str::to_owned),
    );
    let missing: Vec<_> = promised
        .difference(&replica.metric_names().await)
        .cloned()
        .collect();
    assert_eq!(missing, Vec::<String>::new());
    assert_eq!(
        replica.metric("shopbell_notifications_sent_total").await,
        10
    );
    assert_eq!(replica.metric("shopbell_sessions").await, 1);
    assert!(replica.metric("shopbell_acks_total").await >= 1);
    let text = replica.get("/metrics").await.text();
    assert!(
        !text.contains(MERCHANT),
        "a label with a feed in it grows without a bound"
    );
    world.finish().await;
}

#[tokio::test]
async fn the_operations_port_reports_liveness_and_readiness() {
    let world = World::new().await;
    let replica = world.serve().await;
    assert_eq!(replica.get("/livez").await.status, 200);
    let ready = replica.get("/readyz").await;
    let fields: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&ready.body).expect("the body of /readyz is JSON");
    let expected = [("status", "ready"), ("database", "ok"), ("broker", "ok")];
    assert_eq!(
        fields,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    world.finish().await;
}

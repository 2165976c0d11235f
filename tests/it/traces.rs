//! If a publisher traces an event, its trace continues to the ack. A real collector receives it.

use std::time::{Duration, Instant};

use lapin::types::AMQPValue;

use crate::support::{Collector, Event, PATIENCE, Parcel, Replica, Span, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PUBLISHERS_SPAN: &str = "b7ad6b7169203331";

/// A replica that exports spans to the collector.
async fn traced(world: &World, collector: &Collector) -> Replica {
    let replica = world
        .replica()
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let replica = replica.with("OTEL_BSP_SCHEDULE_DELAY", 100);
    replica.with("SHOPBELL_SWEEP_SECONDS", 3_600).start().await
}

/// All spans before the collector has `count` spans with this name, and then those.
async fn spans(collector: &Collector, name: &str, count: usize) -> Vec<Span> {
    eventually(&format!("{count} spans {name:?}"), PATIENCE, async || {
        let spans = collector.spans();
        let found: Vec<Span> = spans
            .iter()
            .filter(|span| span.name == name)
            .cloned()
            .collect();
        if found.len() == count {
            Ok(found)
        } else {
            Err(format!("{spans:#?}"))
        }
    })
    .await
}

/// The only span of this name.
async fn span(collector: &Collector, name: &str) -> Span {
    spans(collector, name, 1).await.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_publisher_to_the_clients_ack_over_two_replicas() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let replicas = [
        traced(&world, &collector).await,
        traced(&world, &collector).await,
    ];
    let mut merchants = Vec::new();
    for (replica, device) in replicas.iter().zip(["till", "phone"]) {
        let mut merchant = world
            .merchant(MERCHANT)
            .device(device)
            .connect(replica.public())
            .await;
        merchant.expect_caught_up(MERCHANT).await;
        merchants.push(merchant);
    }
    // A notification that a round finds may be read before its trace is stored. Each replica has a round because of the
    // start of the other.
    for replica in &replicas {
        replica
            .metric_is("shopbell_rounds_total", "new_stream", 1)
            .await;
    }
    // A replica publishes hints only to known gateways, so both must be known.
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint())];
    let published = [
        "publish",
        "--recipient",
        MERCHANT,
        "--type",
        "shop.opened",
        "--id",
        "traced",
    ];
    world.shopbell_with(&settings, &published).await.succeeded();
    for merchant in &mut merchants {
        merchant.expect_seqs(1..=1).await;
        merchant.ack(MERCHANT, 1).await;
    }

    let publish = span(&collector, &format!("send {}", world.name("events"))).await;
    assert_eq!(
        (publish.parent.as_str(), publish.kind.as_str()),
        ("", "SPAN_KIND_PRODUCER")
    );
    let process = span(&collector, &format!("process {}", world.name("ingest"))).await;
    assert_eq!(
        (&process.trace, &process.parent),
        (&publish.trace, &publish.id)
    );
    for attribute in [
        "messaging.system: Str(rabbitmq)".to_owned(),
        "messaging.operation.name: Str(process)".to_owned(),
        "messaging.operation.type: Str(process)".to_owned(),
        format!("messaging.destination.name: Str({})", world.name("ingest")),
        "messaging.message.id: Str(traced)".to_owned(),
        format!("shopbell.feed: Str({MERCHANT})"),
        "shopbell.seq: Int(1)".to_owned(),
    ] {
        assert!(
            process.attributes.contains(&attribute),
            "{attribute} in {process:#?}"
        );
    }
    // The batch with its commit is a trace of its own. The two traces link to each other.
    let batch = span(&collector, &format!("batch {}", world.name("ingest"))).await;
    assert_eq!(batch.links, [(publish.trace.clone(), publish.id.clone())]);
    assert_eq!(process.links, [(batch.trace.clone(), batch.id.clone())]);
    let commit = span(&collector, "append notifications").await;
    assert_eq!((&commit.trace, &commit.parent), (&batch.trace, &batch.id));

    let fan_out = span(&collector, &format!("send {}", world.name("fanout"))).await;
    assert_eq!(
        (&fan_out.trace, &fan_out.parent),
        (&publish.trace, &process.id)
    );
    let sends = spans(&collector, "send shopbell.v1", 2).await;
    let acks = spans(&collector, "ack shopbell.v1", 2).await;
    for send in &sends {
        assert_eq!((&send.trace, &send.parent), (&publish.trace, &process.id));
        assert!(
            acks.iter()
                .any(|ack| (&ack.trace, &ack.parent) == (&send.trace, &send.id)),
            "{send:#?} in {acks:#?}"
        );
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_events_begin_a_trace_that_links_to_their_own() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let replica = traced(&world, &collector).await;
    world
        .publisher()
        .await
        .publish(sampled(Event::order(MERCHANT), "01"))
        .await;
    let process = span(&collector, &format!("process {}", world.name("ingest"))).await;
    assert_eq!(
        (process.trace.as_str(), process.parent.as_str()),
        (TRACE, PUBLISHERS_SPAN)
    );

    eventually("the trace position is stored", PATIENCE, async || {
        let kept = world.number("select count(*) from traces").await;
        holds(kept == 1, kept)
    })
    .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=1).await;
    merchant.ack(MERCHANT, 1).await;
    let send = span(&collector, "send shopbell.v1").await;
    assert_eq!(
        send.parent, "",
        "the time in the database is not part of the span"
    );
    assert_eq!(send.links, [(process.trace.clone(), process.id.clone())]);
    let ack = span(&collector, "ack shopbell.v1").await;
    assert_eq!((&ack.trace, &ack.parent), (&send.trace, &send.id));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsampled_events_are_not_traced_and_a_lost_collector_delays_no_stop() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let replica = traced(&world, &collector).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    for (seq, flags) in [(1, "00"), (2, "01")] {
        world
            .publisher()
            .await
            .publish(sampled(Event::order(MERCHANT), flags))
            .await;
        merchant.take_seqs(seq..=seq).await;
    }
    let ack = span(&collector, "ack shopbell.v1").await;
    assert_eq!(ack.trace, TRACE);
    let sends = spans(&collector, "send shopbell.v1", 1).await;
    assert!(
        sends[0]
            .attributes
            .contains(&"shopbell.seq: Int(2)".to_owned()),
        "{sends:#?}"
    );

    drop(collector);
    world
        .publisher()
        .await
        .publish(sampled(Event::order(MERCHANT), "01"))
        .await;
    merchant.take_seqs(3..=3).await;
    assert!(replica.terminate().await.success());
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_waits_for_its_trace() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let replica = traced(&world, &collector).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let lock = world.lock_traces().await;
    let publisher = world.publisher().await;
    let begun = Instant::now();
    for seq in 1..=20 {
        publisher
            .publish(sampled(Event::order(MERCHANT), "01"))
            .await;
        merchant.expect_seqs(seq..=seq).await;
    }
    let mut elsewhere = world
        .merchant(MERCHANT)
        .device("phone")
        .connect(replica.public())
        .await;
    elsewhere.expect_seqs(1..=20).await;
    // One statement alone would have waited as long.
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it took {:?}",
        begun.elapsed()
    );
    drop(lock);
    world.finish().await;
}

/// With the header that an instrumented AMQP client adds.
fn sampled(event: Event, flags: &str) -> Parcel {
    let mut parcel = Parcel::from(event);
    let traceparent = format!("00-{TRACE}-{PUBLISHERS_SPAN}-{flags}");
    parcel.headers.insert(
        "traceparent".into(),
        AMQPValue::LongString(traceparent.into()),
    );
    parcel
}

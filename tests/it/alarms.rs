//! Each test causes a fault. The metrics of a real replica change, and the alert rules fire that
//! the runbook names for it.

use std::time::Duration;

use crate::support::{Event, Monitor, PATIENCE, Parcel, Proxy, Shop, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Longer than a rule without `for` waits.
const HELD_SECONDS: u64 = 31;

#[tokio::test]
async fn a_service_that_was_killed() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    replica.kill();
    monitor.expect_alert("ShopbellDown", "page").await;
    world.finish().await;
}

#[tokio::test]
async fn a_walk_of_retention_that_does_not_end() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    // The clock of Postgres was set back after a replica took the lease.
    world
        .change_database(
            "update retention set begins_at = now() - interval '7 hours', leased_until = now() + interval '1 day'",
        )
        .await;
    replica
        .metric_reaches("shopbell_retention_late_seconds", 25_200)
        .await;
    monitor
        .expect_alert("ShopbellRetentionBehind", "ticket")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn receipts_that_cannot_be_taken_from_postgres() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    world
        .change_database(
            "alter function take_receipts(integer, interval, bigint) rename to broken;
             insert into receipts (feed, seq, source, event_id, event_type, stored_at, wanted, delivered_at, due_at)
             values ('merchant-42', 1, '/s', '1', 't', now(), 1, now(), now() - interval '1 minute')",
        )
        .await;
    replica
        .metric_reaches("shopbell_receipts_late_seconds", 31)
        .await;
    monitor.expect_alert("ShopbellReceiptsLate", "page").await;
    world.finish_unverified().await;
}

#[tokio::test]
async fn an_outbox_whose_rows_wait_and_one_row_that_can_never_be_published() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let network = Proxy::before_service(world.publisher_amqp_url()).await;
    let amqp_url = network.url(world.publisher_amqp_url());
    let relay = shop.relay(&world, &[("AMQP_URL", &amqp_url)]).start().await;
    let behind = Monitor::with_relays(&world, [&replica], [&relay]).await;
    let set_aside = Monitor::with_relays(&world, [&replica], [&relay]).await;
    let gone = Monitor::with_relays(&world, [&replica], [&relay]).await;

    shop.run(
        "insert into shopbell_outbox.events (recipient, type, event_id, source, time)
         values ('merchant-42', repeat('t', 256), 'long', '/shop', now())",
    )
    .await;
    relay.metric_reaches("shopbell_outbox_set_aside", 1.0).await;
    set_aside
        .expect_alert("ShopbellRelaySetAside", "ticket")
        .await;
    network.cut();
    shop.publish(MERCHANT, "1").await;
    shop.run("update shopbell_outbox.events set created_at = now() - interval '2 minutes'")
        .await;
    relay
        .metric_reaches("shopbell_outbox_oldest_age_seconds", 120.0)
        .await;
    behind.expect_alert("ShopbellRelayBehind", "page").await;
    network.mend();
    world.expect_stored(MERCHANT, 1).await;
    relay.kill();
    gone.expect_alert("ShopbellRelayBehind", "page").await;
    world.finish().await;
}

#[tokio::test]
async fn one_service_of_two_that_was_killed() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let monitor = Monitor::of(&world, &replicas).await;
    replicas[0].kill();
    monitor.expect_alert("ShopbellDown", "ticket").await;
    world.finish().await;
}

#[tokio::test]
async fn a_service_that_ends_as_soon_as_it_starts() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut monitor = Monitor::of(&world, [&replica]).await;
    for _ in 0..3 {
        replica.restart().await;
        monitor.scrape().await;
    }
    monitor.expect_alert("ShopbellRestarting", "ticket").await;
    world.finish().await;
}

#[tokio::test]
async fn a_broker_that_is_away_and_a_canary_that_does_not_come_through() {
    let world = World::new().await;
    let (network, replica) = world
        .replica()
        .with("SHOPBELL_CANARY_SECONDS", 1)
        .start_behind_broker_proxy()
        .await;
    replica
        .metric_reaches("shopbell_canary_publish_to_ack_seconds_count", 3)
        .await;
    assert_eq!(replica.metric("shopbell_canary_failures_total").await, 0);
    // The canary shares its proxy with the service, so only one alert fires for a broker that is
    // away for all.
    let other = world.serve().await;
    let monitor = [
        Monitor::of(&world, [&replica]).await,
        Monitor::of(&world, [&replica, &other]).await,
    ];

    network.cut();
    replica.metric_is("shopbell_broker_up", "", 0).await;
    replica.metric_is("shopbell_part_up", "", 0).await;
    replica
        .metric_reaches("shopbell_canary_failures_total", 2)
        .await;
    assert!(
        replica
            .metric_where("shopbell_canary_failures_total", "publish")
            .await
            >= 2
    );
    let text = replica.get("/metrics").await.text();
    assert!(
        !text.contains("\nshopbell_queue_messages{"),
        "an unknown value is not exposed: {text}"
    );
    let [broker, canary] = monitor;
    broker.expect_alert("ShopbellBrokerAway", "page").await;
    canary.expect_alert("ShopbellCanaryFailing", "page").await;
    network.mend();
    replica.metric_reaches("shopbell_broker_up", 1).await;
    world
        .execute("delete from feeds where starts_with(feed, 'shopbell-canary/')")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_database_that_is_away() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    network.cut();
    replica.metric_is("shopbell_database_up", "", 0).await;
    monitor.expect_alert("ShopbellDatabaseAway", "page").await;
    network.mend();
    replica.metric_reaches("shopbell_database_up", 1).await;
    world.finish().await;
}

#[tokio::test]
async fn events_that_can_never_be_stored() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = [
        Monitor::of(&world, [&replica]).await,
        Monitor::of(&world, [&replica]).await,
    ];
    let publisher = world.publisher().await;
    publisher
        .publish(Parcel::structured("order.created", "no JSON"))
        .await;
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 1)
        .await;
    replica
        .metric_is("shopbell_queue_messages", "dead-letter", 1)
        .await;
    let [at_once, mut in_an_hour] = monitor;
    at_once.expect_alert("ShopbellDeadLetters", "ticket").await;
    for _ in 0..4 {
        in_an_hour.scrape().await;
    }
    in_an_hour
        .expect_alert("ShopbellDeadLettersWaiting", "ticket")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_publisher_most_of_whose_events_can_never_be_stored() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let broken = (0..50).map(|_| Parcel::structured("order.created", "no JSON"));
    world.publisher().await.publish_all(broken).await;
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 50)
        .await;
    monitor.expect_alert("ShopbellDeadLetters", "page").await;
    world.finish().await;
}

#[tokio::test]
async fn events_that_no_queue_takes() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let broker = world.broker().await;
    broker
        .unbind(&world.name("ingest"), &world.name("events"))
        .await;
    world
        .publisher()
        .await
        .publish(&Event::order(MERCHANT))
        .await;
    replica
        .metric_is("shopbell_queue_messages", "unroutable", 1)
        .await;
    monitor.expect_alert("ShopbellUnroutable", "page").await;
    broker.purge(&world.name("unroutable")).await;
    world.finish().await;
}

#[tokio::test]
async fn a_consumer_that_is_stuck() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let lock = world.lock_feeds().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    eventually(
        "the delivery is held for long",
        Duration::from_secs(2 * HELD_SECONDS),
        async || {
            let text = replica.get("/metrics").await.text();
            let held = text
                .lines()
                .find_map(|line| line.strip_prefix("shopbell_oldest_delivery_held_seconds "));
            let held: f64 = held.expect("the metric exists").parse().expect("seconds");
            holds(held > HELD_SECONDS as f64, held)
        },
    )
    .await;
    assert!(
        replica
            .metric_where("shopbell_retries_total", "append")
            .await
            > 0
    );
    let readiness = replica.get("/readyz").await;
    let text = readiness.text();
    assert!(
        readiness.status == 200 && text.contains("degraded") && text.contains("ingest has held"),
        "{text}"
    );
    // The detail ends with the cause.
    assert!(text.contains("canceling statement due to"), "{text}");
    monitor.expect_alert("ShopbellIngestStuck", "page").await;
    drop(lock);
    world.expect_stored(MERCHANT, 3).await;
    world.finish().await;
}

#[tokio::test]
async fn an_ingest_queue_without_a_consumer() {
    let world = World::new().await;
    let ingest = world.replica().role("ingest").start().await;
    let gateway = world.replica().role("gateway").start().await;
    gateway
        .metric_is("shopbell_queue_consumers", "ingest", 1)
        .await;
    let monitor = Monitor::of(&world, [&gateway, &ingest]).await;
    ingest.kill();
    gateway
        .metric_is("shopbell_queue_consumers", "ingest", 0)
        .await;
    monitor.expect_alert("ShopbellNoConsumer", "page").await;
    world.finish().await;
}

#[tokio::test]
async fn a_partition_that_nobody_consumes() {
    let world = World::new().await;
    let gateway = world
        .replica()
        .role("gateway")
        .with("SHOPBELL_INGEST_PARTITIONS", 2)
        .start()
        .await;
    let ingest = world
        .replica()
        .role("ingest")
        .with("SHOPBELL_INGEST_PARTITIONS", 2)
        .start()
        .await;
    gateway
        .metric_is("shopbell_queue_consumers", "ingest", 1)
        .await;
    // As after a rollback to a version or a setting without this limit.
    let instead = world.replica().role("ingest").start().await;
    let monitor = Monitor::of(&world, [&gateway, &instead]).await;
    assert!(ingest.terminate().await.success());
    gateway
        .metric_is("shopbell_queue_consumers", "ingest", 0)
        .await;
    monitor.expect_alert("ShopbellNoConsumer", "page").await;
    world.finish().await;
}

#[tokio::test]
async fn a_pool_that_is_exhausted() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let lock = world.lock_notifications().await;
    // More history requests than connections, which wait longer than the limit.
    let token = world.token(MERCHANT).sign();
    let requests = (0..12).map(|_| {
        let (address, authorization) = (replica.public(), format!("Bearer {token}"));
        tokio::spawn(async move {
            let path = format!("/v1/feeds/{MERCHANT}/notifications");
            crate::support::http::get_with(address, &path, &[("authorization", &authorization)])
                .await
        })
    });
    let requests: Vec<_> = requests.collect();
    eventually(
        "requests give up their wait for a connection",
        PATIENCE,
        async || {
            let timeouts = replica
                .metric_where("shopbell_pool_timeouts_total", "history")
                .await;
            holds(timeouts >= 9, timeouts)
        },
    )
    .await;
    let text = replica.get("/metrics").await.text();
    assert!(
        text.contains(r#"shopbell_pool_connections{pool="history",state="used"} 3"#),
        "{text}"
    );
    monitor
        .expect_alert("ShopbellPoolExhausted", "ticket")
        .await;
    drop(lock);
    for request in requests {
        request
            .await
            .expect("a request does not panic")
            .expect("an answer comes");
    }
    world.finish().await;
}

//! If the network breaks, Shopbell reports it. If the network works again, all events arrive.

use crate::support::{Event, PATIENCE, Proxy, Replica, World, eventually, holds, http};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn ingest_waits_in_place_for_an_absent_database() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=10).await;

    network.cut();
    publisher.publish_all(Event::orders(MERCHANT, 200)).await;
    expect_readiness(&replica, 503).await;
    let refusal = world
        .merchant("merchant-43")
        .refused(replica.public())
        .await;
    refusal.expect_problem(503);
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    let authorization = format!("Bearer {}", world.token(MERCHANT).sign());
    let (path, headers) = (
        format!("/v1/feeds/{MERCHANT}/notifications"),
        [("Authorization", authorization.as_str())],
    );
    let history = http::get_with(replica.public(), &path, &headers).await;
    history.expect("an answer").expect_problem(503);
    let counted = replica.metric_where("shopbell_history_refused_total", "not_ready");
    assert_eq!(counted.await, 1);
    merchant.ping().await;

    network.mend();
    merchant.take_seqs(11..=210).await;
    expect_readiness(&replica, 200).await;
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0,
        "a temporary fault makes no dead letter"
    );
    world.finish().await;
}

#[tokio::test]
async fn events_held_for_an_absent_database_keep_their_order_after_a_stop() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    // Later events would be stored first if their deliveries came before the held ones are
    // returned.
    let standby = world.serve().await;
    let orders = Event::orders(MERCHANT, 600);
    network.cut();
    world.publisher().await.publish_all(&orders).await;
    let broker = world.broker().await;
    eventually("a full prefetch is held", PATIENCE, async || {
        let ready = broker.depth(&world.name("ingest")).await;
        holds(
            ready.is_some_and(|ready| ready <= 344),
            format!("{ready:?} wait in the queue"),
        )
    })
    .await;

    assert!(replica.terminate().await.success());
    let mut merchant = world.merchant(MERCHANT).connect(standby.public()).await;
    let arrived = merchant.take_seqs(1..=600).await;
    for (notification, order) in arrived.iter().zip(&orders) {
        assert_eq!(
            notification.id,
            order.event_id(),
            "at seq {}",
            notification.seq
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn ingest_waits_in_place_for_a_silent_database() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;

    network.stall();
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 50))
        .await;
    expect_readiness(&replica, 503).await;
    network.mend();

    merchant.take_seqs(1..=50).await;
    expect_readiness(&replica, 200).await;
    world.finish().await;
}

#[tokio::test]
async fn a_silent_connection_to_the_database_is_replaced() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    merchant.take_seqs(1..=10).await;
    merchant.ping().await;

    network.forget();
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    merchant.take_seqs(11..=20).await;
    merchant.ping().await;
    world.expect_cursor(MERCHANT, "", 20).await;
    expect_readiness(&replica, 200).await;
    world.finish().await;
}

#[tokio::test]
async fn without_a_broker_sessions_are_served_from_the_database() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_broker_proxy().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    world.expect_stored(MERCHANT, 20).await;

    network.cut();
    eventually(
        "the replica reports that it has no broker",
        PATIENCE,
        async || {
            let reply = replica.get("/readyz").await;
            let degraded = reply.status == 200 && !reply.text().contains(r#""broker":"ok""#);
            holds(degraded, format!("{} {}", reply.status, reply.text()))
        },
    )
    .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=20).await;
    merchant.expect_caught_up(MERCHANT).await;
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;

    network.mend();
    merchant.take_seqs(21..=40).await;
    replica.ready().await;
    world.finish().await;
}

#[tokio::test]
async fn connections_that_break_again_and_again_lose_nothing_and_repeat_nothing() {
    let world = World::new().await;
    let to_broker = Proxy::before_service(world.amqp_url()).await;
    let to_database = Proxy::before_service(world.database_url()).await;
    let replica = world
        .replica()
        .with("AMQP_URL", to_broker.url(world.amqp_url()))
        .with("DATABASE_URL", to_database.url(world.database_url()))
        .start()
        .await;
    let mut publisher = world.publisher_at(&to_broker.url(world.amqp_url())).await;
    let orders = Event::orders(MERCHANT, 4_000);

    let breaking = async {
        for (network, stored) in [
            (&to_broker, 500),
            (&to_database, 1_000),
            (&to_broker, 2_000),
            (&to_database, 3_000),
        ] {
            world.stored_reaches(stored, PATIENCE).await;
            network.cut();
            network.mend();
        }
    };
    tokio::join!(publisher.publish_until_confirmed(&orders), breaking);

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=4_000).await;
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(orders.iter().map(Event::event_id))
    );
    world.finish().await;
}

async fn expect_readiness(replica: &Replica, status: u16) {
    eventually(&format!("/readyz says {status}"), PATIENCE, async || {
        let reply = replica.get("/readyz").await;
        holds(
            reply.status == status,
            format!("{} {}", reply.status, reply.text()),
        )
    })
    .await;
}

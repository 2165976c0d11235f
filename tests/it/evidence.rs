//! Evidence that hints were lost: without a sweep, a gateway reads the missed notifications. Each story stores
//! a notification without a hint, and shows why the gateway has read it.

use std::time::{Duration, Instant};

use crate::support::{Event, Merchant, PATIENCE, Proxy, Replica, Tap, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Longer than any story. So only evidence helps.
const NEVER: u64 = 3_600;
/// A lost hint is made good within this time of the evidence.
const BOUND: Duration = Duration::from_secs(2);
/// Stores a notification, and publishes no hint.
const STORE_SILENTLY: &str = "select append_notifications(
    array['merchant-42'], array[event_identity('merchant-42', '/silent', 'n-' || c)], array['/silent'], array['n-' || c],
    array['order.created'], array[now()], array['{}'::text], array[null::text], array[null::timestamptz], now(),
    array[]::bigint[], array[]::text[], array[]::bigint[], array[]::bigint[], array[]::bigint[], array[]::bigint[],
    array[]::text[], false) from (select count(*) as c from notifications) counted";

async fn gateway(world: &World) -> Replica {
    let gateway = world.replica().role("gateway");
    gateway.with("SHOPBELL_SWEEP_SECONDS", NEVER).start().await
}

async fn rounds(gateway: &Replica, evidence: &str) -> u64 {
    let label = format!("evidence=\"{evidence}\"");
    gateway.metric_where("shopbell_rounds_total", &label).await
}

async fn others_than(gateway: &Replica, evidence: &str) -> u64 {
    gateway.metric("shopbell_rounds_total").await - rounds(gateway, evidence).await
}

async fn rounds_reach(gateway: &Replica, evidence: &str, least: u64) {
    let what = format!("{least} rounds because of {evidence}");
    eventually(&what, PATIENCE, async || {
        let rounds = rounds(gateway, evidence).await;
        holds(rounds >= least, rounds)
    })
    .await;
}

/// A gateway that has begun, with a merchant that has nothing to read.
async fn gateway_with_merchant(world: &World) -> (Replica, Merchant) {
    let gateway = gateway(world).await;
    rounds_reach(&gateway, "reconnect", 1).await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    (gateway, merchant)
}

#[tokio::test]
async fn a_gap_in_the_numbers() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    let broker = world.broker().await;
    let heartbeat = async |number| {
        let header = format!(r#"{{"heartbeat":{{"every_ms":20000,"numbers":[{number}]}}}}"#);
        broker.announce(&world.name("fanout"), &header).await;
    };
    heartbeat(5).await;
    rounds_reach(&gateway, "new_stream", 1).await;
    heartbeat(5).await;
    world.change_database(STORE_SILENTLY).await;
    assert_eq!(rounds(&gateway, "gap").await, 0);

    let begun = Instant::now();
    heartbeat(6).await;
    merchant.take_seqs(1..=1).await;
    let took = begun.elapsed();
    assert!(took < BOUND, "{took:?}");
    assert_eq!(rounds(&gateway, "gap").await, 1);
    assert_eq!(
        gateway.metric("shopbell_hint_messages_missed_total").await,
        1
    );
    world.finish().await;
}

#[tokio::test]
async fn a_hint_that_was_lost_on_its_way() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let gateway = world
        .replica()
        .role("gateway")
        .with("SHOPBELL_SWEEP_SECONDS", NEVER)
        .with("AMQP_URL", tap.url(world.amqp_url()))
        .start()
        .await;
    let _ingest = world.replica().role("ingest").start().await;
    rounds_reach(&gateway, "new_stream", 1).await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    let others = others_than(&gateway, "gap").await;

    tap.lose_hints();
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(2..=2).await;
    // The hint was lost, and the next heartbeat has shown the gap.
    assert_eq!(tap.hints_lost(), 1);
    assert_eq!(rounds(&gateway, "gap").await, 1);
    assert_eq!(others_than(&gateway, "gap").await, others);
    assert_eq!(
        gateway.metric("shopbell_hint_messages_missed_total").await,
        1
    );
    tap.recover();
    let hints = gateway.metric("shopbell_hints_received_total").await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(3..=3).await;
    gateway
        .metric_reaches("shopbell_hints_received_total", hints + 1)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_new_incarnation() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    world.change_database(STORE_SILENTLY).await;
    let others = others_than(&gateway, "new_stream").await;
    let _ingest = world.replica().role("ingest").start().await;
    merchant.take_seqs(1..=1).await;
    assert!(rounds(&gateway, "new_stream").await > 0);
    assert_eq!(others_than(&gateway, "new_stream").await, others);
    world.finish().await;
}

#[tokio::test]
async fn the_silence_of_a_publisher_that_was_killed() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    let ingest = world.replica().role("ingest").start().await;
    rounds_reach(&gateway, "new_stream", 1).await;
    world
        .publisher()
        .await
        .publish(&Event::order(MERCHANT))
        .await;
    merchant.take_seqs(1..=1).await;
    let before = rounds(&gateway, "silence").await;
    // As if it was killed between a commit and the hint.
    ingest.kill();
    world.change_database(STORE_SILENTLY).await;
    merchant.take_seqs(2..=2).await;
    assert!(rounds(&gateway, "silence").await > before);
    ingest.restart().await;
    world.finish().await;
}

#[tokio::test]
async fn a_publisher_that_stops_takes_its_leave() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    let ingest = world.replica().role("ingest").start().await;
    rounds_reach(&gateway, "new_stream", 1).await;
    assert!(ingest.terminate().await.success());
    // The next process is heard longer than the first would be silent.
    let next = world.replica().role("ingest").start().await;
    rounds_reach(&gateway, "new_stream", 2).await;
    let begun = Instant::now();
    eventually("some heartbeats pass", PATIENCE, async || {
        let passed = begun.elapsed().as_secs();
        holds(passed > 5, passed)
    })
    .await;
    assert_eq!(rounds(&gateway, "silence").await, 0);
    drop(next);
    merchant.ping().await;
    world.finish().await;
}

#[tokio::test]
async fn a_connection_that_was_lost_and_opened_again() {
    let world = World::new().await;
    let network = Proxy::before_service(world.amqp_url()).await;
    let gateway = world
        .replica()
        .role("gateway")
        .with("SHOPBELL_SWEEP_SECONDS", NEVER)
        .with("AMQP_URL", network.url(world.amqp_url()))
        .start()
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    rounds_reach(&gateway, "reconnect", 1).await;
    let before = rounds(&gateway, "disconnect").await;

    network.cut();
    world.change_database(STORE_SILENTLY).await;
    merchant.take_seqs(1..=1).await;
    assert!(rounds(&gateway, "disconnect").await > before);
    world.change_database(STORE_SILENTLY).await;
    network.mend();
    merchant.take_seqs(2..=2).await;
    rounds_reach(&gateway, "reconnect", 2).await;
    world.finish().await;
}

#[tokio::test]
async fn a_queue_that_lost_its_binding_is_bound_again() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    let _ingest = world.replica().role("ingest").start().await;
    rounds_reach(&gateway, "new_stream", 1).await;
    let broker = world.broker().await;
    broker.delete_exchange(&world.name("fanout")).await;
    broker.declare_fanout(&world.name("fanout")).await;
    world.change_database(STORE_SILENTLY).await;
    merchant.take_seqs(1..=1).await;
    assert!(rounds(&gateway, "silence").await > 0);
    rounds_reach(&gateway, "reconnect", 2).await;

    let publisher = world.publisher().await;
    let hints = gateway.metric("shopbell_hints_received_total").await;
    eventually("hints arrive again", PATIENCE, async || {
        publisher.publish(&Event::order(MERCHANT)).await;
        let received = gateway.metric("shopbell_hints_received_total").await;
        holds(received > hints, received)
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn a_mark_whose_reply_was_lost() {
    let world = World::new().await;
    let network = Proxy::before_service(world.database_url()).await;
    let replica = world
        .replica()
        .with("SHOPBELL_SWEEP_SECONDS", NEVER)
        .with("DATABASE_URL", network.url(world.database_url()))
        .start()
        .await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 2)).await;
    let connect = async |device| {
        let device = world.merchant(MERCHANT).device(device);
        let mut session = device.connect(replica.public()).await;
        session.expect_seqs(1..=2).await;
        session
    };
    let (mut here, mut there) = (connect("here").await, connect("there").await);
    // So the writer has a connection.
    here.handle(MERCHANT, &[2]).await;
    here.next_state().await;
    there.next_state().await;
    // The mark is stored, and Postgres has no way to reply.
    network.stall_downstream();
    here.handle(MERCHANT, &[1]).await;
    eventually("the mark is stored", PATIENCE, async || {
        let handled = "select count(*) from notifications where handled_at is not null";
        let handled = world.number(handled).await;
        holds(handled == 2, handled)
    })
    .await;
    network.cut();
    network.mend();
    assert_eq!(there.next_state().await.seqs, Some(vec![1]));
    assert!(rounds(&replica, "write").await > 0);
    world.finish().await;
}

#[tokio::test]
async fn events_of_a_held_feed_are_hinted_to_other_replicas() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    let ingest = world.replica().role("ingest").start().await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    world
        .execute("alter table feeds add constraint broken check (feed <> 'merchant-42' or last_seq <= 1)")
        .await;
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    ingest.metric_is("shopbell_feeds_held", "", 1).await;
    let (hints, feeds) = (
        gateway.metric("shopbell_hints_received_total").await,
        gateway.metric("shopbell_feeds_read_total").await,
    );
    world
        .execute("alter table feeds drop constraint broken")
        .await;
    merchant.take_seqs(2..=4).await;
    assert_eq!(
        gateway.metric("shopbell_hints_received_total").await,
        hints + 3
    );
    assert_eq!(gateway.metric("shopbell_feeds_read_total").await, feeds);
    world.finish().await;
}

#[tokio::test]
async fn new_counts_after_retention_are_hinted_to_other_replicas() {
    let world = World::new().await;
    let (gateway, mut merchant) = gateway_with_merchant(&world).await;
    let ingest = world.replica().role("ingest").start().await;
    rounds_reach(&gateway, "new_stream", 1).await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    merchant.take_seqs(1..=5).await;
    merchant.ack(MERCHANT, 5).await;
    world.expect_cursor(MERCHANT, "", 5).await;
    let feeds = gateway.metric("shopbell_feeds_read_total").await;

    world
        .change_database("update notifications set created_at = created_at - interval '31 days'")
        .await;
    world
        .change_database(
            "update retention set begins_at = now(), after_feed = '', leased_until = null",
        )
        .await;
    let state = merchant.next_state().await;
    assert_eq!((state.seqs, state.unread), (Some(vec![]), 0));
    assert_eq!(gateway.metric("shopbell_feeds_read_total").await, feeds);
    ingest
        .metric_reaches("shopbell_notifications_removed_total", 5)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn idle_sessions_cost_postgres_nothing() {
    const SESSIONS: u64 = 40;
    const FEED_READS: &str = "select (coalesce(idx_scan, 0) + seq_scan)::bigint from pg_stat_user_tables where relname = 'feeds'";
    const EPOCH_READS: &str = "select (coalesce(idx_scan, 0) + seq_scan)::bigint from pg_stat_user_tables where relname = 'epochs'";
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_CANARY_SECONDS", 0)
        .with("SHOPBELL_RETENTION_DAYS", 0)
        .start()
        .await;
    let publisher = world.publisher().await;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let name = format!("merchant-{number}");
        let mut session = world.merchant(&name).connect(replica.public()).await;
        publisher.publish(&Event::order(&name)).await;
        session.take_seqs(1..=1).await;
        sessions.push(session);
    }
    // A window of some seconds, with the reads of the epoch and of the probe.
    let reads_while_idle = async || {
        let (epoch, feeds) = (
            world.number(EPOCH_READS).await,
            world.number(FEED_READS).await,
        );
        eventually("the epoch is read four times", PATIENCE, async || {
            let reads = world.number(EPOCH_READS).await - epoch;
            holds(reads >= 4, reads)
        })
        .await;
        world.number(FEED_READS).await - feeds
    };
    // The first windows may have late acks, and one window the sweep.
    eventually(
        "nothing is read for each session",
        2 * PATIENCE,
        async || {
            let reads = reads_while_idle().await;
            holds(reads < SESSIONS / 4, reads)
        },
    )
    .await;
    world.finish().await;
}

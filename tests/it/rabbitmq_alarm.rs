//! An alarm of RabbitMQ blocks publishers, so hints and heartbeats are lost. Events are stored and
//! sent all the same. When the alarm ends, everything works again at once.

use std::time::{Duration, Instant};

use crate::support::{Event, PATIENCE, Replica, Tap, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Longer than any story. So only evidence helps.
const NEVER: u64 = 3_600;
/// Longer than each pause after a failure, and than a lost binding is borne.
const ALARM: Duration = Duration::from_secs(12);
/// From the end of the alarm until a replica is ready. Heartbeats are a second apart.
const RECOVERY: Duration = Duration::from_secs(2);
/// From the begin of the alarm until the next heartbeat has found it.
const FOUND: Duration = Duration::from_secs(3);

async fn rounds(gateway: &Replica, evidence: &str) -> u64 {
    let label = format!("evidence=\"{evidence}\"");
    gateway.metric_where("shopbell_rounds_total", &label).await
}

#[tokio::test]
async fn replicas_are_ready_at_once_when_an_alarm_ends() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let setup = || {
        let replica = world.replica().with("AMQP_URL", tap.url(world.amqp_url()));
        replica.with("SHOPBELL_SWEEP_SECONDS", NEVER)
    };
    let gateway = setup().role("gateway").start().await;
    let replicas = [setup().start().await, setup().start().await, gateway];
    let gateway = &replicas[2];
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    eventually("the gateway has begun", PATIENCE, async || {
        let reconnects = rounds(gateway, "reconnect").await;
        holds(reconnects == 1, reconnects)
    })
    .await;
    let gaps = rounds(gateway, "gap").await;

    // RabbitMQ takes the events of publishers that it does not block.
    tap.alarm();
    let (begun, mut seq) = (Instant::now(), 1);
    for replica in &replicas {
        replica.reports_broker("blocked").await;
    }
    let took = begun.elapsed();
    assert!(took < FOUND, "{took:?}");
    while begun.elapsed() < ALARM {
        seq += 1;
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(seq..=seq).await;
    }
    tap.recover();
    for replica in &replicas {
        replica.ready_within(RECOVERY).await;
    }
    // The numbers of the hints that were not published are used up, so they are a gap.
    eventually("the gateway finds a gap", PATIENCE, async || {
        let found = rounds(gateway, "gap").await;
        holds(found > gaps, found)
    })
    .await;
    assert!(gateway.metric("shopbell_hint_messages_missed_total").await > 0);
    let hints = gateway.metric("shopbell_hints_received_total").await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(seq + 1..=seq + 1).await;
    // Hints are published again.
    gateway
        .metric_reaches("shopbell_hints_received_total", hints + 1)
        .await;
    assert_eq!(rounds(gateway, "reconnect").await, 1);
    world.finish().await;
}

#[tokio::test]
async fn many_gateways_delay_no_replica_after_an_alarm() {
    /// Their heartbeats have an interval of ten seconds.
    const GATEWAYS: usize = 200;
    const DROPPED: u64 = 5;
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let replica = world.replica().with("AMQP_URL", tap.url(world.amqp_url()));
    let replica = replica.start().await;
    let broker = world.broker().await;
    let gateways = broker.consume(&world.name("gateways"), GATEWAYS).await;
    let copies = broker.copies_of(&world.name("fanout")).await;
    eventually("heartbeats are slow", PATIENCE, async || {
        let letters = broker.read(&copies).await;
        let last = letters.last();
        let last = last.and_then(|letter| letter.header("shopbell-announcement"));
        let last = last.unwrap_or_default();
        holds(last.contains(r#""every_ms":10050"#), last)
    })
    .await;
    tap.alarm();
    let begun = Instant::now();
    let publisher = world.publisher().await;
    // The first hint finds the alarm at once.
    publisher.publish(&Event::order(MERCHANT)).await;
    replica.reports_broker("blocked").await;
    let took = begun.elapsed();
    assert!(took < FOUND, "{took:?}");
    for _ in 0..DROPPED {
        publisher.publish(&Event::order(MERCHANT)).await;
    }
    replica
        .metric_reaches("shopbell_hints_refused_total", 1 + DROPPED)
        .await;
    tap.recover();
    replica.ready_within(RECOVERY).await;
    // RabbitMQ had got the first hint, and no other waited for the end of the alarm.
    let mut letters = broker.read(&copies).await;
    letters.retain(|letter| letter.text() != "[]");
    assert!(letters.len() <= 1, "{letters:?}");
    drop(gateways);
    world.finish().await;
}

#[tokio::test]
async fn a_replica_that_starts_in_an_alarm_serves() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let replica = world.replica().with("AMQP_URL", tap.url(world.amqp_url()));
    let replica = replica.start().await;
    replica.kill();
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 50)).await;

    tap.alarm();
    replica.launch();
    replica.reports_broker("blocked").await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=50).await;
    tap.recover();
    replica.ready_within(RECOVERY).await;
    world.finish().await;
}

//! Lean hints carry the numbers of a feed without frames. Only the gateways with a session of the feed
//! read the notifications.

use std::time::{Duration, Instant};

use crate::support::{
    Broker, Event, Letter, PATIENCE, Replica, Setup, Tap, World, eventually, holds,
};

const MERCHANT: &str = "merchant-42";
const ORDERS: u64 = 20;
/// Longer than any story. So only hints help.
const NEVER: u64 = 3_600;
/// Bytes of the hint of one order, without its frame.
const LEAN_BYTES_MAX: u64 = 100;
/// Rounds because of the processes that have just started. More changes than these can only be found by
/// hints.
const ROUNDS_MAX: u64 = 3;
/// Least time between two messages of lean hints of one part.
const INTERVAL: Duration = Duration::from_millis(10);
/// Events whose hints are not collected any longer.
const COLLECTED_MAX: u64 = 128;

async fn start(world: &World, role: &'static str, from: u64) -> Replica {
    setup(world, role, from).start().await
}

fn setup<'a>(world: &'a World, role: &'static str, from: u64) -> Setup<'a> {
    world
        .replica()
        .role(role)
        .with("SHOPBELL_SWEEP_SECONDS", NEVER)
        .with("SHOPBELL_LEAN_HINTS_FROM", from)
}

async fn pages(gateway: &Replica) -> u64 {
    gateway.metric("shopbell_pages_read_total").await
}

async fn rounds(gateway: &Replica) -> u64 {
    gateway.metric("shopbell_rounds_total").await
}

#[tokio::test]
async fn lean_hints_cost_a_gateway_without_the_feed_no_read() {
    let world = World::new().await;
    let ingest = start(&world, "ingest", 2).await;
    let (involved, other) = (
        start(&world, "gateway", 2).await,
        start(&world, "gateway", 2).await,
    );
    let mut merchant = world.merchant(MERCHANT).connect(involved.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let mut elsewhere = world.merchant("merchant-7").connect(other.public()).await;
    elsewhere.expect_caught_up("merchant-7").await;
    let publisher = world.publisher().await;
    // The first one comes with the count of the gateways.
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    let before = (pages(&involved).await, rounds(&involved).await);
    let others = pages(&other).await;
    let published = async || {
        (
            ingest.metric("shopbell_hints_published_total").await,
            ingest.metric("shopbell_hint_bytes_published_total").await,
        )
    };
    ingest
        .metric_reaches("shopbell_hints_published_total", 1)
        .await;
    let (hints, bytes) = published().await;

    for seq in 2..=ORDERS {
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(seq..=seq).await;
    }
    other
        .metric_reaches("shopbell_hints_received_total", ORDERS)
        .await;
    assert!(
        pages(&involved).await > before.0 + ROUNDS_MAX,
        "pages are read"
    );
    assert!(
        rounds(&involved).await <= before.1 + ROUNDS_MAX,
        "because of hints"
    );
    assert_eq!(pages(&other).await, others, "the other gateway reads none");
    let (more_hints, more_bytes) = published().await;
    let bytes = (more_bytes - bytes) / (more_hints - hints);
    assert!(bytes <= LEAN_BYTES_MAX, "{bytes} bytes of a hint");
    world.finish().await;
}

#[tokio::test]
async fn lean_hints_wake_sessions_for_marks() {
    let world = World::new().await;
    let _ingest = start(&world, "ingest", 2).await;
    let (here, there) = (
        start(&world, "gateway", 2).await,
        start(&world, "gateway", 2).await,
    );
    let publisher = world.publisher().await;
    publisher
        .publish_all(Event::orders(MERCHANT, ORDERS as usize))
        .await;
    world.expect_stored(MERCHANT, ORDERS).await;
    let connect = async |gateway: &Replica, device| {
        let device = world.merchant(MERCHANT).device(device);
        let mut session = device.connect(gateway.public()).await;
        session.expect_seqs(1..=ORDERS).await;
        session
    };
    let (mut desk, mut till) = (connect(&here, "desk").await, connect(&there, "till").await);
    let before = rounds(&there).await;
    for seq in 1..=ORDERS {
        desk.handle(MERCHANT, &[seq]).await;
        desk.next_state().await;
        assert_eq!(till.next_state().await.seqs, Some(vec![seq]));
    }
    assert!(
        rounds(&there).await <= before + ROUNDS_MAX,
        "hints woke the session"
    );
    world.finish().await;
}

/// The messages with hints among the copies of all messages.
async fn hint_messages(broker: &Broker, copies: &str) -> Vec<Letter> {
    let mut letters = broker.read(copies).await;
    letters.retain(|letter| {
        let numbers = letter.header("shopbell-announcement");
        numbers.is_some_and(|numbers| numbers.contains("hints"))
    });
    letters
}

#[tokio::test]
async fn lean_hints_of_many_batches_share_a_message() {
    const EVENTS: u64 = 300;
    let world = World::new().await;
    let ingest = start(&world, "ingest", 1).await;
    let gateway = start(&world, "gateway", 1).await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    let before = rounds(&gateway).await;
    let broker = world.broker().await;
    let copies = broker.copies_of(&world.name("fanout")).await;
    let batches = ingest.metric("shopbell_batch_events_count").await;

    let begun = Instant::now();
    for _ in 0..EVENTS {
        publisher.publish(&Event::order(MERCHANT)).await;
    }
    // No event follows the last one, whose hint was collected too.
    merchant.take_seqs(2..=1 + EVENTS).await;
    let intervals = begun.elapsed().div_duration_f64(INTERVAL) as u64;
    let batches = ingest.metric("shopbell_batch_events_count").await - batches;
    let messages = hint_messages(&broker, &copies).await.len() as u64;
    assert!(
        messages <= intervals + EVENTS / COLLECTED_MAX + 1,
        "{messages} messages in {intervals} intervals, of {batches} batches"
    );
    assert!(
        rounds(&gateway).await <= before + ROUNDS_MAX,
        "hints woke the session"
    );
    world.finish().await;
}

#[tokio::test]
async fn lean_hints_of_many_marks_share_a_message() {
    let world = World::new().await;
    let _ingest = start(&world, "ingest", 1).await;
    let (here, there) = (
        start(&world, "gateway", 1).await,
        start(&world, "gateway", 1).await,
    );
    let publisher = world.publisher().await;
    let orders = Event::orders(MERCHANT, ORDERS as usize);
    publisher.publish_all(orders).await;
    let connect = async |gateway: &Replica, device| {
        let device = world.merchant(MERCHANT).device(device);
        let mut session = device.connect(gateway.public()).await;
        session.expect_seqs(1..=ORDERS).await;
        session
    };
    let (mut desk, mut till) = (connect(&here, "desk").await, connect(&there, "till").await);
    let broker = world.broker().await;
    let copies = broker.copies_of(&world.name("fanout")).await;

    let begun = Instant::now();
    for seq in 1..=ORDERS {
        desk.handle(MERCHANT, &[seq]).await;
        // The session here waits for nothing.
        desk.next_state().await;
    }
    let intervals = begun.elapsed().div_duration_f64(INTERVAL) as usize;
    // The gateway leaves with a mark whose hint waits.
    assert!(here.terminate().await.success());
    let mut messages = hint_messages(&broker, &copies).await;
    assert!(
        messages.len() <= intervals + 2,
        "{} messages in {intervals} intervals",
        messages.len()
    );
    let last = messages.pop().map(|letter| letter.text());
    let version = format!(r#""version":{ORDERS}}}"#);
    assert!(
        last.as_ref().is_some_and(|last| last.contains(&version)),
        "{last:?}"
    );
    for seq in 1..=ORDERS {
        assert_eq!(till.next_state().await.seqs, Some(vec![seq]));
    }
    here.restart().await;
    world.finish().await;
}

#[tokio::test]
async fn a_kill_before_lean_hints_are_published_hides_no_notification() {
    const ANOTHER: &str = "merchant-7";
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let ingest = setup(&world, "ingest", 1);
    let ingest = ingest.with("AMQP_URL", tap.url(world.amqp_url())).start();
    let ingest = ingest.await;
    let gateway = start(&world, "gateway", 1).await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let mut another = world.merchant(ANOTHER).connect(gateway.public()).await;
    another.expect_caught_up(ANOTHER).await;
    let broker = world.broker().await;
    let copies = broker.copies_of(&world.name("fanout")).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    let process = eventually("the first hint is published", PATIENCE, async || {
        let messages = hint_messages(&broker, &copies).await;
        let process = messages.first().and_then(|letter| letter.app_id.clone());
        process.ok_or("none".to_owned())
    })
    .await;
    // Another replica stands by, and is heard.
    let heard = async || {
        let label = r#"evidence="new_stream""#;
        gateway.metric_where("shopbell_rounds_total", label).await
    };
    let first = heard().await;
    let _standby = start(&world, "ingest", 1).await;
    eventually("the other replica is heard", PATIENCE, async || {
        let rounds = heard().await;
        holds(rounds > first, rounds)
    })
    .await;
    let before = rounds(&gateway).await;

    tap.hold_publishes();
    publisher.publish(&Event::order(ANOTHER)).await;
    world.stored_reaches(2, PATIENCE).await;
    ingest.kill();
    // The gateway finds no silence for a minute.
    let beat = r#"{"heartbeat":{"every_ms":20000,"numbers":[]}}"#;
    let exchange = world.name("fanout");
    broker.announce_as(&process, &exchange, beat).await;
    another.take_seqs(1..=1).await;
    assert_eq!(rounds(&gateway).await, before, "a hint woke the session");
    tap.recover();
    ingest.restart().await;
    world.finish().await;
}

#[tokio::test]
async fn a_replica_that_stops_publishes_the_lean_hints_that_wait() {
    const EVENTS: u64 = 200;
    let world = World::new().await;
    let ingest = start(&world, "ingest", 1).await;
    let gateway = start(&world, "gateway", 1).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    world.expect_stored(MERCHANT, 1).await;
    let broker = world.broker().await;
    let copies = broker.copies_of(&world.name("fanout")).await;
    // One by one, so that batches are small and follow each other fast.
    let publish = async {
        for _ in 0..EVENTS {
            publisher.publish(&Event::order(MERCHANT)).await;
        }
    };
    tokio::join!(publish, async {
        world.stored_reaches(EVENTS / 2, PATIENCE).await;
        assert!(ingest.terminate().await.success());
    });
    let stored = world.last_seq().await;
    let last = hint_messages(&broker, &copies).await.pop();
    let last = last.map(|letter| letter.text());
    assert!(
        last.as_ref()
            .is_some_and(|last| last.contains(&format!(r#""seq":{stored}}}"#))),
        "{last:?} of {stored} notifications"
    );
    ingest.restart().await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.take_seqs(1..=1 + EVENTS).await;
    let duplicates = ingest.metric("shopbell_events_duplicate_total").await;
    assert_eq!(duplicates, 0, "each delivery was acknowledged");
    world.finish().await;
}

#[tokio::test]
async fn hints_are_whole_below_the_bound() {
    let world = World::new().await;
    let ingest = start(&world, "ingest", 2).await;
    let gateway = start(&world, "gateway", 2).await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    merchant.expect_caught_up(MERCHANT).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;
    let before = pages(&gateway).await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(2..=2).await;
    assert_eq!(pages(&gateway).await, before);
    let bytes = ingest.metric("shopbell_hint_bytes_published_total").await;
    assert!(bytes > 2 * LEAN_BYTES_MAX, "{bytes} bytes of two hints");
    world.finish().await;
}

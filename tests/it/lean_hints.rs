//! Lean hints carry the numbers of a feed without frames. Only the gateways with a session of the feed
//! read the notifications.

use crate::support::{Event, Replica, World};

const MERCHANT: &str = "merchant-42";
const ORDERS: u64 = 20;
/// Longer than any story. So only hints help.
const NEVER: u64 = 3_600;
/// Bytes of the hint of one order, without its frame.
const LEAN_BYTES_MAX: u64 = 100;
/// Rounds because of the processes that have just started. More changes than these can only be found by
/// hints.
const ROUNDS_MAX: u64 = 3;

async fn start(world: &World, role: &'static str, from: u64) -> Replica {
    world
        .replica()
        .role(role)
        .with("SHOPBELL_SWEEP_SECONDS", NEVER)
        .with("SHOPBELL_LEAN_HINTS_FROM", from)
        .start()
        .await
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

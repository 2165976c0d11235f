//! A slow client delays no other client, and its memory is bounded.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Event, PATIENCE, Proxy, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// A large order with all its lines.
const EVENT_BYTES: usize = 16 * 1024;

#[tokio::test]
async fn a_client_that_never_acknowledges_gets_one_window_and_no_more() {
    let world = World::new().await;
    let replica = world.replica().with("SHOPBELL_WINDOW", 10).start().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 25)).await;
    world.expect_stored(MERCHANT, 25).await;

    // If more than the window of 10 were outstanding, the story would end at one of these frames.
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=10).await;
    merchant.ping().await;
    assert_eq!(
        (merchant.through(MERCHANT), merchant.outstanding()),
        (10, 10)
    );

    merchant.ack(MERCHANT, 4).await;
    merchant.expect_seqs(11..=14).await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    world.expect_stored(MERCHANT, 30).await;
    merchant.ping().await;
    assert_eq!(
        merchant.through(MERCHANT),
        14,
        "live notifications wait for the window too"
    );

    merchant.ack(MERCHANT, 14).await;
    merchant.take_seqs(15..=30).await;
    merchant.expect_caught_up(MERCHANT).await;
    world.finish().await;
}

#[tokio::test]
async fn the_window_is_one_for_all_feeds_of_a_session() {
    let world = World::new().await;
    let replica = world.replica().with("SHOPBELL_WINDOW", 6).start().await;
    let publisher = world.publisher().await;
    for feed in ["merchant-1", "merchant-2"] {
        publisher.publish_all(Event::orders(feed, 10)).await;
        world.expect_stored(feed, 10).await;
    }
    let token = world
        .token("accountant")
        .feeds(["merchant-1", "merchant-2"])
        .sign();
    let mut accountant = world
        .merchant("accountant")
        .token(token)
        .connect(replica.public())
        .await;
    for _ in 0..20 {
        let notification = accountant.next_notification().await;
        if accountant.outstanding() == 6 {
            accountant.ping().await;
            let (one, two) = (
                accountant.through("merchant-1"),
                accountant.through("merchant-2"),
            );
            accountant.ack("merchant-1", one).await;
            accountant.ack("merchant-2", two).await;
        }
        assert!(notification.feed.starts_with("merchant-"));
    }
    assert_eq!(
        (
            accountant.through("merchant-1"),
            accountant.through("merchant-2")
        ),
        (10, 10)
    );
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_use_bounded_memory_and_delay_no_other_client() {
    const BUSY: &str = "busy";
    const ROUNDS: usize = 30;
    const EVENTS_PER_ROUND: usize = 150;
    /// A third of the bytes for each slow client. If a part kept them, its memory would show it.
    const GROWTH_BYTES_MAX: u64 = (ROUNDS * EVENTS_PER_ROUND * EVENT_BYTES / 3) as u64;
    /// From the publish of a live event to its arrival, with a round of large ones before it in the
    /// queue.
    const LIVE_BOUND: Duration = Duration::from_secs(5);

    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut deaf = Vec::new();
    for number in 0..20 {
        let name = format!("slow-{number}");
        let token = world.token(&name).feeds([BUSY]).sign();
        deaf.push(
            world
                .merchant(&name)
                .token(token)
                .connect(replica.public())
                .await,
        );
    }
    // Each reads on a task of its own, and never acknowledges, so it gets one window.
    let window = deaf[0].welcome().window;
    let mute: Vec<_> = deaf.drain(..10).collect();
    let mute = mute.into_iter().map(|mut merchant| {
        tokio::spawn(async move {
            while merchant.outstanding() < window {
                merchant.next_notification().await;
            }
            merchant
        })
    });
    let mute: Vec<_> = mute.collect();
    let mut lively = world.merchant(MERCHANT).connect(replica.public()).await;

    let data = format!(r#"{{"lines":"{}"}}"#, "x".repeat(EVENT_BYTES));
    let mut settled_bytes = 0;
    for round in 1..=ROUNDS {
        let busy: Vec<_> = (0..EVENTS_PER_ROUND)
            .map(|_| Event::new("order.large", BUSY, &data))
            .collect();
        publisher.publish_all(&busy).await;
        let published = Instant::now();
        publisher.publish(&Event::order(MERCHANT)).await;
        let seq = round as u64;
        lively.take_seqs(seq..=seq).await;
        let took = published.elapsed();
        assert!(
            took < LIVE_BOUND,
            "a live notification took {took:?} in round {round}"
        );
        if round == 5 {
            settled_bytes = replica.rss_bytes();
        }
    }
    let growth_bytes = replica.rss_bytes().saturating_sub(settled_bytes);
    assert!(
        growth_bytes < GROWTH_BYTES_MAX,
        "grew by {growth_bytes} bytes, may grow by {GROWTH_BYTES_MAX}"
    );

    for mute in mute {
        let mut merchant = mute.await.expect("a client that reads receives one window");
        merchant.ping().await;
        assert_eq!(merchant.through(BUSY), window as u64);
    }
    drop(deaf);
    world.finish().await;
}

#[tokio::test]
async fn a_silent_client_is_closed_with_4408() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_HEARTBEAT_SECONDS", 1)
        .start()
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    // Nothing polls its socket, so it answers no ping.
    let deaf = world.merchant(MERCHANT).connect(replica.public()).await;
    let mut alive = world
        .merchant("merchant-43")
        .connect(replica.public())
        .await;
    eventually("the silent session is gone", PATIENCE, async || {
        alive.next_heartbeat().await;
        let sessions = replica.metric("shopbell_sessions").await;
        holds(sessions == 1, sessions)
    })
    .await;

    let closed = deaf.unread_close().await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4408, Some("silent"))
    );
    alive.ping().await;
    world.finish().await;
}

#[tokio::test]
async fn a_client_that_sends_but_never_reads_is_closed() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_HEARTBEAT_SECONDS", 1)
        .start()
        .await;
    let network = Proxy::before(&replica.public().to_string()).await;
    let mut merchant = world.merchant(MERCHANT).connect(network.address()).await;

    // More than the sockets between them hold, within one window.
    network.stall_downstream();
    let data = format!(r#"{{"lines":"{}"}}"#, "x".repeat(60 * 1024));
    let large: Vec<_> = (0..250)
        .map(|_| Event::new("order.large", MERCHANT, &data))
        .collect();
    world.publisher().await.publish_all(&large).await;
    eventually(
        "the session that does not read is gone",
        PATIENCE,
        async || {
            merchant.send_text(r#"{"type":"ping"}"#).await;
            let sessions = replica.metric("shopbell_sessions").await;
            holds(sessions == 0, sessions)
        },
    )
    .await;
    world.finish().await;
}

#[tokio::test]
async fn a_slow_line_gets_everything_in_its_own_time() {
    let world = World::new().await;
    let replica = world.serve().await;
    let network = Proxy::before(&replica.public().to_string()).await;
    network.slow_downstream(1_000_000);
    let data = format!(r#"{{"lines":"{}"}}"#, "x".repeat(EVENT_BYTES));
    let large: Vec<_> = (0..300)
        .map(|_| Event::new("order.large", MERCHANT, &data))
        .collect();
    world.publisher().await.publish_all(&large).await;
    let mut merchant = world.merchant(MERCHANT).connect(network.address()).await;
    merchant.take_seqs(1..=300).await;
    world.finish().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_history_responses_is_closed() {
    /// Older than the age limit of connections without a session, plus the time for a last reply.
    const BOUND: Duration = Duration::from_secs(60);
    let world = World::new().await;
    let replica = world.serve().await;
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(EVENT_BYTES));
    world
        .publisher()
        .await
        .publish_all((0..16).map(|_| Event::new("custom.thing", MERCHANT, &large)))
        .await;
    world.expect_stored(MERCHANT, 16).await;

    let mut stream = TcpStream::connect(replica.public())
        .await
        .expect("a connection");
    let token = world.token(MERCHANT).sign();
    let request = format!(
        "GET /v1/feeds/{MERCHANT}/notifications HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    // Far more replies than all buffers on the way hold.
    let asked = tokio::time::timeout(BOUND, async {
        for _ in 0..200 {
            stream.write_all(request.as_bytes()).await?;
        }
        std::io::Result::Ok(())
    });
    asked.await.expect("the requests fit into the buffers").ok();
    eventually(
        "the replica ends the connection",
        BOUND,
        async || match stream.write_all(b"GET").await {
            Ok(()) => Err("it still accepts requests".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await;
    world.finish().await;
}

/// Orders of one busy merchant, with 60 KiB of data each.
fn large_orders(count: u64) -> Vec<Event> {
    let data = format!(r#"{{"lines":"{}"}}"#, "x".repeat(60 * 1024));
    (0..count)
        .map(|_| Event::new("order.large", "busy", &data))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_that_replay_at_once_share_a_budget_of_memory() {
    const SLOW: u64 = 150;
    const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;
    /// The budget, and buffers of results of Postgres. Without a budget, the pages of all slow clients
    /// are 40 MiB.
    const GROWTH_BYTES_MAX: u64 = 6 * PAGE_BYTES_MAX;
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_PAGE_BYTES", PAGE_BYTES_MAX)
        .start()
        .await;
    let large = large_orders(SLOW + 100);
    let publisher = world.publisher().await;
    publisher.publish_all(&large).await;
    world.expect_stored("busy", SLOW + 100).await;
    let mut lively = world.merchant(MERCHANT).connect(replica.public()).await;

    let before = replica.rss_bytes();
    let mut deaf = Vec::new();
    // Each begins at another number, so no two of them share a page.
    for number in 0..SLOW {
        let name = format!("slow-{number}");
        let token = world.token(&name).feeds(["busy"]).sign();
        let slow = world.merchant(&name).token(token).after("busy", number);
        deaf.push(slow.connect(replica.public()).await);
    }
    let mut most = 0;
    eventually("the first slow session is closed", PATIENCE, async || {
        most = most.max(replica.rss_bytes());
        let sessions = replica.metric("shopbell_sessions").await;
        holds(sessions <= SLOW, sessions)
    })
    .await;
    let growth = most.saturating_sub(before);
    assert!(
        growth < GROWTH_BYTES_MAX,
        "grew by {growth} bytes, may grow by {GROWTH_BYTES_MAX}"
    );
    publisher.publish(&Event::order(MERCHANT)).await;
    lively.take_seqs(1..=1).await;
    drop(deaf);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_do_not_stop_the_replays_of_others() {
    /// The pages of so many would be 7 MiB.
    const SLOW: u64 = 24;
    const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;
    const EVENTS: u64 = 300;
    /// Less than the time for which a slow client may hold its page.
    const BOUND: Duration = Duration::from_secs(8);
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_PAGE_BYTES", PAGE_BYTES_MAX)
        .start()
        .await;
    let large = large_orders(EVENTS);
    let publisher = world.publisher().await;
    publisher.publish_all(&large).await;
    publisher.publish_all(Event::orders(MERCHANT, 100)).await;
    world.expect_stored("busy", EVENTS).await;
    world.expect_stored(MERCHANT, 100).await;

    let mut deaf = Vec::new();
    // Each begins at another number, so no two of them share a page.
    for number in 0..SLOW {
        let name = format!("slow-{number}");
        let token = world.token(&name).feeds(["busy"]).sign();
        let slow = world.merchant(&name).token(token).after("busy", number);
        deaf.push(slow.connect(replica.public()).await);
    }
    let (mut before, mut polls) = (0, 0);
    eventually("the slow clients hold pages", PATIENCE, async || {
        let pages = replica.metric("shopbell_pages_read_total").await;
        let bytes = replica.metric("shopbell_page_bytes").await;
        polls = if before == pages { polls + 1 } else { 0 };
        before = pages;
        let is_stuck = bytes > PAGE_BYTES_MAX / 3 && polls > 10;
        holds(is_stuck, format!("{pages} pages, {bytes} bytes"))
    })
    .await;
    let mut lively = world.merchant(MERCHANT).connect(replica.public()).await;
    let begun = Instant::now();
    lively.take_seqs(1..=100).await;
    let took = begun.elapsed();
    assert!(took < BOUND, "the replay took {took:?}");
    lively.expect_caught_up(MERCHANT).await;
    drop(deaf);
    world.finish().await;
}

//! A session uses no more memory after traffic than before.

use futures_util::future::join_all;

use crate::support::{Event, PATIENCE, World, eventually, holds};

const SESSIONS: u64 = 400;
/// One broadcast of the largest size that is always allowed.
const EVENT_BYTES: usize = 64_000;
/// Half of the size of one copy of the event for each session.
const GROWTH_BYTES_MAX: u64 = SESSIONS * EVENT_BYTES as u64 / 4;

#[tokio::test]
async fn a_large_broadcast_leaves_no_memory_with_its_sessions() {
    let world = World::new().await;
    let replica = world.serve().await;
    // The first event opens the connection for hints. Its buffers do not count as memory of a
    // session.
    world
        .publisher()
        .await
        .publish(&Event::order("merchant-0"))
        .await;
    let mut first = world
        .merchant("merchant-0")
        .device("first")
        .after("merchant-0", 0)
        .connect(replica.public())
        .await;
    first.take_seqs(1..=1).await;
    let mut merchants = Vec::new();
    for number in 0..SESSIONS {
        merchants.push(
            world
                .merchant(&format!("merchant-{number}"))
                .connect(replica.public())
                .await,
        );
    }
    let idle = replica.rss_bytes();
    let text = "x".repeat(EVENT_BYTES);
    let notice = Event::new(
        "notice.maintenance",
        "all",
        &format!(r#"{{"text":"{text}"}}"#),
    );
    world.publisher().await.publish(&notice).await;
    for merchant in &mut merchants {
        merchant.next_notification().await;
        merchant.ack("all", 1).await;
        merchant.ping().await;
    }
    eventually(
        "the memory of the broadcast is released",
        PATIENCE,
        async || {
            let grown = replica.rss_bytes().saturating_sub(idle);
            holds(grown < GROWTH_BYTES_MAX, grown)
        },
    )
    .await;
    world.finish().await;
}

#[tokio::test]
async fn large_frames_of_clients_leave_no_memory_with_their_sessions() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_FRAME_BYTES", 100_000)
        .start()
        .await;
    let mut merchants = Vec::new();
    for number in 0..SESSIONS {
        merchants.push(
            world
                .merchant(&format!("merchant-{number}"))
                .connect(replica.public())
                .await,
        );
    }
    let idle = replica.rss_bytes();
    let frame = format!(r#"{{"type":"ping","pad":"{}"}}"#, "x".repeat(EVENT_BYTES));
    for merchant in &mut merchants {
        merchant.send_text(&frame).await;
        merchant.ping().await;
    }
    eventually(
        "the memory of the frames is released",
        PATIENCE,
        async || {
            let grown = replica.rss_bytes().saturating_sub(idle);
            holds(grown < GROWTH_BYTES_MAX, grown)
        },
    )
    .await;
    world.finish().await;
}

/// Windows of small notifications, written directly because a publisher would take longer.
const STORE_WINDOWS: &str = "
    insert into notifications (feed, seq, identity, source, event_id, event_type, time, data)
        select 'merchant-' || m, s, event_identity('merchant-' || m, '/s', m || '-' || s), '/s', m || '-' || s, 't', now(),
               '{\"text\":\"' || repeat('x', 250) || '\"}'
        from generate_series(0, 300) m, generate_series(1, 256) s;
    insert into feeds (feed, last_seq, unread, unhandled)
        select 'merchant-' || m, 256, 256, 256 from generate_series(0, 300) m";

/// A burst leaves small values all over the heap. The allocator must return the pages between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_replays_gives_its_memory_back() {
    const MERCHANTS: u64 = 300;
    const WINDOW: u64 = 256;
    /// A fraction of the bytes that the sessions get.
    const GROWTH_BYTES_MAX: u64 = MERCHANTS * WINDOW * 400 / 6;
    let world = World::new().await;
    world.change_database(STORE_WINDOWS).await;
    let replica = world.serve().await;
    let replay = async |number: u64| {
        let name = format!("merchant-{number}");
        let mut merchant = world.merchant(&name).connect(replica.public()).await;
        merchant.take_seqs(1..=WINDOW).await;
        merchant
    };
    replay(0).await.leave().await;
    let before = replica.rss_bytes();
    let merchants = join_all((1..=MERCHANTS).map(replay)).await;
    let most = replica.rss_bytes();
    join_all(merchants.into_iter().map(|merchant| merchant.leave())).await;
    eventually(
        "the memory of the burst is released",
        PATIENCE,
        async || {
            let now = replica.rss_bytes();
            let is_released = now.saturating_sub(before) < GROWTH_BYTES_MAX;
            holds(is_released, format!("{before}, {most}, now {now} bytes"))
        },
    )
    .await;
    world.finish().await;
}

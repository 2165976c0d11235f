//! A session uses no more memory after traffic than before.

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

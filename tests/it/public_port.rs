//! Connections without a session: their number, memory and idle time have bounds of their own.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{PATIENCE, World, eventually, holds, http};

const MERCHANT: &str = "merchant-42";
/// More than the bound of 2,048.
const HALF_SENT: usize = 4_000;
/// The bound, with the buffers of a debug build. It is less than [`HALF_SENT`] requests would use.
const GROWTH_BYTES_MAX: u64 = 96 * 1024 * 1024;

#[tokio::test]
async fn half_sent_requests_do_not_block_other_clients() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut session = world.merchant(MERCHANT).connect(replica.public()).await;
    let idle = replica.rss_bytes();
    let half = format!(
        "GET /v1/ws HTTP/1.1\r\nHost: shop\r\nX-Padding: {}",
        "x".repeat(14 * 1024)
    );
    let mut sending = JoinSet::new();
    for _ in 0..HALF_SENT {
        let (half, address) = (half.clone(), replica.public());
        sending.spawn(async move {
            let mut stream = TcpStream::connect(address)
                .await
                .expect("the replica listens");
            // The replica may end the connection during the write.
            stream.write_all(half.as_bytes()).await.ok();
            stream
        });
    }
    let half_sent = sending.join_all().await;
    let (open, max) = (
        replica.metric("shopbell_connections").await,
        replica.metric("shopbell_connections_max").await,
    );
    assert!((1..=max).contains(&open), "{open} of {max} connections");
    let grown = replica.rss_bytes().saturating_sub(idle);
    assert!(
        grown < GROWTH_BYTES_MAX,
        "{grown} bytes for {HALF_SENT} half-sent requests"
    );

    // They are replaced faster than they time out.
    for _ in 0..5 {
        world
            .merchant("merchant-43")
            .connect(replica.public())
            .await
            .leave()
            .await;
    }
    session.ping().await;
    assert!(
        replica
            .metric_where("shopbell_connections_dropped_total", "crowded")
            .await
            > 0
    );
    drop(half_sent);
    eventually("the places are free again", PATIENCE, async || {
        let open = replica.metric("shopbell_connections").await;
        holds(open == 0, open)
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn the_operations_port_keeps_64_connections() {
    let world = World::new().await;
    let replica = world.serve().await;
    let request = "GET /livez HTTP/1.1\r\nHost: shop\r\n\r\n";
    let mut kept = Vec::new();
    for _ in 0..66 {
        let stream = TcpStream::connect(replica.operations()).await;
        let mut stream = stream.expect("the replica listens");
        let reply = http::exchange(&mut stream, request).await;
        assert_eq!(reply.expect("an answer").status, 200);
        kept.push(stream);
    }
    // Only the two that have been idle for longest made room.
    for stream in &mut kept[..2] {
        let ended = timeout(PATIENCE, stream.read_u8()).await;
        let ended = ended.expect("it ends in time").expect_err("nothing comes");
        assert_eq!(ended.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    for stream in &mut kept[2..] {
        let reply = http::exchange(stream, request).await;
        assert_eq!(reply.expect("it was kept").status, 200);
    }
    drop(kept);
    world.finish().await;
}

#[tokio::test]
async fn an_idle_connection_outlives_a_half_sent_request() {
    let world = World::new().await;
    let replica = world.serve().await;
    let authorization = format!("Authorization: Bearer {}\r\n", world.token(MERCHANT).sign());
    let whole = format!(
        "GET /v1/feeds/{MERCHANT}/notifications HTTP/1.1\r\nHost: shop\r\n{authorization}\r\n"
    );
    let mut kept = TcpStream::connect(replica.public())
        .await
        .expect("the replica listens");
    assert_eq!(
        http::exchange(&mut kept, &whole)
            .await
            .expect("an answer")
            .status,
        200
    );

    // The second half of a request never arrives. The first may arrive on a connection that was
    // used before.
    let mut used = TcpStream::connect(replica.public())
        .await
        .expect("the replica listens");
    assert_eq!(
        http::exchange(&mut used, &whole)
            .await
            .expect("an answer")
            .status,
        200
    );
    used.write_all(b"GET /v1/ws HTTP/1.1\r\nHost")
        .await
        .expect("it is open");
    timeout(PATIENCE, used.read_to_end(&mut Vec::new()))
        .await
        .expect("a half-sent request is closed")
        .ok();

    assert_eq!(
        http::exchange(&mut kept, &whole)
            .await
            .expect("it was kept")
            .status,
        200
    );
    let ended = timeout(Duration::from_millis(100), kept.read_u8()).await;
    assert!(
        ended.is_err(),
        "still open, and nothing was sent: {ended:?}"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_response_that_is_not_read_releases_its_connection() {
    let world = World::new().await;
    let replica = world.serve().await;
    let authorization = format!("Authorization: Bearer {}\r\n", world.token(MERCHANT).sign());
    let whole = format!(
        "GET /v1/feeds/{MERCHANT}/notifications HTTP/1.1\r\nHost: shop\r\n{authorization}\r\n"
    );
    let mut deaf = TcpStream::connect(replica.public())
        .await
        .expect("the replica listens");
    // Until neither the replica nor the kernel accepts more.
    let many = whole.repeat(1_000);
    while timeout(Duration::from_secs(1), deaf.write_all(many.as_bytes()))
        .await
        .is_ok_and(|written| written.is_ok())
    {}
    eventually("the connection is dropped", PATIENCE, async || {
        let dropped = replica
            .metric_where("shopbell_connections_dropped_total", "stalled")
            .await;
        holds(dropped == 1, dropped)
    })
    .await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_return_all_at_once_are_all_accepted() {
    const CLIENTS: usize = 2_500;
    let world = World::new().await;
    let replica = world.serve().await;
    let mut coming = JoinSet::new();
    for number in 0..CLIENTS {
        let (merchant, address) = (
            world.merchant(&format!("merchant-{number}")),
            replica.public(),
        );
        coming.spawn(async move { merchant.connect_raw(address).await });
    }
    let sessions = coming.join_all().await;
    replica
        .metric_reaches("shopbell_sessions", CLIENTS as u64)
        .await;
    assert_eq!(
        replica.metric("shopbell_connections_dropped_total").await,
        0
    );
    drop(sessions);
    world.finish().await;
}

//! Sessions over plain HTTP: the stories of the WebSocket, for clients whose WebSockets do not get through.

use serde_json::{Value, json};

use crate::support::{Event, PATIENCE, Proxy, StreamClient, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// The stream of the merchant's own feed.
const STREAM: &str = "/v1/feeds/merchant-42/stream";

#[tokio::test]
async fn a_stream_receives_acks_and_replays() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let data = "{\"note\" :\r\n\n \"two\\nlines\"}";
    publisher
        .publish(&Event::new("custom.thing", MERCHANT, data))
        .await;
    world.expect_stored(MERCHANT, 1).await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));

    for version in ["1.1", "1.0"] {
        let mut stream = client.open_with(STREAM, version).await;
        let header = |name| stream.head.header(name).unwrap_or_default().to_owned();
        assert_eq!(stream.head.status, 200, "{:?}", stream.head);
        assert_eq!(
            [
                "content-type",
                "cache-control",
                "x-accel-buffering",
                "content-encoding"
            ]
            .map(header),
            ["text/event-stream", "no-store", "no", ""]
        );
        let welcome = stream.next().await.expect("a welcome").frame;
        assert_eq!(
            (welcome["type"].as_str(), &welcome["feeds"][0]["feed"]),
            (Some("welcome"), &json!(MERCHANT))
        );
        assert_eq!(welcome["feeds"].as_array().map(Vec::len), Some(1));
        let first = stream.next_of("notification").await;
        assert_eq!(
            (first.seq(), &first.frame["data"]),
            (1, &json!({"note": "two\nlines"}))
        );
        assert!(first.id.is_some_and(|id| id.starts_with("1:")));
        stream.next_of("caught_up").await;
    }
    let mut stream = client.open("/v1/stream").await;
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    stream.take_seqs(1..=4).await;
    client.ack(MERCHANT, 3).await;
    world.expect_cursor(MERCHANT, "", 3).await;
    replica
        .metric_is("shopbell_http_sessions", "transport=\"stream\"", 1)
        .await;
    let connections = replica.metric("shopbell_connections").await;
    assert_eq!(
        (connections, replica.metric("shopbell_sessions").await),
        (0, 1)
    );
    drop(stream);
    replica
        .metric_is("shopbell_sessions_closed_total", "gone", 3)
        .await;

    let mut stream = client.open("/v1/stream?device=").await;
    stream.take_seqs(4..=4).await;
    world.finish().await;
}

#[tokio::test]
async fn a_last_event_id_resumes_and_acks_nothing() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    world.expect_stored(MERCHANT, 5).await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let with_id = |id: &str| client.clone().header("Last-Event-ID", id);
    let mut stream = client.open(STREAM).await;
    stream.take_seqs(1..=2).await;
    let id = stream.next_of("notification").await.id.expect("an id");
    let mut of_all = client.open("/v1/stream").await;
    of_all.take_seqs(1..=2).await;
    let id_of_all = of_all.next_of("notification").await.id.expect("an id");

    with_id(&id).open(STREAM).await.take_seqs(4..=5).await;
    with_id("3").open(STREAM).await.take_seqs(4..=5).await;
    with_id(&id_of_all)
        .open("/v1/stream?after=merchant-42:1")
        .await
        .take_seqs(4..=5)
        .await;
    with_id("3:e0").open(STREAM).await.take_seqs(1..=5).await;
    client.open(STREAM).await.take_seqs(1..=5).await;
    with_id("three").get(STREAM).await.expect_problem(400);
    world.finish().await;
}

#[tokio::test]
async fn an_ack_at_another_replica_makes_room_in_the_window() {
    let world = World::new().await;
    let one = world.replica().with("SHOPBELL_WINDOW", 10).start().await;
    let other = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 25)).await;
    world.expect_stored(MERCHANT, 25).await;
    let token = world.token(MERCHANT);
    let elsewhere = StreamClient::new(other.public(), &token);
    let mut stream = StreamClient::new(one.public(), &token).open(STREAM).await;
    stream.take_seqs(1..=10).await;
    eventually("the window is full", PATIENCE, async || {
        let behind = one.metric("shopbell_sessions_behind").await;
        holds(behind == 1, behind)
    })
    .await;

    elsewhere.ack(MERCHANT, 8).await;
    // A notification beyond the window would be the next one.
    stream.take_seqs(11..=18).await;
    elsewhere.ack(MERCHANT, 18).await;
    stream.take_seqs(19..=25).await;
    stream.next_of("caught_up").await;
    elsewhere.ack(MERCHANT, 25).await;
    // At the other replica, too, nothing that was acked is replayed.
    let frames = StreamClient::new(one.public(), &token)
        .poll("/v1/stream?wait=0")
        .await;
    let is_notification = |frame: &Value| frame["type"] == "notification";
    assert!(!frames.iter().any(is_notification), "{frames:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_stream_never_has_more_than_a_window_without_acks() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_WINDOW", 10)
        .with("SHOPBELL_HEARTBEAT_SECONDS", 1)
        .start()
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 25))
        .await;
    world.expect_stored(MERCHANT, 25).await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let mut stream = client.open(STREAM).await;
    stream.take_seqs(1..=10).await;
    for _ in 0..2 {
        let next = stream.next().await.expect("an event");
        assert_eq!(
            (next.kind(), &next.frame["sent"][MERCHANT]),
            ("heartbeat", &json!(10))
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn orders_arrive_in_order_although_the_connection_is_cut() {
    const ORDERS: u64 = 1_500;
    let world = World::new().await;
    let replica = world.replica().with("SHOPBELL_WINDOW", 50).start().await;
    let proxy = Proxy::before(&replica.public().to_string()).await;
    let publisher = world.publisher().await;
    let orders = Event::orders(MERCHANT, ORDERS as usize);
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let by_proxy = StreamClient::new(proxy.address(), &world.token(MERCHANT));
    let receiving = async {
        let (mut received, mut connections) = (0, 0);
        while received < ORDERS {
            let mut stream = by_proxy.open(STREAM).await;
            connections += 1;
            let mut acked = received / 20 * 20;
            while let Some(event) = stream.next().await {
                if event.kind() != "notification" {
                    continue;
                }
                assert!(
                    event.seq() <= received + 1,
                    "{} after {received}",
                    event.seq()
                );
                assert!(event.seq() > acked, "{} was acked", event.seq());
                received = received.max(event.seq());
                if received >= acked + 20 {
                    client.ack(MERCHANT, received).await;
                    acked = received;
                }
                if received == ORDERS {
                    break;
                }
                if received % 300 == 100 && event.seq() == received {
                    proxy.cut();
                    proxy.mend();
                }
            }
        }
        connections
    };
    let (connections, ()) = tokio::join!(receiving, async { publisher.publish_all(&orders).await });
    assert!(connections >= 5, "{connections} connections");
    world.finish().await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world.token(MERCHANT).expires_in_seconds(1);
    let stream = StreamClient::new(replica.public(), &token)
        .open(STREAM)
        .await;
    let close = stream.closed().await.frame;
    assert_eq!(
        (&close["code"], &close["reason"]["code"]),
        (&json!(4401), &json!("token_expired"))
    );
    world.finish().await;
}

#[tokio::test]
async fn a_leaving_replica_ends_its_streams_with_a_wait() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_DRAIN_SECONDS", 1)
        .start()
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 4))
        .await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let mut stream = client.open(STREAM).await;
    stream.take_seqs(1..=4).await;
    client.ack(MERCHANT, 3).await;
    replica.ask_to_leave();
    let goaway = stream.next_of("goaway").await.frame;
    let close = stream.closed().await;
    assert_eq!(
        (&close.frame["code"], close.retry),
        (&json!(1012), goaway["retry_after_ms"].as_u64())
    );
    assert!(replica.ended().await.success());
    replica.restart().await;
    client.open(STREAM).await.take_seqs(4..=4).await;
    world.finish().await;
}

#[tokio::test]
async fn streams_count_as_sessions_of_their_subscriber() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER", 2)
        .start()
        .await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let streams = [client.open(STREAM).await, client.open("/v1/stream").await];
    client.get("/v1/stream").await.expect_problem(429);
    client.get("/v1/stream?wait=0").await.expect_problem(429);
    assert_eq!(
        client.send(json!({"type": "ping"})).await.len(),
        1,
        "frames are no session"
    );
    drop(streams);
    replica
        .metric_is("shopbell_http_sessions", "transport=\"stream\"", 0)
        .await;
    assert_eq!(client.poll("/v1/stream?wait=0").await[0]["type"], "welcome");
    world.finish().await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_ends_and_delays_nobody() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let slow = StreamClient::new(replica.public(), &world.token(MERCHANT))
        .open(STREAM)
        .await;
    let text = "x".repeat(60_000);
    for _ in 0..250 {
        publisher
            .publish(&Event::new("notice", MERCHANT, &format!("{text:?}")))
            .await;
    }
    publisher.publish(&Event::order("merchant-43")).await;
    let mut other = StreamClient::new(replica.public(), &world.token("merchant-43"))
        .open("/v1/stream")
        .await;
    other.take_seqs(1..=1).await;
    replica
        .metric_is("shopbell_sessions_closed_total", "silent", 1)
        .await;
    drop(slow);
    world.finish().await;
}

#[tokio::test]
async fn an_idle_stream_costs_no_more_than_an_idle_websocket() {
    const SESSIONS: u64 = 1_000;
    /// The pages of the allocator and the tasks of the runtime vary.
    const MORE_BYTES_MAX: u64 = 3_000;
    let world = World::new().await;
    let replica = world.serve().await;
    let name = |number| format!("merchant-{number}");
    let warm = StreamClient::new(replica.public(), &world.token("warm"))
        .open("/v1/stream")
        .await;
    let before = replica.rss_bytes();
    let mut sockets = Vec::new();
    for number in 0..SESSIONS {
        sockets.push(
            world
                .merchant(&name(number))
                .connect(replica.public())
                .await,
        );
    }
    let with_sockets = replica.rss_bytes();
    let mut streams = Vec::new();
    for number in SESSIONS..2 * SESSIONS {
        let client = StreamClient::new(replica.public(), &world.token(&name(number)));
        let mut stream = client.open("/v1/stream").await;
        stream.next_of("welcome").await;
        streams.push(stream);
    }
    let with_both = replica.rss_bytes();
    let of_a_socket = with_sockets.saturating_sub(before) / SESSIONS;
    let of_a_stream = with_both.saturating_sub(with_sockets) / SESSIONS;
    println!("{of_a_socket} bytes for a WebSocket, {of_a_stream} for a stream");
    assert!(
        of_a_stream < of_a_socket + MORE_BYTES_MAX,
        "{of_a_stream}, {of_a_socket}"
    );
    drop((warm, sockets, streams));
    world.finish().await;
}

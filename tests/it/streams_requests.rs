//! The requests of clients without WebSockets: polls, acks, marks, and wrong ones.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Event, StreamClient, World};

const MERCHANT: &str = "merchant-42";
/// The stream of the merchant's own feed.
const STREAM: &str = "/v1/feeds/merchant-42/stream";

/// The numbers of the notifications among these frames.
fn seqs(frames: &[Value]) -> Vec<u64> {
    let is_notification = |frame: &&Value| frame["type"] == "notification";
    let seq = |frame: &Value| frame["seq"].as_u64().expect("a seq");
    frames.iter().filter(is_notification).map(seq).collect()
}

fn types(frames: &[Value]) -> Vec<&str> {
    frames
        .iter()
        .filter_map(|frame| frame["type"].as_str())
        .collect()
}

#[tokio::test]
async fn polls_are_one_reader_that_only_an_ack_moves() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    world.expect_stored(MERCHANT, 3).await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));

    for _ in 0..2 {
        let frames = client.poll("/v1/stream?wait=20").await;
        assert_eq!(seqs(&frames), [1, 2, 3], "an answer is no ack");
        assert_eq!(frames[0]["type"], "welcome");
    }
    client.ack(MERCHANT, 2).await;
    assert_eq!(seqs(&client.poll(&format!("{STREAM}?wait=0")).await), [3]);
    client.ack(MERCHANT, 3).await;
    let frames = client.poll(&format!("{STREAM}?wait=0")).await;
    assert_eq!(types(&frames), ["welcome", "caught_up"]);

    let waiting = client.poll("/v1/stream?wait=60");
    let publishing = async {
        replica
            .metric_is("shopbell_http_sessions", "transport=\"poll\"", 1)
            .await;
        publisher.publish(&Event::order(MERCHANT)).await;
    };
    let (frames, ()) = tokio::join!(waiting, publishing);
    assert_eq!(seqs(&frames), [4]);
    let epoch = frames[0]["feeds"][0]["epoch"].as_str().expect("an epoch");
    let later = format!("/v1/stream?wait=0&after={MERCHANT}:4:{epoch}&state={MERCHANT}:0:{epoch}");
    assert!(seqs(&client.poll(&later).await).is_empty());
    client
        .send(json!([{"type": "handle", "feed": MERCHANT, "seqs": [4]}]))
        .await;
    let frames = client.poll(&later).await;
    assert!(types(&frames).contains(&"state"), "{frames:?}");
    let sent = replica.metric("shopbell_notifications_sent_total").await;
    assert_eq!(sent, 3 + 3 + 1 + 1);
    world.finish().await;
}

#[tokio::test]
async fn marks_by_requests_reach_every_session() {
    let world = World::new().await;
    let (one, other) = (world.serve().await, world.serve().await);
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 2))
        .await;
    world.expect_stored(MERCHANT, 2).await;
    let token = world.token(MERCHANT);
    let client = StreamClient::new(other.public(), &token);
    let mut stream = StreamClient::new(one.public(), &token)
        .open("/v1/stream")
        .await;
    stream.take_seqs(1..=2).await;
    let mut colleague = world
        .merchant(MERCHANT)
        .device("till")
        .connect(one.public())
        .await;

    let handle = json!([{"type": "handle", "feed": MERCHANT, "seqs": [2]}, {"type": "ack", "feed": MERCHANT, "seq": 2}]);
    assert_eq!(client.send(handle.clone()).await, Vec::<Value>::new());
    world.expect_cursor(MERCHANT, "", 2).await;
    let state = stream.next_of("state").await.frame;
    assert_eq!(
        (&state["seqs"], &state["version"]),
        (&json!([2]), &json!(1))
    );
    assert_eq!(colleague.next_state().await.version, Some(1));
    let again = client.send(handle).await;
    assert_eq!(
        (types(&again), again[0].get("version")),
        (vec!["state"], None)
    );
    let replies = client
        .send(json!([
            {"type": "ping"},
            {"type": "read", "feed": MERCHANT, "seqs": []},
            {"type": "read", "feed": MERCHANT, "seqs": [9]},
            {"type": "read", "feed": "all", "through": 1},
            {"type": "ack", "feed": MERCHANT, "seq": 3},
            {"type": "read", "feed": "merchant-43", "seqs": [1]},
        ]))
        .await;
    let mut words: Vec<_> = replies
        .iter()
        .map(|reply| {
            reply["code"]
                .as_str()
                .or(reply["type"].as_str())
                .unwrap_or_default()
        })
        .collect();
    words.sort_unstable();
    assert_eq!(
        words,
        [
            "ack_not_sent",
            "pong",
            "read_only",
            "state",
            "unknown_feed",
            "unknown_seq"
        ]
    );
    let one_frame = client.post("/v1/frames", r#"{"type":"ping"}"#).await;
    assert_eq!(one_frame.text().trim(), r#"[{"type":"pong"}]"#);
    world.finish().await;
}

#[tokio::test]
async fn an_ack_is_confirmed_only_when_it_is_stored() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    client.open(STREAM).await.take_seqs(1..=3).await;
    let lock = world
        .lock("select from cursors where feed = 'merchant-42' for update")
        .await;
    let path = "/v1/feeds/merchant-42/ack";
    let reply = client.post(path, r#"{"seq":3}"#).await;
    reply.expect_problem(503);
    assert!(reply.header("retry-after").is_some());
    drop(lock);
    assert_eq!(client.post(path, r#"{"seq":3}"#).await.status, 204);
    assert_eq!(
        world
            .number("select acked_seq from cursors where feed = 'merchant-42'")
            .await,
        3
    );
    world.finish().await;
}

#[tokio::test]
async fn the_body_of_a_post_has_ten_seconds() {
    let world = World::new().await;
    let replica = world.serve().await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let begun = Instant::now();
    let half = client
        .header("Content-Length", "10")
        .request("POST", "/v1/frames")
        .await;
    half.expect_problem(408);
    assert!(begun.elapsed() >= Duration::from_secs(10));
    world.finish().await;
}

#[tokio::test]
async fn a_token_of_another_feed_gets_403() {
    let world = World::new().await;
    let replica = world.serve().await;
    let orders = Event::orders(MERCHANT, 2);
    world.publisher().await.publish_all(orders).await;
    world.expect_stored(MERCHANT, 2).await;
    let other = StreamClient::new(replica.public(), &world.token("merchant-43"));
    for path in [
        STREAM,
        "/v1/stream?feed=merchant-42",
        "/v1/stream?wait=0&after=merchant-42:0",
    ] {
        other.get(path).await.expect_problem(403);
    }
    let acked = other.post("/v1/feeds/merchant-42/ack", r#"{"seq":1}"#);
    acked.await.expect_problem(403);
    let frame = json!({"type": "ack", "feed": MERCHANT, "seq": 1});
    assert_eq!(other.send(frame).await[0]["code"], "unknown_feed");
    assert_eq!(
        world
            .number("select count(*) from cursors where feed = 'merchant-42'")
            .await,
        0
    );
    world.finish().await;
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let world = World::new().await;
    let replica = world.serve().await;
    let orders = Event::orders(MERCHANT, 2);
    world.publisher().await.publish_all(orders).await;
    world.expect_stored(MERCHANT, 2).await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    let expired = world.token(MERCHANT).expires_in_seconds(-60);
    let refused = StreamClient::new(replica.public(), &expired)
        .get(STREAM)
        .await;
    refused.expect_problem(401);
    let problem: Value = serde_json::from_slice(&refused.body).expect("JSON");
    let close = (&problem["close_code"], &problem["reason"]);
    assert_eq!(close, (&json!(4401), &json!("token_expired")));
    for query in ["wait=61", "wait=soon", "feed=a%20b", "token=t", "after=x"] {
        let path = format!("/v1/stream?{query}");
        client.get(&path).await.expect_problem(400);
    }
    client.get("/v1/streams").await.expect_problem(404);
    let ping = r#"{"type":"ping"}"#;
    let pings = |count| format!("[{}]", vec![ping; count].join(","));
    assert_eq!(client.post("/v1/frames", &pings(32)).await.status, 200);
    for (body, status) in [
        ("{}".to_owned(), 400),
        ("[7]".into(), 400),
        ("[".into(), 400),
        (r#"{"type":"read","feed":"merchant-42"}"#.into(), 400),
        (pings(33), 413),
        (" ".repeat(64 * 1_024 + 1), 413),
    ] {
        let reply = client.post("/v1/frames", &body).await;
        reply.expect_problem(status);
    }
    for (path, body, status) in [
        ("/v1/frames?epoch=e0", ping, 409),
        ("/v1/frames?epoch=0", ping, 400),
        ("/v1/feeds/merchant-42/ack", r#"{"seq":3}"#, 409),
        ("/v1/feeds/merchant-42/ack", r#"{"seq":"3"}"#, 400),
        ("/v1/feeds/merchant-42/nack", r#"{"seq":1}"#, 404),
    ] {
        client.post(path, body).await.expect_problem(status);
    }
    let counted = replica.metric_where("shopbell_streams_refused_total", "bad_request");
    assert_eq!(counted.await, 16);
    world.finish().await;
}

#[tokio::test]
async fn only_pages_of_allowed_origins_are_served() {
    let world = World::new().await;
    let (ours, foreign) = ("https://shop.example", "https://evil.example");
    let replica = world
        .replica()
        .with("SHOPBELL_ALLOWED_ORIGINS", ours)
        .start()
        .await;
    let client = StreamClient::new(replica.public(), &world.token(MERCHANT));
    for (origin, status) in [(foreign, 403), (ours, 200)] {
        let page = client.clone().header("Origin", origin);
        assert_eq!(page.open(STREAM).await.head.status, status, "{origin}");
        let posted = page.post("/v1/frames", r#"{"type":"ping"}"#).await;
        assert_eq!(posted.status, status, "{origin}");
    }
    let page = client.header("Origin", ours);
    let head = page.open(STREAM).await.head;
    assert_eq!(head.header("access-control-allow-origin"), Some(ours));
    let preflight = page
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "authorization")
        .request("OPTIONS", "/v1/feeds/merchant-42/ack")
        .await;
    let allowed = preflight.header("access-control-allow-methods");
    assert!(
        allowed.is_some_and(|methods| methods.contains("POST")),
        "{preflight:?}"
    );
    world.finish().await;
}

//! Publishers without a connection to RabbitMQ: `POST /v1/events`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::{Event, Replica, Sdk, World, eventually, http};

const MERCHANT: &str = "merchant-42";
const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";
const BATCH: &str = "application/cloudevents-batch+json";
/// The greatest body.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
const FAULT_BOUND: Duration = Duration::from_secs(60);

/// A shop with a token that may publish to its merchants.
struct Shop {
    replica: Replica,
    authorization: String,
}

impl Shop {
    fn new(world: &World, replica: &Replica) -> Self {
        let token = world.token("shop").publish(["merchant-*"]).sign();
        Self {
            replica: replica.clone(),
            authorization: format!("Bearer {token}"),
        }
    }

    async fn try_post(&self, content_type: &str, body: &str) -> std::io::Result<http::Reply> {
        let headers = [
            ("Authorization", self.authorization.as_str()),
            ("Content-Type", content_type),
        ];
        http::post(self.replica.public(), "/v1/events", &headers, body).await
    }

    async fn post(&self, content_type: &str, body: &str) -> http::Reply {
        self.try_post(content_type, body).await.expect("a response")
    }

    /// The head of a request with a body of this length.
    fn head(&self, length: usize) -> String {
        format!(
            "POST /v1/events HTTP/1.1\r\nHost: shop\r\nContent-Type: {BATCH}\r\nAuthorization: {}\r\nContent-Length: {length}\r\n\r\n",
            self.authorization
        )
    }

    async fn post_batch(&self, events: &[Value]) -> Vec<Value> {
        let body = serde_json::to_string(events).expect("JSON");
        let reply = self.post(BATCH, &body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        serde_json::from_slice(&reply.body).expect("a list of verdicts")
    }
}

fn structured(event: &Event) -> String {
    serde_json::to_string(event).expect("an event is JSON")
}

/// `presence.rs` checks `online`.
fn without_presence(verdict: &mut Value) {
    let verdict = verdict.as_object_mut().expect("a verdict");
    verdict.remove("online");
}

fn value(event: &Event) -> Value {
    serde_json::to_value(event).expect("an event is JSON")
}

#[tokio::test]
async fn events_of_all_three_forms_reach_their_merchant_byte_for_byte() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::new(&world, &replica);
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let data = r#"{"text" : "as it came","n":1e400}"#;

    let event = Event::new("custom.thing", MERCHANT, data).id("e-1");
    let reply = shop.post(STRUCTURED, &structured(&event)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let accepted = |id: &str| json!({"verdict": "accepted", "id": id, "source": "/shop/orders"});
    let mut verdict: Value = serde_json::from_slice(&reply.body).expect("a verdict");
    without_presence(&mut verdict);
    assert_eq!(verdict, accepted("e-1"));

    let binary = [
        ("Authorization", shop.authorization.as_str()),
        ("Content-Type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "e-2"),
        ("ce-source", "/caf%C3%A9"),
        ("ce-type", "custom.thing"),
        ("ce-recipient", MERCHANT),
        ("ce-collapsekey", "k"),
    ];
    let reply = http::post(replica.public(), "/v1/events", &binary, data).await;
    assert_eq!(reply.expect("a response").status, 200);

    let batch = format!("[{}]", structured(&event.clone().id("e-3")));
    let reply = shop.post(BATCH, &batch).await;
    let mut verdicts: Value = serde_json::from_slice(&reply.body).expect("verdicts");
    without_presence(&mut verdicts[0]);
    assert_eq!(verdicts, json!([accepted("e-3")]));

    let arrived = merchant.take_seqs(1..=3).await;
    let of = |index: usize| {
        let notification = &arrived[index];
        (
            notification.source.as_str(),
            notification.id.as_str(),
            notification.data(),
        )
    };
    assert_eq!(of(0), ("/shop/orders", "e-1", data));
    assert_eq!(of(1), ("/caf\u{e9}", "e-2", data));
    assert_eq!(of(2), ("/shop/orders", "e-3", data));
    world.finish().await;
}

#[tokio::test]
async fn the_cloudevents_sdks_publish_unchanged() {
    let world = World::new().await;
    let replica = world.serve().await;
    let url = format!("http://{}/v1/events", replica.public());
    let token = world.token("shop").publish([MERCHANT]).sign();
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let raw = "{ \"n\":1e400,\"a\" : [1.10], \"é\":\"\\u00e9\" }";
    let mut sent = Vec::new();
    for sdk in [Sdk::Python, Sdk::Node] {
        sent.extend(sdk.publish_over_http(&url, &token, MERCHANT, raw).await);
    }
    let arrived = merchant.take_seqs(1..=4).await;
    for (notification, event) in arrived.iter().zip(&sent) {
        assert_eq!(
            (notification.id.as_str(), notification.data()),
            (event.id.as_str(), raw)
        );
        assert_eq!(event.data, raw);
    }
    let keys = arrived
        .iter()
        .map(|notification| notification.collapse_key.as_deref());
    let [python, node] = ["a key with spaces, é and 100 %", "a key"];
    assert_eq!(
        keys.collect::<Vec<_>>(),
        [python, python, node, node].map(Some)
    );
    world.finish().await;
}

#[tokio::test]
async fn a_batch_with_invalid_events_stores_the_others_once() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::new(&world, &replica);
    let mut events: Vec<Value> = Event::orders(MERCHANT, 500).iter().map(value).collect();
    events[7]["data"] = json!("no order");
    events[250]
        .as_object_mut()
        .expect("an event")
        .remove("recipient");
    events[499]["recipient"] = "another-shop".into();

    let verdicts = shop.post_batch(&events).await;
    let refused: Vec<_> = verdicts
        .iter()
        .enumerate()
        .filter(|(_, verdict)| verdict["verdict"] == "refused")
        .map(|(index, verdict)| (index, verdict["reason"].as_str().unwrap_or_default()))
        .collect();
    let expected = [
        (7, "invalid_data"),
        (250, "invalid_recipient"),
        (499, "not_allowed"),
    ];
    assert_eq!(refused, expected);
    world.expect_stored(MERCHANT, 497).await;

    assert_eq!(shop.post_batch(&events).await, verdicts);
    replica
        .metric_reaches("shopbell_events_duplicate_total", 497)
        .await;
    assert_eq!(world.stored_in_all().await, 497);
    let accepted = replica.metric_where("shopbell_http_events_total", r#"verdict="accepted""#);
    assert_eq!(accepted.await, 2 * 497);
    let refused = replica.metric_where("shopbell_http_events_total", r#"verdict="refused""#);
    assert_eq!(refused.await, 2 * 3);
    world.finish().await;
}

#[tokio::test]
async fn only_the_claim_publish_allows_to_publish() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = || world.token("shop");
    let order = |recipient: &str| structured(&Event::order(recipient));
    let notice = |recipient: &str| structured(&Event::new("notice", recipient, "1"));
    let cases = [
        (None, order(MERCHANT), 401),
        (
            Some(token().publish(["*"]).sign_with_a_foreign_secret()),
            order(MERCHANT),
            401,
        ),
        (
            Some(token().publish(["*"]).expires_in_seconds(-60).sign()),
            order(MERCHANT),
            401,
        ),
        (Some(token().sign()), order(MERCHANT), 403),
        (
            Some(token().feeds([MERCHANT]).broadcast().sign()),
            order(MERCHANT),
            403,
        ),
        (Some(token().publish([]).sign()), order(MERCHANT), 403),
        (Some(token().publish(["a*b"]).sign()), order(MERCHANT), 403),
        (
            Some(token().publish(["merchant-4"]).sign()),
            order(MERCHANT),
            403,
        ),
        (Some(token().publish(["*"]).sign()), notice("all"), 403),
        (
            Some(token().publish(["shopbell-canary/*"]).sign()),
            order("shopbell-canary/x"),
            400,
        ),
    ];
    for (token, event, status) in cases {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("Content-Type", STRUCTURED)];
        headers.extend(
            authorization
                .as_deref()
                .map(|value| ("Authorization", value)),
        );
        let reply = http::post(replica.public(), "/v1/events", &headers, &event).await;
        reply.expect("a response").expect_problem(status);
    }
    // Acceptance of one event after all of these proves that none of them is on its way.
    let shop = Shop::new(&world, &replica);
    assert_eq!(shop.post(STRUCTURED, &order(MERCHANT)).await.status, 200);
    world.expect_stored(MERCHANT, 1).await;
    assert_eq!(world.stored_in_all().await, 1);
    world.finish().await;
}

#[tokio::test]
async fn an_event_is_accepted_only_after_the_confirm_of_rabbitmq() {
    let world = World::new().await;
    let (broker, gateway) = world
        .replica()
        .role("gateway")
        .start_behind_broker_proxy()
        .await;
    let ingest = world.replica().role("ingest").start().await;
    let shop = Arc::new(Shop::new(&world, &gateway));
    let first = structured(&Event::order(MERCHANT));
    assert_eq!(shop.post(STRUCTURED, &first).await.status, 200);

    // RabbitMQ receives the event, and its confirm does not arrive.
    broker.stall_downstream();
    let event = structured(&Event::order(MERCHANT));
    let posting = tokio::spawn({
        let (shop, event) = (shop.clone(), event.clone());
        async move { shop.post(STRUCTURED, &event).await }
    });
    world.expect_stored(MERCHANT, 2).await;
    assert!(!posting.is_finished(), "there is no confirm");
    broker.cut();
    let reply = posting.await.expect("a response");
    reply.expect_problem(503);
    assert!(reply.header("retry-after").is_some(), "{reply:?}");

    broker.mend();
    let again = async || match shop.try_post(STRUCTURED, &event).await {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the event is accepted", FAULT_BOUND, again).await;
    ingest
        .metric_reaches("shopbell_events_duplicate_total", 1)
        .await;
    assert_eq!(world.stored_in_all().await, 2);
    world.finish().await;
}

#[tokio::test]
async fn a_body_has_thirty_seconds() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::new(&world, &replica);
    let mut stream = TcpStream::connect(replica.public())
        .await
        .expect("it listens");
    let begun = Instant::now();
    let reply = http::exchange(&mut stream, &shop.head(10)).await;
    reply.expect("a response").expect_problem(408);
    assert!(begun.elapsed() >= Duration::from_secs(30));
    world.finish().await;
}

#[tokio::test]
async fn requests_have_bounds() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::new(&world, &replica);
    shop.post(BATCH, &structured(&Event::order(MERCHANT)))
        .await
        .expect_problem(400);
    let many = format!("[{}]", vec!["1"; 501].join(","));
    shop.post(BATCH, &many).await.expect_problem(413);
    let large = Event::new(
        "custom.thing",
        MERCHANT,
        &format!("\"{}\"", "x".repeat(262_144)),
    );
    let reply = shop.post(STRUCTURED, &structured(&large)).await;
    reply.expect_problem(400);
    assert!(
        reply.text().contains(r#""reason":"too_large""#),
        "{reply:?}"
    );

    let mut stream = TcpStream::connect(replica.public())
        .await
        .expect("it listens");
    let reply = http::exchange(&mut stream, &shop.head(BODY_BYTES_MAX + 1)).await;
    reply.expect("a response").expect_problem(413);

    // Eight requests hold the room for bodies, and send none. A ninth finds no room.
    let hold = async || {
        let mut stream = TcpStream::connect(replica.public()).await?;
        http::exchange(&mut stream, &shop.head(BODY_BYTES_MAX)).await
    };
    let holders = (0..9).map(|_| Box::pin(hold()));
    let (refused, _, holders) = select_all(holders).await;
    let order = structured(&Event::order(MERCHANT));
    for reply in [
        refused.expect("a response"),
        shop.post(STRUCTURED, &order).await,
    ] {
        reply.expect_problem(503);
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    drop(holders);
    let has_room = async || match shop.try_post(STRUCTURED, &order).await {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("there is room again", FAULT_BOUND, has_room).await;
    world.expect_stored(MERCHANT, 1).await;
    world.finish().await;
}

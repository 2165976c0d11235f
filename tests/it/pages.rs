//! Handshakes of pages. A page sees no HTTP status, and chooses neither its headers nor its
//! proxies.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::http::{self, Reply};
use crate::support::{Event, Handshake, PATIENCE, World};

const MERCHANT: &str = "merchant-42";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Sends a request unchanged.
async fn ask(address: SocketAddr, request: &str) -> Reply {
    let mut stream = TcpStream::connect(address)
        .await
        .expect("the replica listens");
    timeout(PATIENCE, http::exchange(&mut stream, request))
        .await
        .expect("an answer")
        .expect("an answer")
}

#[tokio::test]
async fn other_credentials_do_not_hide_the_token_of_a_page() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world.token(MERCHANT).sign();
    let foreign = world.token(MERCHANT).sign_with_a_foreign_secret();
    for other in [
        "Basic c3RhZ2luZzpsZXRtZWlu",
        "Digest username=\"u\"",
        "Negotiate YII=",
        &format!("Bearer {foreign}"),
    ] {
        let protocols = format!("Sec-WebSocket-Protocol: shopbell.v1, bearer.{token}\r\n");
        let head = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: shop\r\nAuthorization: {other}\r\n{protocols}{UPGRADE}\r\n"
        );
        let reply = ask(replica.public(), &head).await;
        assert_eq!(reply.status, 101, "{other}: {reply:?}");
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(!text.contains("token_refused"), "{other}: {text}");
    }
    replica
        .metric_reaches("shopbell_sessions_opened_total", 4)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn the_default_port_and_the_case_of_a_host_do_not_change_an_origin() {
    let world = World::new().await;
    let token = world.token(MERCHANT).sign();
    let status = async |address, host: &str, origin: &str| {
        let protocols = format!("Sec-WebSocket-Protocol: shopbell.v1, bearer.{token}\r\n");
        let head = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n{protocols}{UPGRADE}\r\n"
        );
        ask(address, &head).await.status
    };
    let same_origin = world.serve().await;
    for (host, origin, wanted) in [
        ("shop.example:443", "https://shop.example", 101),
        ("SHOP.example:80", "http://shop.example", 101),
        ("[::1]:443", "https://[::1]", 101),
        ("shop.example:8443", "https://shop.example", 403),
        ("shop.example", "https://shop.example:8443", 403),
    ] {
        assert_eq!(
            status(same_origin.public(), host, origin).await,
            wanted,
            "{host} {origin}"
        );
    }
    let allowed = "https://Dash.Example:443,https://münchen.example";
    let configured = world
        .replica()
        .with("SHOPBELL_ALLOWED_ORIGINS", allowed)
        .start()
        .await;
    for (origin, wanted) in [
        ("https://dash.example", 101),
        ("https://xn--mnchen-3ya.example", 101),
        ("https://dash.example:8443", 403),
        ("http://dash.example", 403),
    ] {
        assert_eq!(
            status(configured.public(), "shop", origin).await,
            wanted,
            "{origin}"
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn a_handshake_needs_one_host_and_http_1_1() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world.token(MERCHANT).sign();
    let bearer = format!("Authorization: Bearer {token}\r\n");
    for (head, wanted) in [
        ("GET /v1/ws HTTP/1.1\r\n", 400),
        (
            "GET /v1/ws HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n",
            400,
        ),
        ("GET /v1/ws HTTP/1.1\r\nHost: a/b\r\n", 400),
        ("GET /v1/ws HTTP/1.0\r\nHost: a.example\r\n", 505),
        ("GET /v1/feeds/merchant-42/notifications HTTP/1.1\r\n", 400),
        ("GET /v1/feeds/merchant-42/notifications HTTP/1.0\r\n", 200),
    ] {
        let upgrade = if head.contains("/ws") { UPGRADE } else { "" };
        let reply = ask(replica.public(), &format!("{head}{bearer}{upgrade}\r\n")).await;
        assert_eq!(reply.status, wanted, "{head}: {reply:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_device_may_be_called_as_people_call_it() {
    let world = World::new().await;
    let replica = world.serve().await;
    for (written, name) in [
        ("Till%202", "Till 2"),
        ("Till+2", "Till 2"),
        ("%20Till%202%20", "Till 2"),
        ("iPad%20von%20J%C3%BCrgen", "iPad von Jürgen"),
        ("%F0%9F%98%80", "😀"),
        ("a/b:c", "a/b:c"),
        (&"%E5%BA%97".repeat(64), &"店".repeat(64)),
    ] {
        let merchant = world
            .merchant(MERCHANT)
            .by_subprotocol()
            .device(written)
            .connect(replica.public())
            .await;
        assert_eq!(merchant.welcome().device.as_deref(), Some(name));
        merchant.leave().await;
        world.expect_cursor(MERCHANT, name, 0).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_page_learns_why_it_is_refused_from_the_close() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER", 1)
        .start()
        .await;
    let merchant = world.merchant(MERCHANT);
    let page = merchant.clone().by_subprotocol();
    let refusals: [(Handshake, u16, &str); 7] = [
        (page.clone().device("a%00b"), 4500, "bad_request"),
        (page.clone().device("%ff"), 4500, "bad_request"),
        (page.clone().device(&"x".repeat(65)), 4500, "bad_request"),
        (
            page.clone().with_query("after=merchant-42"),
            4500,
            "bad_request",
        ),
        (page.clone().with_query("token=t"), 4500, "bad_request"),
        (page.clone().after("merchant-43", 0), 4503, "foreign_feed"),
        (page.clone().state("merchant-43", 0), 4503, "foreign_feed"),
    ];
    for (handshake, code, word) in refusals {
        let closed = handshake.closed_at_once(replica.public()).await;
        assert_eq!((closed.code, closed.word.as_deref()), (code, Some(word)));
    }
    // A program sees the status instead.
    merchant
        .clone()
        .device("%ff")
        .refused(replica.public())
        .await
        .expect_problem(400);

    let mut only = merchant.connect(replica.public()).await;
    let closed = page.closed_at_once(replica.public()).await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4429, Some("too_many_sessions"))
    );
    assert!(
        closed.retry_after_ms.is_some_and(|wait| wait > 0),
        "{closed:?}"
    );
    merchant.refused(replica.public()).await.expect_problem(429);
    only.ping().await;
    assert_eq!(
        replica
            .metric_where("shopbell_handshakes_refused_total", "bad_request")
            .await,
        6
    );
    world.finish().await;
}

#[tokio::test]
async fn parameters_of_others_are_ignored() {
    let world = World::new().await;
    let replica = world.serve().await;
    for query in [
        "utm_source=%E9t%E9",
        "_=%",
        "x=100%",
        "a=%zz",
        "=",
        "&&",
        "device",
        "a=b=c",
        "a=%00",
        "tokens=1",
    ] {
        let merchant = world
            .merchant(MERCHANT)
            .with_query(query)
            .device("d")
            .connect(replica.public())
            .await;
        assert_eq!(merchant.welcome().device.as_deref(), Some("d"), "{query}");
    }
    world.finish().await;
}

#[tokio::test]
async fn numbers_of_clients_may_be_written_as_fractions() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 4))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=4).await;
    for text in [
        r#"{"type":"ack","feed":"merchant-42","seq":1.0}"#,
        r#"{"type":"ack","feed":"merchant-42","seq":2e0,"more":1e400}"#,
        r#"{"type":"ack","feed":"merchant-42","seq":3,"more":{"deep":["\ud800"]}}"#,
    ] {
        merchant.send_text(text).await;
        merchant.ping().await;
    }
    merchant.send_text(r#"{"type":"sing","seq":1e400}"#).await;
    assert_eq!(merchant.next_error().await.code, "unknown_type");
    merchant
        .send_text(r#"{"type":"ack","feed":"merchant-42","seq":1e400}"#)
        .await;
    assert_eq!(merchant.next_error().await.code, "ack_not_sent");
    merchant
        .send_text(r#"{"type":"read","feed":"merchant-42","seqs":[2.0]}"#)
        .await;
    assert_eq!(merchant.next_state().await.seqs, Some(vec![2]));
    merchant
        .send_text(r#"{"type":"read","feed":"merchant-42","through":3.0}"#)
        .await;
    merchant.next_state().await;
    merchant.ping().await;
    world.expect_cursor(MERCHANT, "", 3).await;
    merchant
        .send_text(r#"{"type":"ack","feed":"merchant-42","seq":3.5}"#)
        .await;
    assert_eq!(merchant.closed().await.code, 4500);
    world.finish().await;
}

#[tokio::test]
async fn a_feed_with_a_slash_is_found_behind_a_proxy_that_decodes_it() {
    let world = World::new().await;
    let replica = world.serve().await;
    let feed = "shop/a.b~c/d";
    world
        .publisher()
        .await
        .publish_all(Event::orders(feed, 2))
        .await;
    world.expect_stored(feed, 2).await;
    let authorization = format!("Bearer {}", world.token(feed).sign());
    for path in [
        "/v1/feeds/shop%2Fa.b~c%2Fd/notifications",
        "/v1/feeds/shop/a.b~c/d/notifications",
        "/v1/feeds/shop/a.b~c/d/notifications?limit=5&utm_source=%E9",
        "/v1/notifications?feed=shop%2Fa.b~c%2Fd",
        "/v1/notifications?feed=shop/a.b~c/d&limit=5",
    ] {
        let reply = http::get_with(replica.public(), path, &[("Authorization", &authorization)])
            .await
            .expect("an answer");
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert_eq!(
            reply.text().matches(r#""type":"notification""#).count(),
            2,
            "{path}"
        );
    }
    for path in ["/v1/feeds/shop/a", "/v1/feeds"] {
        let reply = http::get_with(replica.public(), path, &[("Authorization", &authorization)])
            .await
            .expect("an answer");
        reply.expect_problem(404);
    }
    world.finish().await;
}

//! Which handshakes succeed, and the responses to the others.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Handshake, PATIENCE, World, http};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_bad_token_is_refused_with_401() {
    let world = World::new().await;
    let replica = world.serve().await;
    let (merchant, token) = (world.merchant(MERCHANT), world.token(MERCHANT));
    let with = |token: String| merchant.clone().token(token);
    let strangers = [
        ("no token", merchant.clone().without_token()),
        ("a foreign secret", with(token.sign_with_a_foreign_secret())),
        ("no signature", with(token.unsigned())),
        (
            "expired",
            with(token.clone().expires_in_seconds(-60).sign()),
        ),
        ("no expiry", with(token.clone().without_expiry().sign())),
        ("no subscriber", with(world.token("").sign())),
        ("no JWT", with("open-sesame".to_owned())),
    ];
    for (what, stranger) in strangers {
        let refusal = stranger.refused(replica.public()).await;
        assert_eq!(refusal.status, 401, "{what}: {refusal:?}");
        refusal.expect_problem(401);
        assert!(
            refusal
                .header("www-authenticate")
                .is_some_and(|scheme| scheme.starts_with("Bearer")),
            "{what}: {refusal:?}"
        );
    }
    // The good token.
    merchant.connect(replica.public()).await.ping().await;
    world.finish().await;
}

#[tokio::test]
async fn a_bad_token_from_a_browser_is_refused_with_a_close_code() {
    let world = World::new().await;
    let replica = world.serve().await;
    let (merchant, token) = (world.merchant(MERCHANT), world.token(MERCHANT));
    let with = |token: String| merchant.clone().token(token).by_subprotocol();
    let strangers: [(Handshake, u16, &str); 5] = [
        (
            with(token.sign_with_a_foreign_secret()),
            4402,
            "token_key_unknown",
        ),
        (with("open-sesame".to_owned()), 4501, "token_refused"),
        (with(token.unsigned()), 4501, "token_refused"),
        (
            with(token.clone().expires_in_seconds(-60).sign()),
            4401,
            "token_expired",
        ),
        (with(token.clone().feeds([]).sign()), 4503, "no_feed"),
    ];
    for (stranger, code, word) in strangers {
        let closed = stranger.closed_at_once(replica.public()).await;
        assert_eq!((closed.code, closed.word.as_deref()), (code, Some(word)));
    }
    // The good token. The server selects the subprotocol `shopbell.v1`.
    merchant
        .by_subprotocol()
        .connect(replica.public())
        .await
        .ping()
        .await;
    world.finish().await;
}

#[tokio::test]
async fn the_audience_is_checked_where_it_is_configured() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_JWT_AUDIENCE", "shopbell")
        .start()
        .await;
    let (merchant, token) = (world.merchant(MERCHANT), world.token(MERCHANT));
    for audience in [None, Some("warehouse")] {
        let token = audience.map_or(token.clone(), |audience| token.clone().audience(audience));
        merchant
            .clone()
            .token(token.sign())
            .refused(replica.public())
            .await
            .expect_problem(401);
    }
    let token = token.audience("shopbell").sign();
    merchant
        .token(token)
        .connect(replica.public())
        .await
        .ping()
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_foreign_feed_is_refused_with_403() {
    let world = World::new().await;
    let replica = world.serve().await;
    let merchant = world.merchant(MERCHANT);
    merchant
        .clone()
        .after("merchant-43", 0)
        .refused(replica.public())
        .await
        .expect_problem(403);
    merchant
        .after(MERCHANT, 0)
        .connect(replica.public())
        .await
        .ping()
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_page_from_elsewhere_is_refused_with_403() {
    let world = World::new().await;
    let merchant = world.merchant(MERCHANT).by_subprotocol();

    let same_origin = world.serve().await;
    let own = format!("http://{}", same_origin.public());
    merchant
        .clone()
        .origin(&own)
        .connect(same_origin.public())
        .await
        .ping()
        .await;
    merchant.connect(same_origin.public()).await.ping().await;
    for foreign in [
        "http://127.0.0.1:1",
        "https://shop.example",
        "null",
        &format!("{own}.example"),
    ] {
        merchant
            .clone()
            .origin(foreign)
            .refused(same_origin.public())
            .await
            .expect_problem(403);
    }

    let allowed = "https://dash.example,https://dash.example:8443";
    let configured = world
        .replica()
        .with("SHOPBELL_ALLOWED_ORIGINS", allowed)
        .start()
        .await;
    for origin in allowed.split(',') {
        merchant
            .clone()
            .origin(origin)
            .connect(configured.public())
            .await
            .ping()
            .await;
    }
    for foreign in [
        "http://dash.example",
        "https://dash.example.evil",
        "https://evil.example",
        "null",
    ] {
        merchant
            .clone()
            .origin(foreign)
            .refused(configured.public())
            .await
            .expect_problem(403);
    }
    world.finish().await;
}

#[tokio::test]
async fn more_sessions_than_the_cap_are_refused_with_429() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS", 2)
        .start()
        .await;
    let merchant = world.merchant(MERCHANT);
    let one = merchant.connect(replica.public()).await;
    let mut two = merchant.connect(replica.public()).await;
    let refusal = merchant.refused(replica.public()).await;
    refusal.expect_problem(429);
    assert!(
        refusal
            .header("retry-after")
            .is_some_and(|seconds| seconds.parse::<u64>().is_ok()),
        "{refusal:?}"
    );
    two.ping().await;

    // A session that ends makes room.
    one.leave().await;
    let mut three = crate::support::eventually("a place is free again", PATIENCE, async || {
        merchant.try_connect(replica.public()).await
    })
    .await;
    three.ping().await;

    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER", 1)
        .start()
        .await;
    let _mine = merchant.connect(replica.public()).await;
    merchant.refused(replica.public()).await.expect_problem(429);
    world
        .merchant("merchant-43")
        .connect(replica.public())
        .await
        .ping()
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_handshake_that_dawdles_is_closed_in_five_seconds() {
    let world = World::new().await;
    let replica = world.serve().await;
    let beginnings = [
        "",
        "GET /v1/ws HT",
        "GET /v1/ws HTTP/1.1\r\nHost: shop\r\nUpgrade: websocket\r\n",
    ];
    let dawdle = async |beginning: &str| {
        let mut stream = TcpStream::connect(replica.public())
            .await
            .expect("the replica listens");
        stream
            .write_all(beginning.as_bytes())
            .await
            .expect("it takes a beginning");
        let begun = Instant::now();
        // The end of the connection, with or without a response, or by a reset.
        timeout(PATIENCE, stream.read_to_end(&mut Vec::new()))
            .await
            .expect("it is closed")
            .ok();
        begun.elapsed()
    };
    let (nothing, a_bit, half) = tokio::join!(
        dawdle(beginnings[0]),
        dawdle(beginnings[1]),
        dawdle(beginnings[2])
    );
    for took in [nothing, a_bit, half] {
        assert!(
            (Duration::from_secs(3)..Duration::from_secs(9)).contains(&took),
            "{took:?}"
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn a_request_that_is_no_websocket_handshake_is_refused() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world.token(MERCHANT).sign();
    let head = format!("GET /v1/ws HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {token}\r\n");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let requests = [
        ("no upgrade", format!("{head}\r\n")),
        (
            "no key",
            format!("{head}{upgrade}Sec-WebSocket-Version: 13\r\n\r\n"),
        ),
        (
            "a short key",
            format!("{head}{upgrade}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n\r\n"),
        ),
        (
            "an old version",
            format!("{head}{upgrade}{key}Sec-WebSocket-Version: 8\r\n\r\n"),
        ),
    ];
    for (what, request) in requests {
        let mut stream = TcpStream::connect(replica.public())
            .await
            .expect("the replica listens");
        let reply = timeout(PATIENCE, http::exchange(&mut stream, &request))
            .await
            .expect("an answer")
            .expect("an answer");
        assert!([400, 426].contains(&reply.status), "{what}: {reply:?}");
        if what == "an old version" {
            assert_eq!(
                reply.header("sec-websocket-version"),
                Some("13"),
                "RFC 6455 §4.2.2: {reply:?}"
            );
        }
    }
    for query in [
        "after=merchant-42",
        "after=merchant-42:-1",
        "after=merchant-42:x",
        "device=a%00b",
    ] {
        let request = format!(
            "{}{upgrade}{key}Sec-WebSocket-Version: 13\r\n\r\n",
            head.replace("/ws", &format!("/ws?{query}"))
        );
        let mut stream = TcpStream::connect(replica.public())
            .await
            .expect("the replica listens");
        let reply = timeout(PATIENCE, http::exchange(&mut stream, &request))
            .await
            .expect("an answer")
            .expect("an answer");
        assert_eq!(reply.status, 400, "{query}: {reply:?}");
    }
    world.finish().await;
}

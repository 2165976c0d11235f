//! Limits of one client address and of one subscriber, also behind a proxy.

use std::net::SocketAddr;

use crate::support::{Frame, Handshake, Merchant, PATIENCE, Replica, World, eventually, http};

const MERCHANT: &str = "merchant-42";
/// The rate of one request a second with its reserve of ten seconds.
const SAVED: usize = 10;
/// More attempts than the reserve and its refill allow in this time.
const ATTEMPTS_MAX: usize = 500;

/// A replica behind a proxy on this machine.
async fn behind_a_proxy(world: &World, limits: &[(&str, u32)]) -> Replica {
    let setup = world
        .replica()
        .with("SHOPBELL_TRUSTED_PROXIES", "127.0.0.0/8")
        .with("SHOPBELL_CANARY_SECONDS", 0);
    let setup = limits.iter().fold(setup, |setup, (variable, value)| {
        setup.with(variable, value)
    });
    setup.start().await
}

/// A handshake that the proxy received from this client.
fn from(client: &str, handshake: &Handshake) -> Handshake {
    handshake.clone().header("X-Forwarded-For", client)
}

/// The number of attempts before one is refused with 429.
async fn attempts_until_429(address: SocketAddr, handshake: &Handshake) -> usize {
    for attempt in 0..ATTEMPTS_MAX {
        match handshake.try_connect(address).await {
            Err(refused) if refused.contains("status: 429") => return attempt,
            _ => {}
        }
    }
    panic!("{ATTEMPTS_MAX} attempts were not limited");
}

#[tokio::test]
async fn each_client_behind_a_proxy_has_its_own_sessions() {
    let world = World::new().await;
    let replica = behind_a_proxy(&world, &[("SHOPBELL_MAX_SESSIONS_PER_ADDRESS", 2)]).await;
    let (address, merchant) = (replica.public(), world.merchant(MERCHANT));
    let mut open: Vec<Merchant> = Vec::new();
    for _ in 0..2 {
        open.push(from("203.0.113.1", &merchant).connect(address).await);
    }
    // The client cannot choose its address: the proxy appended the last one.
    for chain in [
        "203.0.113.1",
        "203.0.113.9, 203.0.113.1",
        "x, 203.0.113.1:80",
    ] {
        let refusal = from(chain, &merchant).refused(address).await;
        refusal.expect_problem(429);
        assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    }
    let page = from("203.0.113.1", &merchant).by_subprotocol();
    let closed = page.closed_at_once(address).await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4429, Some("too_many_sessions"))
    );
    let logged = replica
        .logs("WARN", "client", |client| client == "203.0.113.1")
        .await;
    assert!(logged.contains("203.0.113.1"), "{logged}");

    // Another client, one network of IPv6, and clients whose address is internal.
    open.push(from("203.0.113.2", &merchant).connect(address).await);
    for client in ["2001:db8::1", "2001:db8::2"] {
        open.push(from(client, &merchant).connect(address).await);
    }
    from("2001:db8::3", &merchant)
        .refused(address)
        .await
        .expect_problem(429);
    // The translated address of the first client (RFC 6052).
    from("64:ff9b::203.0.113.1", &merchant)
        .refused(address)
        .await
        .expect_problem(429);
    for client in [
        "10.0.0.1", "10.0.0.1", "10.0.0.1", "unknown", "unknown", "unknown",
    ] {
        open.push(from(client, &merchant).connect(address).await);
    }
    // All malformed elements are one client, because a client may cause them.
    for client in ["localhost", "203.0.113.10;"] {
        open.push(from(client, &merchant).connect(address).await);
    }
    from("\"203.0.113.11", &merchant)
        .refused(address)
        .await
        .expect_problem(429);
    open.swap_remove(0).leave().await;
    eventually("the address has a free place", PATIENCE, async || {
        from("203.0.113.1", &merchant).try_connect(address).await
    })
    .await
    .leave()
    .await;
    world.finish().await;
}

#[tokio::test]
async fn an_address_that_guesses_tokens_is_slowed_down() {
    let world = World::new().await;
    let replica = behind_a_proxy(&world, &[("SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS", 1)]).await;
    let (address, merchant) = (replica.public(), world.merchant(MERCHANT));
    let guess = merchant.clone().token("open-sesame".to_owned());
    let guess = from("203.0.113.3", &guess);
    let honest = from("203.0.113.3", &merchant);
    assert!(attempts_until_429(address, &guess).await >= SAVED);
    // Its good tokens are not checked either. The bound allows another attempt each second.
    let refusal = eventually("a good token is refused", PATIENCE, async || {
        attempts_until_429(address, &guess).await;
        match honest.try_connect(address).await {
            Err(refused) if refused.contains("status: 429") => Ok(refused),
            other => Err(format!("{:?}", other.map(|_| "it was let in"))),
        }
    })
    .await;
    assert!(refusal.contains("retry-after"), "{refusal}");
    let closed = eventually("a page is refused", PATIENCE, async || {
        attempts_until_429(address, &guess).await;
        let closed = honest
            .clone()
            .by_subprotocol()
            .closed_or_welcomed(address)
            .await;
        closed.ok_or_else(|| "it was let in".to_owned())
    })
    .await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4429, Some("too_many_requests"))
    );
    let wait = closed.retry_after_ms.unwrap_or_default();
    assert!((2_000..=4_000).contains(&wait), "{wait}");
    replica
        .metric_where("shopbell_handshakes_refused_total", "too_fast")
        .await;

    // Others are served, and the address is too after its wait.
    from("203.0.113.4", &merchant)
        .connect(address)
        .await
        .leave()
        .await;
    eventually("the address is served again", PATIENCE, async || {
        honest.try_connect(address).await
    })
    .await
    .leave()
    .await;
    world.finish().await;
}

#[tokio::test]
async fn a_session_that_guesses_tokens_is_closed() {
    let world = World::new().await;
    let replica = behind_a_proxy(&world, &[("SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS", 1)]).await;
    let (address, merchant) = (replica.public(), world.merchant(MERCHANT));
    let mut honest = from("203.0.113.7", &merchant).connect(address).await;
    let mut guessing = from("203.0.113.7", &merchant).connect(address).await;
    let guess = r#"{"type":"auth","token":"open-sesame"}"#;
    let mut refused = 0;
    let closed = loop {
        assert!(refused < ATTEMPTS_MAX, "{refused} tokens were not limited");
        guessing.send_text(guess).await;
        match guessing.next_frame().await {
            Ok(Frame::Error(error)) if error.code == "token_refused" => refused += 1,
            Ok(_) => {}
            Err(closed) => break closed,
        }
    };
    assert!(refused >= SAVED, "closed after {refused}");
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4429, Some("too_many_requests"))
    );
    let wait = closed.retry_after_ms.unwrap_or_default();
    assert!((2_000..=4_000).contains(&wait), "{wait}");
    // A session with good tokens stays open, also at this address.
    honest.show(&world.token(MERCHANT)).await;
    honest.ping().await;
    honest.leave().await;
    world.finish().await;
}

#[tokio::test]
async fn requests_of_an_address_and_of_a_subscriber_have_a_rate() {
    let world = World::new().await;
    let limits = [
        ("SHOPBELL_MAX_REQUESTS_PER_ADDRESS", 1),
        ("SHOPBELL_MAX_REQUESTS_PER_SUBSCRIBER", 1),
    ];
    let replica = behind_a_proxy(&world, &limits).await;
    let address = replica.public();
    // A handshake counts too if it is refused before its token is checked.
    let other = world.merchant("merchant-43");
    let wrong = from("203.0.113.5", &other).with_query("device=%ff");
    assert!(attempts_until_429(address, &wrong).await >= SAVED);
    // The same subscriber, each time from another address, over HTTP.
    let authorization = format!("Bearer {}", world.token(MERCHANT).sign());
    let path = format!("/v1/feeds/{MERCHANT}/notifications");
    let mut refused = None;
    for client in 1..=250 {
        let client = format!("198.51.100.{client}");
        let headers = [
            ("Authorization", authorization.as_str()),
            ("X-Forwarded-For", client.as_str()),
        ];
        let reply = http::get_with(address, &path, &headers)
            .await
            .expect("an answer");
        if reply.status != 200 {
            refused = Some((client, reply));
            break;
        }
    }
    let (client, reply) = refused.expect("one of them is refused");
    reply.expect_problem(429);
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
    let counted = replica.metric_where("shopbell_history_refused_total", "too_fast");
    assert_eq!(counted.await, 1);
    from(&client, &other).connect(address).await.leave().await;
    world.finish().await;
}

#[tokio::test]
async fn without_trusted_proxies_the_header_of_a_client_is_ignored() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS_PER_ADDRESS", 1)
        .with("SHOPBELL_MAX_REQUESTS_PER_ADDRESS", 1)
        .with("SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS", 1)
        .start()
        .await;
    let (address, merchant) = (replica.public(), world.merchant(MERCHANT));
    let guess = from("203.0.113.6", &merchant).token("open-sesame".to_owned());
    for _ in 0..3 * SAVED {
        guess.refused(address).await.expect_problem(401);
    }
    // All clients may share the address of a load balancer.
    let one = from("203.0.113.6", &merchant).connect(address).await;
    let two = from("203.0.113.6", &merchant).connect(address).await;
    one.leave().await;
    two.leave().await;
    world.finish().await;
}

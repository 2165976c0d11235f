//! The key set of the issuer: cached, fetched again for a new key, and used while its URL fails.

use std::time::Duration;

use crate::support::{
    Answer, Handshake, Issuer, PATIENCE, Replica, SigningKey, World, eventually, holds,
};

const MERCHANT: &str = "m-1";

fn page(world: &World, key: &SigningKey) -> Handshake {
    let token = world.token(MERCHANT).sign_with(key);
    world.merchant(MERCHANT).token(token).by_subprotocol()
}

async fn connect(world: &World, replica: &Replica, key: &SigningKey) {
    page(world, key)
        .connect(replica.public())
        .await
        .leave()
        .await;
}

#[tokio::test]
async fn a_new_key_of_the_issuer_refuses_no_client() {
    let world = World::new().await;
    let [old, next, last] = [
        SigningKey::rsa("a"),
        SigningKey::p256("b"),
        SigningKey::ed25519("c"),
    ];
    let issuer = Issuer::start(&[&old]).await;
    let replica = world
        .replica()
        .without("SHOPBELL_JWT_HS256_SECRET")
        .with("SHOPBELL_JWKS_URL", issuer.url())
        .with("SHOPBELL_JWKS_REFRESH_SECONDS", 1800)
        .start()
        .await;
    let mut merchant = page(&world, &old).connect(replica.public()).await;
    assert_eq!(issuer.requests(), 1, "the set is cached");

    // The issuer signs with a new key as soon as it publishes it. Many clients come at once.
    issuer.publish(&[&old, &next]);
    let arriving = (0..20).map(|_| connect(&world, &replica, &next));
    futures_util::future::join_all(arriving).await;
    connect(&world, &replica, &old).await;
    assert_eq!(issuer.requests(), 2, "one fetch serves all of them");
    let token = world.token(MERCHANT).sign_with(&next);
    let auth = serde_json::json!({"type": "auth", "token": token});
    merchant.send_text(&auth.to_string()).await;
    merchant.ping().await;
    assert_eq!(replica.metric("shopbell_tokens_refused_total").await, 0);

    // Unknown names cause no more fetches, and only a temporary refusal.
    issuer.publish(&[&old, &next, &last]);
    for kid in [
        "x",
        "",
        "' or 1=1; --",
        "../../etc/passwd",
        "a\u{0}b",
        &"k".repeat(4000),
    ] {
        let token = world
            .token(MERCHANT)
            .header("alg", "EdDSA")
            .header("kid", kid);
        let stranger = world
            .merchant(MERCHANT)
            .token(token.sign_as_it_is(&last))
            .by_subprotocol();
        let closed = stranger.closed_at_once(replica.public()).await;
        assert_eq!(
            (closed.code, closed.retry_after_ms.is_some()),
            (4402, true),
            "{closed:?}"
        );
    }
    // A known name with another key causes none either.
    let token = world
        .token(MERCHANT)
        .header("alg", "RS256")
        .header("kid", "a");
    let forged = world.merchant(MERCHANT).token(token.sign_as_it_is(&last));
    assert_eq!(forged.refused(replica.public()).await.status, 401);
    assert_eq!(issuer.requests(), 2);
    assert_eq!(
        replica
            .metric_where("shopbell_tokens_refused_total", "key_unknown")
            .await,
        7
    );
    // After a while, the next one does.
    eventually("the last key is accepted", PATIENCE, async || {
        page(&world, &last)
            .try_connect(replica.public())
            .await
            .map(|merchant| merchant.vanish())
    })
    .await;
    assert_eq!(issuer.requests(), 3);
    merchant.leave().await;
    world.finish().await;
}

#[tokio::test]
async fn the_last_key_set_is_used_while_its_url_fails() {
    let world = World::new().await;
    let (key, elsewhere) = (SigningKey::p256("a"), SigningKey::p256("b"));
    let issuer = Issuer::start(&[&key]).await;
    let other = Issuer::start(&[&elsewhere]).await;
    let setup = || {
        let replica = world.replica().without("SHOPBELL_JWT_HS256_SECRET");
        let replica = replica.with("SHOPBELL_JWKS_URL", issuer.url());
        replica.with("SHOPBELL_JWKS_REFRESH_SECONDS", 1)
    };
    let replica = setup().start().await;
    let brief = setup().with("SHOPBELL_JWKS_STALE_SECONDS", 2).start().await;
    let ok = |body: &str| Answer::Response(200, String::new(), body.to_owned());
    let location = format!("location: {}\r\n", other.url());
    let huge = format!(
        r#"{{"keys":[{}],"x":"{}"}}"#,
        elsewhere.jwk(),
        "x".repeat(300_000)
    );
    for (answer, error) in [
        (Answer::Response(503, String::new(), String::new()), "503"),
        (
            Answer::Response(302, location, String::new()),
            "redirects are not followed",
        ),
        (ok("<html>log in</html>"), "no JSON Web Key Set"),
        (ok(r#"{"keys":[]}"#), "no usable key"),
        (ok(&huge), "larger than 262144 bytes"),
        (Answer::Endless, "larger than 262144 bytes"),
        (Answer::Nothing, "error sending request"),
        (Answer::Silence, "no complete answer within 5 s"),
    ] {
        let failed = async || {
            replica
                .metric_where("shopbell_jwks_fetches_total", "failed")
                .await
        };
        let before = failed().await;
        issuer.answer_with(answer);
        eventually("a fetch fails", PATIENCE, async || {
            holds(failed().await > before, before)
        })
        .await;
        replica
            .logs("WARN", "error", |found| found.contains(error))
            .await;
        connect(&world, &replica, &key).await;
    }
    assert_eq!(other.requests(), 0);
    assert!(
        replica
            .metric_where("shopbell_jwks_fetches_total", "failed")
            .await
            >= 8
    );
    assert_eq!(replica.metric("shopbell_jwks_keys").await, 1);
    replica.metric_reaches("shopbell_jwks_age_seconds", 2).await;

    // A set that is too old is not used any more.
    brief.logs("ERROR", "error", |_| true).await;
    let closed = page(&world, &key).closed_at_once(brief.public()).await;
    assert_eq!(
        (closed.code, closed.retry_after_ms.is_some()),
        (4402, true),
        "{closed:?}"
    );
    assert_eq!(brief.metric("shopbell_jwks_keys").await, 0);
    eventually("the replica is unready", PATIENCE, async || {
        let ready = brief.get("/readyz").await;
        holds(
            ready.status == 503 && ready.text().contains("no key for tokens"),
            ready.text(),
        )
    })
    .await;
    issuer.publish(&[&key]);
    brief.ready().await;
    connect(&world, &brief, &key).await;
    replica.metric_is("shopbell_jwks_age_seconds", "", 0).await;
    let failures = replica.logs("INFO", "failures", |_| true).await;
    assert!(
        failures.parse::<u32>().is_ok_and(|failures| failures >= 8),
        "{failures}"
    );
    // A key that the issuer removes is dropped.
    issuer.publish(&[&elsewhere]);
    eventually(
        "the key is dropped",
        Duration::from_secs(20),
        async || match page(&world, &key).try_connect(replica.public()).await {
            Ok(_) => Err("it is still accepted".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await;
    world.finish().await;
}

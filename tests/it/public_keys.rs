//! Tokens that only their issuer can sign: keys in PEM, their rotation, and the commands that need
//! a secret to sign.

use std::fs;

use crate::support::{Handshake, PATIENCE, Replica, SigningKey, World, eventually};

const MERCHANT: &str = "m-1";

/// A page with a token of this key.
fn page(world: &World, key: &SigningKey) -> Handshake {
    let token = world.token(MERCHANT).sign_with(key);
    world.merchant(MERCHANT).token(token).by_subprotocol()
}

/// Writes a file as a whole, as `mv` does.
fn replace(path: &str, content: &str) {
    let next = format!("{path}.next");
    fs::write(&next, content).expect("a file can be written");
    fs::rename(next, path).expect("a file can be replaced");
}

async fn expect_taken(world: &World, replica: &Replica, key: &SigningKey) {
    eventually("the replica accepts the key", PATIENCE, async || {
        let connected = page(world, key).try_connect(replica.public()).await;
        let vanished = connected.map(|merchant| merchant.vanish());
        vanished
            .inspect_err(|instead| assert!(instead.contains("4402"), "closed for good: {instead}"))
    })
    .await;
}

async fn expect_dropped(world: &World, replica: &Replica, key: &SigningKey) {
    eventually(
        "the replica drops the key",
        PATIENCE,
        async || match page(world, key).try_connect(replica.public()).await {
            Ok(_) => Err("it is still accepted".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await;
}

/// A file that cannot be used changes nothing.
async fn expect_kept(world: &World, replica: &Replica, file: &str, key: &SigningKey) {
    for (content, reason) in [
        ("", "is empty"),
        ("s3cr3t", "must be one or more"),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "a private key",
        ),
    ] {
        replace(file, content);
        let problem = replica
            .logs("ERROR", "problem", |problem| problem.contains(reason))
            .await;
        assert!(!problem.contains("s3cr3t"), "{problem}");
        page(world, key)
            .connect(replica.public())
            .await
            .leave()
            .await;
    }
}

#[tokio::test]
async fn a_rotation_of_public_keys_closes_no_client_for_good() {
    let world = World::new().await;
    let keys = [
        SigningKey::rsa("1"),
        SigningKey::p256("2"),
        SigningKey::ed25519("3"),
        SigningKey::rsa("4"),
    ];
    let file = world.file("public-keys", keys[0].pem().as_bytes());
    let replica = world
        .replica()
        .without("SHOPBELL_JWT_HS256_SECRET")
        .with("SHOPBELL_JWT_PUBLIC_KEY_FILE", &file)
        .with("SHOPBELL_CANARY_SECONDS", 1)
        .start()
        .await;
    let mut merchant = page(&world, &keys[0]).connect(replica.public()).await;
    for pair in keys.windows(2) {
        let (old, new) = (&pair[0], &pair[1]);
        replace(&file, &format!("{}{}", old.pem(), new.pem()));
        expect_taken(&world, &replica, new).await;
        page(&world, old)
            .connect(replica.public())
            .await
            .leave()
            .await;
        merchant.send_text(&auth(&world, new)).await;
        merchant.ping().await;
        replace(&file, &new.pem());
        expect_dropped(&world, &replica, old).await;
        page(&world, new)
            .connect(replica.public())
            .await
            .leave()
            .await;
        merchant.ping().await;
    }
    merchant.leave().await;

    expect_kept(&world, &replica, &file, &keys[3]).await;

    // The canary needs no secret, and nobody else can sign with its own.
    replica
        .metric_reaches("shopbell_canary_runs_total", 2)
        .await;
    assert_eq!(replica.metric("shopbell_canary_failures_total").await, 0);
    replace(&file, &keys[3].pem());
    let unsigned = replica
        .shopbell(&["token", "--subscriber", MERCHANT])
        .await
        .failed_with(2);
    assert!(
        unsigned
            .stderr
            .contains("SHOPBELL_JWT_HS256_SECRET is not set"),
        "{unsigned:?}"
    );
    let shown = replica.shopbell(&["config"]).await.succeeded().stdout;
    let shown = shown
        .lines()
        .find(|line| line.starts_with("SHOPBELL_JWT_PUBLIC_KEY "));
    assert!(
        shown.is_some_and(|line| line.contains(" RS256 ")),
        "{shown:?}"
    );
    world.finish().await;
}

fn auth(world: &World, key: &SigningKey) -> String {
    let token = world.token(MERCHANT).sign_with(key);
    serde_json::json!({"type": "auth", "token": token}).to_string()
}

#[tokio::test]
async fn a_configuration_without_a_usable_key_is_rejected() {
    let world = World::new().await;
    let secret = ("SHOPBELL_JWT_HS256_SECRET", "");
    let pem = SigningKey::p256("1").pem();
    let missing = world.file("empty", b"");
    for (given, named) in [
        (
            ("SHOPBELL_JWT_ISSUER", "id"),
            "SHOPBELL_JWT_HS256_SECRET is required, or",
        ),
        (
            ("SHOPBELL_JWT_PUBLIC_KEY", "s3cr3t"),
            "SHOPBELL_JWT_PUBLIC_KEY must be",
        ),
        (
            ("SHOPBELL_JWT_PUBLIC_KEY_FILE", missing.as_str()),
            "SHOPBELL_JWT_PUBLIC_KEY_FILE names",
        ),
        (
            ("SHOPBELL_JWT_HS256_SECRET_FILE", missing.as_str()),
            "SHOPBELL_JWT_HS256_SECRET_FILE names",
        ),
        (
            ("SHOPBELL_JWT_HS256_SECRET", pem.as_str()),
            "is a key in PEM: set it as SHOPBELL_JWT_PUBLIC_KEY",
        ),
        (
            ("SHOPBELL_JWKS_URL", "http://id.example/keys"),
            "SHOPBELL_JWKS_URL must be an https URL",
        ),
        (
            ("SHOPBELL_JWKS_URL", "https://me:s3cr3t@id.example/keys"),
            "SHOPBELL_JWKS_URL must be",
        ),
        (
            ("SHOPBELL_JWKS_URL", "file:///etc/passwd"),
            "SHOPBELL_JWKS_URL must be",
        ),
        (
            ("SHOPBELL_JWKS_URL", "id.example/keys"),
            "SHOPBELL_JWKS_URL must be",
        ),
    ] {
        let refused = world
            .shopbell_with(&[secret, given], &["config"])
            .await
            .failed_with(2);
        assert!(refused.stderr.contains(named), "{given:?}: {refused:?}");
        assert!(!refused.stderr.contains("s3cr3t"), "{refused:?}");
    }
    for good in [
        [("SHOPBELL_JWKS_URL", "https://id.example/keys"), secret],
        [("SHOPBELL_JWKS_URL", "http://[::1]:8080/keys?a=b"), secret],
        [
            ("SHOPBELL_JWKS_URL", "http://id.example/keys"),
            ("SHOPBELL_JWKS_ALLOW_HTTP", "true"),
        ],
    ] {
        let good = [&good[..], &[secret]].concat();
        world.shopbell_with(&good, &["config"]).await.succeeded();
    }
    world.finish().await;
}

//! The key set of the issuer: cached, fetched again for a new key, and used while its URL fails.

use std::time::Instant;

use crate::support::certificates::{Authority, Content};
use crate::support::tls_server::TlsServer;
use crate::support::{
    Answer, Done, Handshake, Issuer, PATIENCE, Replica, Setup, SigningKey, World, eventually, holds,
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
    let first = Instant::now();
    // One for unknown names every ten seconds.
    let fetches_max = || 2 + usize::try_from(first.elapsed().as_secs() / 10).expect("a short time");
    let arriving = (0..20).map(|_| connect(&world, &replica, &next));
    futures_util::future::join_all(arriving).await;
    connect(&world, &replica, &old).await;
    assert!(
        issuer.requests() <= fetches_max(),
        "one fetch serves all of them"
    );
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
    assert!(issuer.requests() <= fetches_max());
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
    assert!(issuer.requests() >= 3 && issuer.requests() <= fetches_max());
    merchant.leave().await;
    world.finish().await;
}

fn replica_of<'a>(world: &'a World, issuer: &Issuer) -> Setup<'a> {
    let replica = world.replica().without("SHOPBELL_JWT_HS256_SECRET");
    let replica = replica.with("SHOPBELL_JWKS_URL", issuer.url());
    // `doctor` compares it with the limit of open files.
    let replica = replica.with("SHOPBELL_MAX_SESSIONS", 100);
    replica.with("SHOPBELL_JWKS_REFRESH_SECONDS", 1)
}

async fn failed_fetches(replica: &Replica) -> u64 {
    let name = "shopbell_jwks_fetches_total";
    replica.metric_where(name, "failed").await
}

#[tokio::test]
async fn the_last_key_set_is_used_while_its_url_fails() {
    let world = World::new().await;
    let (key, elsewhere) = (SigningKey::p256("a"), SigningKey::p256("b"));
    let issuer = Issuer::start(&[&key]).await;
    let other = Issuer::start(&[&elsewhere]).await;
    let replica = replica_of(&world, &issuer).start().await;
    let found = doctor(&replica).await.succeeded().stdout;
    for line in [
        "ok       keys.set: 1 usable keys: a (ES256)",
        "warning  keys.audience: SHOPBELL_JWT_AUDIENCE is not set",
        "warning  keys.issuer: SHOPBELL_JWT_ISSUER is not set",
    ] {
        assert!(found.contains(line), "{found}");
    }
    let ok = |body: &str| Answer::Response(200, String::new(), body.to_owned());
    let location = format!("location: {}\r\n", other.url());
    let padding = "x".repeat(300_000);
    let huge = format!(r#"{{"keys":[{}],"x":"{padding}"}}"#, elsewhere.jwk());
    for (answer, error) in [
        (Answer::Response(503, String::new(), String::new()), "503"),
        (
            Answer::Response(302, location, String::new()),
            "redirects are not followed",
        ),
        (ok("<html>log in</html>"), "no JSON Web Key Set"),
        (ok(r#"{"keys":[]}"#), "it is empty"),
        (ok(&huge), "larger than 262144 bytes"),
        (Answer::Endless, "larger than 262144 bytes"),
        (Answer::Nothing, "error sending request"),
        (Answer::Silence, "no complete answer within 5 s"),
    ] {
        let before = failed_fetches(&replica).await;
        issuer.answer_with(answer);
        eventually("a fetch fails", PATIENCE, async || {
            holds(failed_fetches(&replica).await > before, before)
        })
        .await;
        replica
            .logs("WARN", "error", |found| found.contains(error))
            .await;
        connect(&world, &replica, &key).await;
    }
    assert_eq!(other.requests(), 0);
    assert_eq!(replica.metric("shopbell_jwks_keys").await, 1);
    replica.metric_reaches("shopbell_jwks_age_seconds", 2).await;
    let found = doctor(&replica).await.failed_with(1).stdout;
    let line = "ERROR    keys.set: the key set of SHOPBELL_JWKS_URL cannot be fetched";
    assert!(found.contains(line), "{found}");

    // A key that the issuer has removed meanwhile is dropped.
    issuer.publish(&[&elsewhere]);
    let failures = replica.logs("INFO", "failures", |_| true).await;
    let failures = failures.parse::<u32>();
    assert!(failures.is_ok_and(|failures| failures >= 8));
    connect(&world, &replica, &elsewhere).await;
    let dropped = page(&world, &key).closed_at_once(replica.public()).await;
    assert_eq!(dropped.code, 4402, "{dropped:?}");

    // So is the last one, if the issuer replaces it by a kind that Shopbell does not use.
    issuer.answer_with(ok(r#"{"keys":[{"kty":"EC","crv":"P-384","kid":"c"}]}"#));
    replica
        .logs("ERROR", "unusable", |found| found.contains("key 0"))
        .await;
    let dropped = page(&world, &elsewhere)
        .closed_at_once(replica.public())
        .await;
    assert_eq!(dropped.code, 4402, "{dropped:?}");
    let found = doctor(&replica).await.failed_with(1).stdout;
    assert!(
        found.contains("ERROR    keys.set: the key set has no usable key"),
        "{found}"
    );
    world.finish().await;
}

async fn doctor(replica: &Replica) -> Done {
    replica.shopbell(&["doctor", "--role", "gateway"]).await
}

#[tokio::test]
async fn a_key_set_that_is_too_old_is_not_used() {
    let world = World::new().await;
    let key = SigningKey::p256("a");
    let issuer = Issuer::start(&[&key]).await;
    let replica = replica_of(&world, &issuer).with("SHOPBELL_JWKS_STALE_SECONDS", 11);
    let replica = replica.start().await;
    issuer.answer_with(Answer::Nothing);
    replica.logs("WARN", "error", |_| true).await;
    replica.logs("ERROR", "error", |_| true).await;
    let closed = page(&world, &key).closed_at_once(replica.public()).await;
    let is_temporary = closed.retry_after_ms.is_some();
    assert_eq!((closed.code, is_temporary), (4402, true), "{closed:?}");
    assert_eq!(replica.metric("shopbell_jwks_keys").await, 0);
    eventually("the replica is unready", PATIENCE, async || {
        let ready = replica.get("/readyz").await;
        let is_keyless = ready.text().contains("no key for tokens");
        holds(ready.status == 503 && is_keyless, ready.text())
    })
    .await;
    issuer.publish(&[&key]);
    replica.ready().await;
    connect(&world, &replica, &key).await;
    world.finish().await;
}

#[tokio::test]
async fn the_key_set_is_fetched_only_from_a_server_with_a_good_certificate() {
    let world = World::new().await;
    let (key, folder) = (SigningKey::p256("a"), world.folder("key-set"));
    let set = serde_json::json!({"keys": [key.jwk()]}).to_string();
    std::fs::write(format!("{folder}/keys.json"), set).expect("a file can be written");
    let ca = Authority::new(world.folder("ca")).await;
    let other = Authority::new(world.folder("other-ca")).await;
    let issue = async |authority: &Authority, name, change: fn(&mut Content)| {
        let mut content = Content::default();
        change(&mut content);
        authority.issue(name, content).await
    };
    let trusted = ca.file().display().to_string();
    for (certificate, error) in [
        (
            issue(&other, "unknown", |_| ()).await,
            "no trusted CA has signed the certificate of the server; name the file of its CA with SSL_CERT_FILE",
        ),
        (ca.self_signed().await, "has signed itself"),
        (
            issue(&ca, "named", |it| it.names = "DNS:other.example").await,
            "is for another name",
        ),
        (
            issue(&ca, "expired", |it| it.until = "20210101000000Z").await,
            "has expired; renew it",
        ),
    ] {
        let issuer = TlsServer::of_files(&certificate, &folder).await;
        let url = format!("https://{}/keys.json", issuer.address);
        let settings = [
            ("SHOPBELL_JWKS_URL", &*url),
            ("SHOPBELL_MAX_SESSIONS", "100"),
            ("SSL_CERT_FILE", &trusted),
        ];
        let doctor = ["doctor", "--role", "gateway"];
        let found = world.shopbell_with(&settings, &doctor).await.stdout;
        let line = "keys.set: the key set of SHOPBELL_JWKS_URL cannot be fetched";
        assert!(found.contains(line) && found.contains(error), "{found}");
    }

    let good = issue(&ca, "good", |_| ()).await;
    let issuer = TlsServer::of_files(&good, &folder).await;
    let replica = world
        .replica()
        .without("SHOPBELL_JWT_HS256_SECRET")
        .with(
            "SHOPBELL_JWKS_URL",
            format!("https://{}/keys.json", issuer.address),
        )
        .with("SHOPBELL_JWKS_REFRESH_SECONDS", 1)
        .with("SSL_CERT_FILE", &trusted)
        .start()
        .await;
    connect(&world, &replica, &key).await;
    // The CA is replaced. The next fetch does not trust the server any more, and the last set stays in use.
    std::fs::copy(other.file(), ca.file()).expect("a file can be copied");
    replica
        .logs("WARN", "error", |found| found.contains("no trusted CA"))
        .await;
    connect(&world, &replica, &key).await;
    world.finish().await;
}

/// Runs the commands of docs/keys.md as they are written.
#[tokio::test]
async fn the_commands_of_the_page_make_a_key_set() {
    let world = World::new().await;
    let page_of_keys = include_str!("../../docs/keys.md");
    let section = page_of_keys.split("### A key set of your own\n").nth(1);
    let commands = section
        .and_then(|section| section.split("```sh\n").nth(1))
        .and_then(|block| block.split("```").next())
        .expect("the page has the commands");
    let script = world.file("commands", commands.as_bytes());
    let folder = std::path::PathBuf::from(format!("{script}-made"));
    std::fs::create_dir(&folder).expect("a folder can be made");
    let made = std::process::Command::new("sh")
        .args(["-eu", &script])
        .current_dir(&folder)
        .output()
        .expect("sh runs");
    assert!(made.status.success(), "{made:?}");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("it was made");

    let issuer = Issuer::start(&[]).await;
    issuer.answer_with(Answer::Response(200, String::new(), read("keys.json")));
    let replica = world
        .replica()
        .without("SHOPBELL_JWT_HS256_SECRET")
        .with("SHOPBELL_JWKS_URL", issuer.url())
        .start()
        .await;
    for name in ["rs256", "es256", "eddsa"] {
        let key = SigningKey::read(&format!("shop-{name}"), &read(&format!("{name}.pem")));
        connect(&world, &replica, &key).await;
    }
    assert_eq!(replica.metric("shopbell_jwks_keys").await, 3);
    world.finish().await;
}

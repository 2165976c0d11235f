//! The secret that signs tokens: how Shopbell reads it, and how operators replace it without losing
//! a client.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::support::{
    Closed, Event, Handshake, PATIENCE, Replica, Setup, World, eventually, run_any,
};

const MERCHANT: &str = "merchant-42";
const NEXT: &str = "the next secret, of thirty-two bytes or more";
const CURRENT_FILE: &str = "hs256-secret";
const PREVIOUS_FILE: &str = "hs256-secret-previous";

/// A secret as Kubernetes mounts it: `..data` links to a folder, and each file is a link through
/// it.
struct Mount {
    folder: PathBuf,
    versions: usize,
}

impl Mount {
    fn new(world: &World, name: &str, current: &str) -> Self {
        let mut mount = Self {
            folder: world.folder(name).into(),
            versions: 0,
        };
        mount.swap(current, None);
        symlink("..data/hs256-secret", mount.folder.join(CURRENT_FILE))
            .expect("a link can be made");
        symlink(
            "..data/hs256-secret-previous",
            mount.folder.join(PREVIOUS_FILE),
        )
        .expect("a link can be made");
        mount
    }

    /// Replaces all files at once.
    fn swap(&mut self, current: &str, previous: Option<&str>) {
        self.versions += 1;
        let (version, link) = (
            format!("..{}", self.versions),
            self.folder.join("..data_tmp"),
        );
        fs::create_dir(self.folder.join(&version)).expect("a folder can be made");
        for (name, secret) in [(CURRENT_FILE, Some(current)), (PREVIOUS_FILE, previous)] {
            let file = self.folder.join(&version).join(name);
            secret.into_iter().for_each(|secret| {
                fs::write(&file, format!("{secret}\n")).expect("a file is written")
            });
        }
        symlink(&version, &link).expect("a link can be made");
        fs::rename(link, self.folder.join("..data")).expect("a link can be replaced");
    }

    fn file(&self, name: &str) -> String {
        self.folder
            .join(name)
            .to_str()
            .expect("a plain name")
            .to_owned()
    }

    fn replica<'a>(&self, world: &'a World) -> Setup<'a> {
        let replica = world.replica().with("SHOPBELL_JWT_HS256_SECRET", "");
        let replica = replica.with("SHOPBELL_JWT_HS256_SECRET_FILE", self.file(CURRENT_FILE));
        replica.with(
            "SHOPBELL_JWT_HS256_SECRET_PREVIOUS_FILE",
            self.file(PREVIOUS_FILE),
        )
    }

    async fn serve(&self, world: &World) -> Replica {
        self.replica(world).start().await
    }
}

/// A page whose token is signed with this secret.
fn page(world: &World, secret: &str) -> Handshake {
    world
        .merchant(MERCHANT)
        .token(world.token(MERCHANT).secret(secret).sign())
        .by_subprotocol()
}

/// Waits until the replica accepts tokens of this secret. Until then it asks clients to come back.
async fn expect_taken(world: &World, replica: &Replica, secret: &str) {
    eventually("the replica accepts the new secret", PATIENCE, async || {
        let connected = page(world, secret).try_connect(replica.public()).await;
        connected
            .map(|merchant| merchant.vanish())
            .map_err(|instead| {
                assert!(instead.contains("4402"), "closed for good: {instead}");
                instead
            })
    })
    .await;
}

/// Waits until the replica rejects tokens of this secret.
async fn expect_dropped(world: &World, replica: &Replica, secret: &str) {
    eventually(
        "the replica drops the old secret",
        PATIENCE,
        async || match page(world, secret).try_connect(replica.public()).await {
            Ok(_) => Err("it is still accepted".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await;
    expect_asked_back(
        page(world, secret).closed_at_once(replica.public()).await,
        "token_key_unknown",
    );
}

#[track_caller]
fn expect_asked_back(closed: Closed, word: &str) {
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (4402, Some(word)),
        "{closed:?}"
    );
    assert!(closed.retry_after_ms.is_some(), "{closed:?}");
}

#[tokio::test]
async fn a_rotation_of_the_secret_closes_no_client_for_good() {
    let world = World::new().await;
    let old = world.secret().to_owned();
    let (mut first_mount, mut second_mount) =
        (Mount::new(&world, "a", &old), Mount::new(&world, "b", &old));
    let (first, second) = (
        first_mount.serve(&world).await,
        second_mount.serve(&world).await,
    );
    let publisher = world.publisher().await;
    let mut merchant = page(&world, &old).connect(first.public()).await;
    publisher.publish_all(Event::orders(MERCHANT, 2)).await;
    merchant.take_seqs(1..=2).await;

    // Every replica knows the new secret before anyone signs with it. No replica forgets the old
    // one yet.
    for (mount, replica) in [(&mut first_mount, &first), (&mut second_mount, &second)] {
        mount.swap(&old, Some(NEXT));
        expect_taken(&world, replica, NEXT).await;
        expect_taken(&world, replica, &old).await;
    }
    first_mount.swap(NEXT, Some(&old));
    publisher.publish_all(Event::orders(MERCHANT, 2)).await;
    merchant.take_seqs(3..=4).await;
    merchant.show(&world.token(MERCHANT).secret(NEXT)).await;
    merchant.show(&world.token(MERCHANT).secret(&old)).await;
    merchant.ping().await;
    merchant.vanish();
    world.expect_cursor(MERCHANT, "", 4).await;
    for secret in [&old, NEXT] {
        expect_taken(&world, &first, secret).await;
        expect_taken(&world, &second, secret).await;
    }

    publisher.publish_all(Event::orders(MERCHANT, 2)).await;
    let mut merchant = page(&world, &old).connect(second.public()).await;
    merchant.take_seqs(5..=6).await;
    for (mount, replica) in [(&mut first_mount, &first), (&mut second_mount, &second)] {
        mount.swap(NEXT, None);
        expect_dropped(&world, replica, &old).await;
        expect_taken(&world, replica, NEXT).await;
    }
    // The session of the old secret continues, and its client renews it with the new secret.
    merchant.show(&world.token(MERCHANT).secret(NEXT)).await;
    publisher.publish_all(Event::orders(MERCHANT, 1)).await;
    merchant.take_seqs(7..=7).await;
    merchant.leave().await;
    world.finish().await;
}

#[tokio::test]
async fn a_replica_that_lacks_the_key_yet_asks_a_page_to_come_back() {
    let world = World::new().await;
    let mut mount = Mount::new(&world, "late", world.secret());
    let replica = mount.serve(&world).await;
    let fresh = page(&world, NEXT);
    expect_asked_back(
        fresh.closed_at_once(replica.public()).await,
        "token_key_unknown",
    );
    let program = world
        .merchant(MERCHANT)
        .token(world.token(MERCHANT).secret(NEXT).sign());
    let refused = program.refused(replica.public()).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let tail = [
        "tail",
        "--url",
        &format!("ws://{}", replica.public()),
        "--until-caught-up",
    ];
    let mut shopbell = crate::support::process::shopbell(&world.environment());
    shopbell
        .args(tail)
        .env("SHOPBELL_TOKEN", world.token(MERCHANT).secret(NEXT).sign());
    let (tailed, ()) = tokio::join!(run_any(shopbell, PATIENCE), async {
        mount.swap(NEXT, None);
        expect_taken(&world, &replica, NEXT).await;
    });
    tailed.succeeded();
    world.finish().await;
}

#[tokio::test]
async fn a_key_file_that_cannot_be_used_keeps_the_last_key() {
    let world = World::new().await;
    let path = world.file("secret", world.secret().as_bytes());
    let replica = world.replica().with("SHOPBELL_JWT_HS256_SECRET", "");
    let replica = replica
        .with("SHOPBELL_JWT_HS256_SECRET_FILE", &path)
        .start()
        .await;
    let mut problems = vec![String::new()];
    for content in ["", "s3cr3t", "\n \n"] {
        fs::write(&path, content).expect("a file can be written");
        problems.push(new_problem(&world, &replica, &problems).await);
    }
    assert_eq!(problems[1], problems[3], "both contents are empty");
    fs::remove_file(&path).expect("a file can be removed");
    new_problem(&world, &replica, &problems).await;
    fs::write(&path, NEXT).expect("a file can be written");
    expect_taken(&world, &replica, NEXT).await;
    replica.logs("INFO", "has_previous", |_| true).await;
    world.finish().await;
}

/// The next problem with the key file, after the last of `known`. The last key is still valid.
async fn new_problem(world: &World, replica: &Replica, known: &[String]) -> String {
    let is_new = |problem: &str| known.last().is_none_or(|last| last != problem);
    let problem = replica.logs("ERROR", "problem", is_new).await;
    let merchant = page(world, world.secret());
    merchant.connect(replica.public()).await.leave().await;
    problem
}

#[tokio::test]
async fn both_keys_can_come_from_the_environment() {
    let world = World::new().await;
    let with_newline = format!("{NEXT}\n");
    let replica = world
        .replica()
        .with("SHOPBELL_JWT_HS256_SECRET", &with_newline);
    let replica = replica
        .with(
            "SHOPBELL_JWT_HS256_SECRET_PREVIOUS",
            format!("{}\r\n", world.secret()),
        )
        .start()
        .await;
    for secret in [NEXT, world.secret()] {
        page(&world, secret)
            .connect(replica.public())
            .await
            .leave()
            .await;
    }
    let current = replica
        .shopbell(&["token", "--subscriber", MERCHANT])
        .await
        .succeeded()
        .stdout;
    let alone = world
        .replica()
        .with("SHOPBELL_JWT_HS256_SECRET", NEXT)
        .start()
        .await;
    world
        .merchant(MERCHANT)
        .token(current.trim().to_owned())
        .connect(alone.public())
        .await
        .leave()
        .await;

    let output = replica
        .shopbell(&["config", "--output", "json"])
        .await
        .succeeded()
        .stdout;
    assert!(
        output.contains(r#""SHOPBELL_JWT_HS256_SECRET_PREVIOUS","value":"(secret)""#),
        "{output}"
    );
    let short = [
        ("SHOPBELL_JWT_HS256_SECRET_PREVIOUS", "s3cr3t"),
        ("SHOPBELL_JWT_HS256_SECRET", &" ".repeat(40)),
    ];
    let refused = world
        .shopbell_with(&short, &["config"])
        .await
        .failed_with(2);
    for (variable, _) in short {
        assert!(
            refused.stderr.contains(&format!("{variable} ")),
            "{refused:?}"
        );
    }
    assert!(!refused.stderr.contains("s3cr3t"), "{refused:?}");
    world.finish().await;
}

#[tokio::test]
async fn the_canary_signs_with_the_key_of_now() {
    let world = World::new().await;
    let old = world.secret().to_owned();
    let mut mount = Mount::new(&world, "canary", &old);
    let replica = mount
        .replica(&world)
        .with("SHOPBELL_CANARY_SECONDS", "1")
        .start()
        .await;
    let flies = async || {
        let flown = replica.metric("shopbell_canary_runs_total").await;
        replica
            .metric_reaches("shopbell_canary_runs_total", flown + 2)
            .await;
    };
    flies().await;
    mount.swap(NEXT, Some(&old));
    expect_taken(&world, &replica, NEXT).await;
    flies().await;
    // Without the old key. If the canary still signed with it, it would fail.
    mount.swap(NEXT, None);
    expect_dropped(&world, &replica, &old).await;
    flies().await;
    assert_eq!(replica.metric("shopbell_canary_failures_total").await, 0);
    replica.terminate().await;
    world.finish().await;
}

#[tokio::test]
async fn numeric_dates_may_have_fractions() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = || world.token(MERCHANT);
    for good in [
        token().moment("exp", 600.5),
        token().moment("exp", 600.0),
        token().moment("nbf", -10.25),
        token().moment("iat", -0.75),
    ] {
        let merchant = world.merchant(MERCHANT).token(good.sign());
        merchant.connect(replica.public()).await.leave().await;
        let mut page = merchant.by_subprotocol().connect(replica.public()).await;
        page.show(&good).await;
        page.ping().await;
        page.leave().await;
    }
    let expired = world
        .merchant(MERCHANT)
        .token(token().moment("exp", -60.5).sign())
        .by_subprotocol();
    assert_eq!(expired.closed_at_once(replica.public()).await.code, 4401);
    world.finish().await;
}

#[tokio::test]
async fn a_token_that_is_not_valid_yet_is_asked_to_come_back() {
    let world = World::new().await;
    let replica = world.serve().await;
    let early = world
        .merchant(MERCHANT)
        .token(world.token(MERCHANT).moment("nbf", 30.5).sign());
    let refused = early.refused(replica.public()).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(
        refused.text().contains("not valid yet") && refused.header("retry-after").is_some(),
        "{refused:?}"
    );
    expect_asked_back(
        early
            .by_subprotocol()
            .closed_at_once(replica.public())
            .await,
        "token_not_valid_yet",
    );
    // If the issuer's clock is ahead, its tokens begin in the future, and their `iat` shows by how
    // much.
    let skewed = world
        .token(MERCHANT)
        .moment("nbf", 50.5)
        .moment("iat", 50.5);
    world
        .merchant(MERCHANT)
        .token(skewed.sign())
        .connect(replica.public())
        .await
        .leave()
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_token_with_critical_extensions_is_refused() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world.token(MERCHANT);
    for refused in [
        token
            .clone()
            .header("crit", serde_json::json!(["b64"]))
            .header("b64", false),
        token
            .clone()
            .header("crit", serde_json::json!(["x-policy"]))
            .header("x-policy", "mfa"),
        token.clone().header("crit", serde_json::json!([])),
    ] {
        let merchant = world.merchant(MERCHANT).token(refused.sign());
        assert_eq!(merchant.refused(replica.public()).await.status, 401);
        assert_eq!(
            merchant
                .by_subprotocol()
                .closed_at_once(replica.public())
                .await
                .code,
            4501
        );
    }
    let harmless = token
        .header("kid", "2026-01")
        .header("typ", "at+jwt")
        .header("x5t", "y")
        .sign();
    world
        .merchant(MERCHANT)
        .token(harmless)
        .connect(replica.public())
        .await
        .leave()
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_line_break_after_a_setting_is_no_part_of_it() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_JWT_AUDIENCE", "shop\n")
        .with("SHOPBELL_JWT_ISSUER", "issuer \r\n");
    let replica = replica
        .with("SHOPBELL_BROADCAST_FEED", "all\n")
        .start()
        .await;
    let token = world
        .token(MERCHANT)
        .audience("shop")
        .issuer("issuer")
        .sign();
    world
        .merchant(MERCHANT)
        .token(token)
        .connect(replica.public())
        .await
        .leave()
        .await;
    let bad = [
        ("SHOPBELL_JWT_AUDIENCE", "sh\nop"),
        ("SHOPBELL_JWT_ISSUER", " \n"),
        ("SHOPBELL_AMQP_PREFIX", "\n"),
        ("SHOPBELL_ALLOWED_ORIGINS", "https://shop.example/\u{7}"),
    ];
    let refused = world.shopbell_with(&bad, &["config"]).await.failed_with(2);
    for (variable, _) in bad {
        assert!(
            refused.stderr.contains(&format!("{variable} ")),
            "{variable}: {refused:?}"
        );
    }
    world.finish().await;
}

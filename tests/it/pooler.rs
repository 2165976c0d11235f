//! PgBouncer between Shopbell and Postgres.

use serde::Deserialize;

use crate::support::{Done, Event, OWNER, PgBouncer, World};

const MERCHANT: &str = "merchant-42";

#[derive(Debug, Deserialize)]
struct Finding {
    check: String,
    state: String,
    found: String,
    remedy: Option<String>,
}

#[tokio::test]
async fn orders_work_through_pgbouncer_in_session_mode() {
    let world = World::new().await;
    // With its default configuration, and configured to drop the parameters that it would refuse.
    for more in [
        "",
        "ignore_startup_parameters = extra_float_digits, options",
    ] {
        let pooler = PgBouncer::start(&world, "session", more).await;
        let url = pooler.url(world.database_url());
        let owner = pooler.url(&world.database_url_of(OWNER));
        world
            .shopbell_with(&[("DATABASE_URL", &owner)], &["migrate"])
            .await
            .succeeded();
        let feed = format!("{MERCHANT}-{}", more.len());
        let replica = world.replica().with("DATABASE_URL", &url).start().await;
        let publisher = world.publisher().await;
        publisher.publish_all(Event::orders(&feed, 20)).await;
        world.expect_stored(&feed, 20).await;
        let mut merchant = world.merchant(&feed).connect(replica.public()).await;
        merchant.take_seqs(1..=20).await;
        publisher.publish_all(Event::orders(&feed, 20)).await;
        merchant.take_seqs(21..=40).await;
        merchant.ack(&feed, 40).await;
        world.expect_cursor(&feed, "", 40).await;

        let done = doctor(&world, &url).await.succeeded();
        assert_eq!(the(&done, "postgres.sessions").state, "ok");
        for guard in [
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "jit",
        ] {
            let finding = the(&done, &format!("postgres.session.{guard}"));
            assert_eq!(finding.state, "ok", "{finding:?}");
        }
        assert!(replica.terminate().await.success());
    }
    world.finish().await;
}

#[tokio::test]
async fn doctor_and_migrate_report_a_pooler_in_transaction_mode() {
    let world = World::new().await;
    let pooler = PgBouncer::start(&world, "transaction", "").await;
    let url = pooler.url(world.database_url());
    let done = doctor(&world, &url).await;
    let finding = the(&done, "postgres.sessions");
    assert!(finding.found.contains("pooler"), "{finding:?}");
    // The role has no settings, and PgBouncer may give one server session to several of ours.
    for guard in ["statement_timeout", "idle_in_transaction_session_timeout"] {
        let finding = the(&done, &format!("postgres.session.{guard}"));
        assert_eq!(finding.state, "warning", "{finding:?}");
        assert!(
            finding
                .remedy
                .is_some_and(|remedy| remedy.contains("alter role"))
        );
    }
    let done = world
        .shopbell_with(&[("DATABASE_URL", &url)], &["migrate"])
        .await
        .failed_with(1);
    assert!(done.stderr.contains("transaction mode"), "{done:?}");
    world.finish().await;
}

/// If PgBouncer can keep prepared statements in transaction mode, the service works. If not, doctor
/// reports the reason.
#[tokio::test]
async fn orders_work_in_transaction_mode_if_pgbouncer_supports_it() {
    let world = World::new().await;
    world.change_database(GUARDS).await;
    let can = PgBouncer::keeps_prepared_statements().await;
    // Fewer server processes than connections of the replica, so that they are shared.
    let more = if can {
        "default_pool_size = 4\nmax_prepared_statements = 200"
    } else {
        "default_pool_size = 4"
    };
    let pooler = PgBouncer::start(&world, "transaction", more).await;
    let url = pooler.url(world.database_url());
    let done = doctor(&world, &url).await;
    let finding = the(&done, "postgres.sessions");
    assert_eq!(
        finding.state,
        if can { "ok" } else { "error" },
        "{finding:?}"
    );
    for guard in [
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "jit",
    ] {
        let finding = the(&done, &format!("postgres.session.{guard}"));
        assert_eq!(finding.state, "ok", "{finding:?}");
    }
    if can {
        let replica = world.replica().with("DATABASE_URL", &url).start().await;
        let publisher = world.publisher().await;
        let merchants: Vec<String> = (0..10)
            .map(|number| format!("{MERCHANT}-{number}"))
            .collect();
        for feed in &merchants {
            publisher.publish_all(Event::orders(feed, 20)).await;
        }
        for feed in &merchants {
            world.expect_stored(feed, 20).await;
        }
        for feed in &merchants {
            let mut merchant = world.merchant(feed).connect(replica.public()).await;
            merchant.take_seqs(1..=20).await;
            publisher.publish_all(Event::orders(feed, 5)).await;
            merchant.take_seqs(21..=25).await;
            merchant.handle(feed, &[3]).await;
            merchant.next_state().await;
            merchant.ack(feed, 25).await;
            world.expect_cursor(feed, "", 25).await;
        }
        assert_eq!(
            replica.metric("shopbell_retries_total").await,
            0,
            "{}",
            replica.log()
        );
    }
    world.finish().await;
}

/// The settings that a session cannot keep in transaction mode.
const GUARDS: &str = "do $$ declare setting text; begin
    foreach setting in array array['statement_timeout = ''10s''', 'idle_in_transaction_session_timeout = ''10s''',
                                   'jit = off'] loop
        execute format('alter database %I set %s', current_database(), setting);
    end loop;
end $$";

async fn doctor(world: &World, url: &str) -> Done {
    let settings = [("DATABASE_URL", url), ("SHOPBELL_MAX_SESSIONS", "100")];
    world
        .shopbell_with(&settings, &["doctor", "--output", "json"])
        .await
}

#[track_caller]
fn the(done: &Done, check: &str) -> Finding {
    let mut findings: Vec<Finding> = done.json_lines();
    findings.retain(|finding| finding.check == check);
    assert_eq!(findings.len(), 1, "{check} in {done:?}");
    findings.remove(0)
}

//! The plans of the page query and of the append if Postgres believes that the tables are large.

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

/// Statistics of 100 million notifications in 1,000 feeds, on the few pages that exist.
const STATISTICS: &str = "
update pg_class set reltuples = 100000000, relpages = greatest(relpages, 1)
    where relname in ('notifications', 'notifications_pkey', 'notifications_identity_key');
update pg_class set reltuples = 1000, relpages = greatest(relpages, 1) where relname in ('feeds', 'feeds_pkey')";

/// Every new session of this database sends the plan of each statement to its client.
const EXPLAIN: &str = "do $$ declare setting text; begin
    foreach setting in array array['session_preload_libraries = auto_explain', 'auto_explain.log_min_duration = 0',
                                   'auto_explain.log_analyze = on', 'auto_explain.log_level = notice'] loop
        execute format('alter database %I set %s', current_database(), setting);
    end loop;
end $$";

#[tokio::test]
async fn a_page_of_a_large_table_is_read_by_index_without_compilation() {
    let world = World::new().await;
    let first = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 300))
        .await;
    world.expect_stored(MERCHANT, 300).await;
    assert!(first.terminate().await.success());
    world
        .change_database("analyze notifications; analyze feeds")
        .await;
    world.change_database(STATISTICS).await;
    world.change_database(EXPLAIN).await;

    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=300).await;
    let plan = eventually("the plan of a page query arrives", PATIENCE, async || {
        let log = replica.log();
        let plan = log.lines().find(|line| {
            line.contains("Query Text") && line.contains("(feed, after, rows, bytes, ordinal)")
        });
        plan.map(str::to_owned).ok_or(log)
    })
    .await;
    assert!(
        plan.contains("Index Scan using notifications_pkey"),
        "{plan}"
    );
    assert!(!plan.contains("Seq Scan on notifications"), "{plan}");
    assert!(!replica.log().contains("JIT:"), "{}", replica.log());

    // One event alone, and several together, because the first batch waits for the lock.
    let publisher = world.publisher().await;
    publisher.publish(&Event::order("merchant-43")).await;
    world.expect_stored("merchant-43", 1).await;
    let lock = world.lock_notifications().await;
    publisher
        .publish_all(Event::orders("merchant-43", 300))
        .await;
    drop(lock);
    world.expect_stored("merchant-43", 301).await;
    for parameters in ["array[c.last_seq]", "array_agg(c.last_seq"] {
        let append = eventually("the plan of an append arrives", PATIENCE, async || {
            let log = replica.log();
            let append = log
                .lines()
                .find(|line| line.contains("Query Text") && line.contains(parameters));
            append.map(str::to_owned).ok_or(log)
        })
        .await;
        // The second one would find earlier notifications of a feed whose row is missing.
        for index in ["notifications_identity_key", "notifications_pkey"] {
            assert!(append.contains(index), "{index}: {append}");
        }
        assert!(!append.contains("Seq Scan on notifications"), "{append}");
    }

    let huge = plan
        .split("cost=")
        .nth(1)
        .and_then(|cost| cost.split("..").nth(1)?.split('.').next()?.parse().ok());
    holds(huge.is_some_and(|cost: u64| cost > 100_000), &plan)
        .expect("Postgres would compile it by default");
    world.finish().await;
}

/// A plan of an empty table stays in use while the table grows.
#[tokio::test]
async fn appends_to_a_new_database_read_no_whole_table() {
    let world = World::new().await;
    world.change_database(EXPLAIN).await;
    // They wait for the replica, so that it stores large batches.
    world.shopbell(&["declare"]).await.succeeded();
    let merchants = (0..600).map(|number| Event::order(&format!("merchant-{number}")));
    world.publisher().await.publish_all(merchants).await;
    let replica = world.serve().await;
    let plan = eventually("the plan of an append arrives", PATIENCE, async || {
        let log = replica.log();
        let plan = log
            .lines()
            .find(|line| line.contains("Query Text") && line.contains("with counted as"));
        plan.map(str::to_owned).ok_or(log)
    })
    .await;
    assert!(plan.contains("notifications_identity_key"), "{plan}");
    replica
        .metric_reaches("shopbell_events_stored_total", 600)
        .await;
    let log = replica.log();
    assert!(!log.contains("Seq Scan on notifications"), "{log}");
    world.finish().await;
}

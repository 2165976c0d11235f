//! Indexes are built while the service runs, and the queries that need them use them.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

use crate::support::{PATIENCE, World, eventually, holds};

/// As before the newest migration.
const WITHOUT_INDEX: &str = "drop index notifications_created_at; delete from _sqlx_migrations where description = 'notifications by time'";

#[tokio::test]
async fn an_index_whose_build_failed_is_built_again_by_the_next_migration() {
    let world = World::new().await;
    world.change_database(WITHOUT_INDEX).await;
    let writer = world
        .lock("lock table notifications in row exclusive mode")
        .await;
    let mut connection = PgConnection::connect(world.database_url())
        .await
        .expect("a session");
    connection
        .execute("set lock_timeout = 100")
        .await
        .expect("a setting");
    let statement = "create index concurrently notifications_created_at on notifications using brin (created_at)";
    connection
        .execute(statement)
        .await
        .expect_err("a transaction writes");
    assert_eq!(valid_indexes(&world).await, 0);

    // The build waits for transactions, however long they take. A second migration that waits for
    // it does not end it.
    let settings = [("DATABASE_URL", world.database_url())];
    let both = async {
        tokio::join!(
            world.shopbell_with(&settings, &["migrate"]),
            world.shopbell(&["migrate"])
        )
    };
    let ending = async {
        let waiting = "select count(*) from pg_stat_activity
                       where wait_event_type = 'Lock' and state = 'active' and datname = current_database()";
        eventually("a build waits", PATIENCE, async || {
            let waiting = world.number(waiting).await;
            holds(waiting > 0, waiting)
        })
        .await;
        drop(writer);
    };
    let ((first, second), ()) = tokio::join!(both, ending);
    first.succeeded();
    second.succeeded();
    assert_eq!(valid_indexes(&world).await, 1);
    world.finish().await;
}

#[tokio::test]
async fn a_query_for_the_last_minutes_reads_few_pages_of_many() {
    let world = World::new().await;
    world
        .change_database(
            "insert into notifications (feed, seq, source, event_id, event_type, time, created_at)
                 select 'merchant-42', n, '/s', n::text, 't', now(), now() - (200000 - n) * interval '1 second'
                 from generate_series(1, 200000) n;
             insert into feeds (feed, last_seq, unread, unhandled) values ('merchant-42', 200000, 200000, 200000);
             analyze notifications",
        )
        .await;
    // Autovacuum does so while rows are added.
    world
        .number("select brin_summarize_new_values('notifications_created_at')::bigint")
        .await;
    let pages = world
        .number("select pg_relation_size('notifications') / 8192")
        .await;
    let mut connection = PgConnection::connect(world.database_url())
        .await
        .expect("a session");
    for query in queries_for_minutes() {
        let plan = format!("explain (analyze, buffers, format json) {query}");
        let plan: serde_json::Value = sqlx::query_scalar(sqlx::AssertSqlSafe(plan))
            .fetch_one(&mut connection)
            .await
            .expect("a plan");
        let read = ["Shared Hit Blocks", "Shared Read Blocks"]
            .map(|blocks| plan[0]["Plan"][blocks].as_u64());
        let read: u64 = read.into_iter().flatten().sum();
        assert!(read * 5 < pages, "{read} of {pages} pages: {query}");
    }
    world.finish().await;
}

/// The queries of the runbook over the last minutes of notifications.
fn queries_for_minutes() -> Vec<String> {
    let runbook = include_str!("../../docs/runbook.md");
    let commands = runbook
        .split("psql \"$DATABASE_URL\" ")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1));
    let queries: Vec<_> = commands
        .filter(|query| query.contains("minutes'") && query.contains("notifications"))
        .map(str::to_owned)
        .collect();
    assert!(!queries.is_empty(), "the runbook has such queries");
    queries
}

async fn valid_indexes(world: &World) -> u64 {
    world
        .number(
            "select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid
             where c.relname = 'notifications_created_at' and i.indisvalid",
        )
        .await
}

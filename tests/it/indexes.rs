//! The queries that need an index use it.

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use crate::support::World;

#[tokio::test]
async fn a_query_for_the_last_minutes_reads_few_pages_of_many() {
    let world = World::new().await;
    world
        .change_database(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, created_at)
                 select 'merchant-42', n, event_identity('merchant-42', '/s', n::text), '/s', n::text, 't', now(),
                        now() - (200000 - n) * interval '1 second'
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

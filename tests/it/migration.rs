//! `shopbell migrate` beside a running service, and on databases that it must refuse.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::time::Instant;

use crate::support::{PATIENCE, World};

/// An append waits as long as the migration waits for its lock, with a margin for a loaded machine.
const STALL_MAX: Duration = Duration::from_secs(3);
/// An append that takes longer has waited for the migration.
const STALLED: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_migration_behind_a_long_transaction_does_not_stall_appends() {
    let world = World::new().await;
    let url = database_of_the_second_migration(&world).await;
    let mut forgotten = PgConnection::connect(&format!("{url}?application_name=forgotten"))
        .await
        .expect("a session");
    forgotten
        .execute("begin; insert into feeds (feed) values ('held')")
        .await
        .expect("a lock on feeds");

    let settings = [("DATABASE_URL", url.as_str())];
    let migrating = world.shopbell_with(&settings, &["migrate"]);
    let appending = async {
        let mut ingest = PgConnection::connect(&url).await.expect("a session");
        let (begun, mut stalls) = (Instant::now(), Vec::new());
        while stalls.len() < 3 {
            assert!(
                begun.elapsed() < PATIENCE,
                "the migration tries again and again: {stalls:?}"
            );
            let append = Instant::now();
            let statement = "insert into feeds as f (feed, last_seq) values ('merchant-42', 1)
                             on conflict (feed) do update set last_seq = f.last_seq + 1";
            ingest.execute(statement).await.expect("an append");
            let took = append.elapsed();
            assert!(took < STALL_MAX, "an append was stalled for {took:?}");
            if took > STALLED {
                stalls.push(took);
            }
        }
        forgotten
            .execute("rollback")
            .await
            .expect("the long transaction ends");
    };
    let (migrated, ()) = tokio::join!(migrating, appending);
    let migrated = migrated.succeeded();
    assert!(
        migrated.stderr.contains("forgotten") && migrated.stderr.contains("idle in transaction"),
        "{migrated:?}"
    );
    assert!(!migrated.stderr.contains("insert into"), "{migrated:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_text_is_refused() {
    let world = World::new().await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let url = world.another_database();
        create_database(
            &world,
            &url,
            &format!("encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"),
        )
        .await;
        let settings = [("DATABASE_URL", url.as_str())];
        let done = world
            .shopbell_with(&settings, &["migrate"])
            .await
            .failed_with(1);
        assert!(
            done.stderr
                .contains(&format!("encoding of the database is {encoding}")),
            "{done:?}"
        );
        let doctor = world
            .shopbell_with(&settings, &["doctor", "--output", "json"])
            .await
            .failed_with(1);
        let finding = doctor
            .stdout
            .lines()
            .find(|line| line.contains("postgres.encoding"))
            .unwrap_or_default();
        assert!(
            finding.contains(r#""state":"error""#) && finding.contains(encoding),
            "{doctor:?}"
        );
    }
    world.finish().await;
}

/// A database of a version with only the first two migrations.
async fn database_of_the_second_migration(world: &World) -> String {
    let url = world.another_database();
    create_database(world, &url, "").await;
    let mut migrated = PgConnection::connect(world.database_url())
        .await
        .expect("the world's database");
    let mut connection = PgConnection::connect(&url).await.expect("the new database");
    let migrations = [
        include_str!("../../migrations/0001_feeds_notifications_cursors.sql"),
        include_str!("../../migrations/0002_lean_appends.sql"),
        "create table _sqlx_migrations (version bigint primary key, description text not null,
             installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
             execution_time bigint not null)",
    ];
    for statements in migrations {
        connection
            .execute(sqlx::raw_sql(statements))
            .await
            .expect("an old migration");
    }
    let query = "select version, description, checksum from _sqlx_migrations where version <= 2";
    let rows: Vec<(i64, String, Vec<u8>)> = sqlx::query_as(query)
        .fetch_all(&mut migrated)
        .await
        .expect("migrations");
    for (version, description, checksum) in rows {
        let query = "insert into _sqlx_migrations values ($1, $2, now(), true, $3, 0)";
        let query = sqlx::query(query)
            .bind(version)
            .bind(description)
            .bind(checksum);
        query.execute(&mut connection).await.expect("a row");
    }
    url
}

async fn create_database(world: &World, url: &str, how: &str) {
    let (_, name) = url.rsplit_once('/').expect("a URL with a database");
    let mut server = PgConnection::connect(world.database_url())
        .await
        .expect("the server");
    let statement = format!("create database \"{name}\" template template0 {how}");
    server
        .execute(sqlx::raw_sql(AssertSqlSafe(statement)))
        .await
        .expect("a new database");
}

#[tokio::test]
async fn every_index_on_text_is_in_byte_order() {
    let world = World::new().await;
    // After an upgrade of a locale, an index in its order is wrong.
    let others = "select count(*) from pg_index i
        join pg_class c on c.oid = i.indrelid and c.relnamespace = 'public'::regnamespace
        cross join lateral unnest(i.indcollation::oid[]) as key (collation_oid)
        where key.collation_oid not in (0, (select oid from pg_collation where collname = 'C'))";
    assert_eq!(
        world.number(others).await,
        0,
        "columns of indexes that are not collate \"C\""
    );
    world.finish().await;
}

//! `shopbell migrate` beside a running service, and on databases that it must refuse.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shopbell::store::{MIGRATIONS, migrate};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqlSafeStr as _};
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::support::{OWNER, PATIENCE, World, eventually, holds};

/// An append waits as long as the migration waits for its lock, with a margin for a loaded machine.
const STALL_MAX: Duration = Duration::from_secs(3);
/// An append that takes longer has waited for the migration.
const STALLED: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_migration_behind_a_long_transaction_does_not_stall_appends() {
    let world = World::new().await;
    let options: PgConnectOptions = world.database_url_of(OWNER).parse().expect("a URL");
    let mut forgotten = session(&options.clone().application_name("forgotten")).await;
    forgotten
        .execute("begin; insert into feeds (feed) values ('held')")
        .await
        .expect("a lock on feeds");

    let blockers = Blockers::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(blockers.clone()));
    let next_release = with_next_release("alter table feeds add column next bigint", false);
    let migrating = migrate(&options, &next_release);
    let appending = async {
        let mut ingest = session(&options).await;
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
    migrated.expect("the migration ends");
    let blockers = blockers.text();
    assert!(
        blockers.contains("forgotten") && blockers.contains("idle in transaction"),
        "{blockers}"
    );
    assert!(!blockers.contains("insert into"), "{blockers}");
    world.execute("delete from feeds").await;
    world.finish().await;
}

#[tokio::test]
async fn an_index_whose_build_failed_is_built_again_by_the_next_migration() {
    let world = World::new().await;
    let options: PgConnectOptions = world.database_url_of(OWNER).parse().expect("a URL");
    let next_index = "create index concurrently next_index on notifications (time)";
    let writer = world
        .lock("lock table notifications in row exclusive mode")
        .await;
    let mut connection = session(&options).await;
    connection
        .execute("set lock_timeout = 100")
        .await
        .expect("a setting");
    connection
        .execute(next_index)
        .await
        .expect_err("a transaction writes");
    assert_eq!(valid_indexes(&world).await, 0);

    // The build waits for transactions, however long they take, and the migration that waits for it does not end it.
    let next_release = with_next_release(next_index, true);
    let both = async {
        tokio::join!(
            migrate(&options, &next_release),
            migrate(&options, &next_release)
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
    first.expect("one builds the index");
    second.expect("the other finds it");
    assert_eq!(valid_indexes(&world).await, 1);
    world.finish().await;
}

#[tokio::test]
async fn a_database_with_an_edited_migration_is_refused() {
    let world = World::new().await;
    world
        .execute("update _sqlx_migrations set checksum = '' where version = 1")
        .await;
    let refused = world.shopbell(&["migrate"]).await.failed_with(1);
    assert!(refused.stderr.contains("migration 1 "), "{refused:?}");
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

/// The migrations of this binary, and one of the next release.
fn with_next_release(sql: &'static str, no_tx: bool) -> Migrator {
    let next = Migration::new(
        9999,
        "of the next release".into(),
        MigrationType::Simple,
        sql.into_sql_str(),
        no_tx,
    );
    Migrator::with_migrations(MIGRATIONS.iter().cloned().chain([next]).collect())
}

async fn session(options: &PgConnectOptions) -> PgConnection {
    PgConnection::connect_with(options)
        .await
        .expect("a session")
}

async fn valid_indexes(world: &World) -> u64 {
    world
        .number(
            "select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid
             where c.relname = 'next_index' and i.indisvalid",
        )
        .await
}

/// The field `blockers` of each log event.
#[derive(Clone, Default)]
struct Blockers(Arc<Mutex<String>>);

impl Blockers {
    fn text(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Blockers {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Blockers {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "blockers" {
            let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *text += &format!("{value:?}\n");
        }
    }
}

async fn create_database(world: &World, url: &str, how: &str) {
    let (_, name) = url.rsplit_once('/').expect("a URL with a database");
    let mut server = PgConnection::connect(&world.admin_database_url())
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

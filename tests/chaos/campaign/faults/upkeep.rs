//! The work of operators, done and not done: an update of the schema, and a disk that fills up.

use std::borrow::Cow;
use std::sync::Arc;

use fastrand::Rng;
use futures_util::FutureExt as _;
use shopbell::store::{MIGRATIONS, migrate as run_migrations};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, SqlSafeStr as _};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::Stage;
use crate::it::support::OWNER;

/// Bytes: more than any disk has free, and the limit of `scripts/services`.
const EVERYTHING: &str = "1000000000000000";
const USUAL: &str = "50000000";
/// Versions of migrations that no release uses.
const VERSIONS: std::ops::Range<i64> = 1_000_000..2_000_000;

/// RabbitMQ has too little free space, and blocks every publisher.
pub fn disk_alarm(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    let set = |stage: Arc<Stage>, limit| async move {
        stage
            .services
            .rabbitmqctl(["set_disk_free_limit", limit])
            .await;
    };
    Plan {
        hits: vec!["rabbitmq".to_owned()],
        target: "a disk alarm".to_owned(),
        total: false,
        begin: async move {
            set(Arc::clone(&stage), EVERYTHING).await;
            End::by(async move {
                let blocked = stage.load.blocked();
                set(stage, USUAL).await;
                blocked
            })
        }
        .boxed(),
    }
}

/// The schema of the next release, while the replicas are of this one. It has each kind of statement
/// that migrations/README.md allows.
pub fn migrate(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, version) = (Arc::clone(stage), random.i64(VERSIONS));
    Plan {
        hits: vec!["postgres".to_owned()],
        target: format!("migration {version}"),
        total: false,
        begin: async move {
            let owner = stage.world.database_url_of(OWNER);
            let options: PgConnectOptions = owner.parse().expect("a URL");
            // On a thread of its own, because sqlx's migrations cannot move between threads.
            let migrating = spawn_blocking(move || {
                Handle::current().block_on(run_migrations(&options, &next_release(version)))
            });
            let migrated = migrating.await.expect("a migration does not panic");
            let effect = u64::from(migrated.is_ok());
            if let Err(error) = migrated {
                stage.history.object(format!("a migration failed: {error}"));
            }
            End::by(async move { effect })
        }
        .boxed(),
    }
}

fn next_release(version: i64) -> Migrator {
    let columns: String = ["cursors", "feeds", "imports", "notifications", "marks"]
        .iter()
        .map(|table| format!("alter table {table} add column next_{version} bigint default 1;\n"))
        .collect();
    let functions = "do $$
        declare
            definition text;
        begin
            for definition in
                select pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace
            loop
                execute definition;
            end loop;
        end $$;";
    let index =
        format!("create index concurrently next_{version} on notifications (next_{version})");
    let next = |version, sql: String, no_tx| {
        let description = Cow::Borrowed("of the next release");
        let sql = AssertSqlSafe(sql).into_sql_str();
        Migration::new(version, description, MigrationType::Simple, sql, no_tx)
    };
    let all = MIGRATIONS.iter().cloned().chain([
        next(version, columns + functions, false),
        next(version + 1, index, true),
    ]);
    let mut migrator = Migrator::with_migrations(all.collect());
    // Those of earlier faults of the run.
    migrator.set_ignore_missing(true);
    migrator
}

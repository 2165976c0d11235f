//! Brings the schema up to date while replicas work on it.
//!
//! A migration waits for a lock only briefly, because everybody who needs the same table waits behind it. Then it gives way and is
//! tried again, and the log names who holds the lock.

use std::pin::pin;
use std::time::{Duration, Instant};

use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Executor as _, Row};

use super::{MIGRATIONS, StoreError, close, connect, expect_utf8, pooler};
use crate::retry::Backoff;

/// How long one attempt waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Postgres makes an autovacuum give way only to somebody who waits for `deadlock_timeout`: then an attempt waits this much longer
/// than that …
const AUTOVACUUM_MARGIN: Duration = Duration::from_millis(200);
/// … unless the administrator has set it higher than this.
const AUTOVACUUM_LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// How long all attempts together wait for locks.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How often a second connection looks after the session that migrates.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long that connection, or a session that has nothing to do, may be silent before the server counts as away. A statement of
/// a migration itself may take hours.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// SQLSTATE: the lock was not available in time; a deadlock.
const LOCK_NOT_AVAILABLE: [&str; 2] = ["55P03", "40P01"];

/// How an attempt ended.
enum Attempt {
    Done,
    /// Others hold a lock that it needs.
    Blocked(Vec<Blocker>),
}

/// Somebody who holds a lock.
struct Blocker {
    /// `pid 7 (user shop, psql, idle in transaction, …)`, without the text of a statement.
    who: String,
    is_autovacuum: bool,
}

/// Runs the migrations that are missing; returns how many there are. Safe to run from several places at once: sqlx takes an
/// advisory lock, for which the same limits hold.
pub async fn migrate(options: &PgConnectOptions) -> Result<usize, StoreError> {
    let (begun, mut backoff) = (Instant::now(), Backoff::default());
    let mut lock_timeout = LOCK_TIMEOUT;
    loop {
        let mut observer = connect(options, "shopbell-migrate").await?;
        let blockers = match attempt(options, &mut observer, lock_timeout).await? {
            Attempt::Done => break,
            Attempt::Blocked(blockers) => blockers,
        };
        let who = blockers
            .iter()
            .map(|blocker| blocker.who.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let who = if who.is_empty() {
            "a session that is gone"
        } else {
            &who
        };
        if begun.elapsed() >= PATIENCE {
            let waited_s = begun.elapsed().as_secs();
            return Err(StoreError::Migration(format!(
                "for {waited_s} s a lock was held by {who}; end that transaction, then run the migration again"
            )));
        }
        lock_timeout = match blockers.iter().any(|blocker| blocker.is_autovacuum) {
            true => timeout_of_autovacuum(&mut observer).await?,
            false => LOCK_TIMEOUT,
        };
        close(observer).await;
        let wait = backoff.next_wait();
        tracing::warn!(
            blockers = who,
            wait_ms = wait.as_millis(),
            "a migration waits for a lock; it lets others pass and tries again"
        );
        tokio::time::sleep(wait).await;
    }
    Ok(MIGRATIONS.iter().count())
}

/// Runs what is missing in a session of its own, which releases every lock when it ends.
async fn attempt(
    options: &PgConnectOptions,
    observer: &mut PgConnection,
    lock_timeout: Duration,
) -> Result<Attempt, StoreError> {
    let mut connection = connect(options, "shopbell-migrate").await?;
    let preparing = async {
        if pooler::share_a_server(observer, &mut connection).await? {
            let reason = "DATABASE_URL leads to a pooler in transaction mode, and a migration needs a session of its own: \
                          use the address of Postgres itself";
            return Err(StoreError::Migration(reason.into()));
        }
        // A limit of the role or the database is meant for short statements.
        let settings = format!(
            "set statement_timeout = 0; set lock_timeout = {}",
            lock_timeout.as_millis()
        );
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(settings)))
            .await?;
        let query =
            "select pg_backend_pid() as pid, current_setting('server_encoding') as encoding";
        let row = sqlx::query(query).fetch_one(&mut connection).await?;
        expect_utf8(row.try_get("encoding")?)?;
        Ok(row.try_get::<i32, _>("pid")?)
    };
    let pid = within_silence(preparing).await?;
    let (mut blockers, mut active_at) = (Vec::new(), Instant::now());
    let outcome = {
        let mut running = pin!(run(&mut connection));
        loop {
            if let Ok(outcome) = tokio::time::timeout(LOOK_INTERVAL, &mut running).await {
                break outcome;
            }
            let (is_active, seen) = within_silence(look_after(observer, pid)).await?;
            if is_active {
                active_at = Instant::now();
            } else if active_at.elapsed() > SILENCE_MAX {
                return Err(StoreError::Silent(SILENCE_MAX));
            }
            if !seen.is_empty() {
                blockers = seen;
            }
        }
    };
    close(connection).await;
    match outcome {
        Ok(()) => Ok(Attempt::Done),
        Err(error) if is_locked_out(&error) => Ok(Attempt::Blocked(blockers)),
        Err(error) => Err(StoreError::Migration(error.to_string())),
    }
}

/// Runs what is missing. The migrations without a transaction, which build an index beside the service, come last.
async fn run(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let (concurrent, others): (Vec<_>, Vec<_>) = MIGRATIONS
        .iter()
        .cloned()
        .partition(|migration| migration.no_tx);
    let mut others = Migrator::with_migrations(others);
    others.set_ignore_missing(true);
    others.run(&mut *connection).await?;
    let applied = connection
        .list_applied_migrations(MIGRATIONS.table_name.as_ref())
        .await?;
    let is_missing = |migration: &&Migration| {
        applied
            .iter()
            .all(|applied| applied.version != migration.version)
    };
    let missing: Vec<&Migration> = concurrent.iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // It waits for every transaction that is open, and blocks none of them.
    connection.execute("set lock_timeout = 0").await?;
    // Another migration may be building it.
    connection.lock().await?;
    drop_failed_indexes(connection, &missing).await?;
    MIGRATIONS.run(connection).await
}

/// Drops what an earlier build left that failed: an invalid index, which slows down writes and serves no query.
async fn drop_failed_indexes(
    connection: &mut PgConnection,
    migrations: &[&Migration],
) -> Result<(), MigrateError> {
    let query = "select c.relname::text from pg_index i
                 join pg_class c on c.oid = i.indexrelid and c.relnamespace = current_schema()::regnamespace
                 where not i.indisvalid";
    let names: Vec<String> = sqlx::query_scalar(query)
        .fetch_all(&mut *connection)
        .await?;
    let is_ours = |name: &&String| {
        migrations
            .iter()
            .any(|migration| migration.sql.as_str().contains(name.as_str()))
    };
    for name in names.iter().filter(is_ours) {
        tracing::warn!(
            index = name,
            "the build of an index failed before; it is built again"
        );
        let statement = format!("drop index concurrently \"{name}\"");
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(statement)))
            .await?;
    }
    Ok(())
}

fn is_locked_out(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| LOCK_NOT_AVAILABLE.contains(&&*code))
}

/// Whether the session of this process works on a statement, and who holds the locks that it waits for.
async fn look_after(
    observer: &mut PgConnection,
    pid: i32,
) -> Result<(bool, Vec<Blocker>), StoreError> {
    // A user who may not see others' sessions sees no more than their user. A prepared transaction has the pid 0.
    let query = sqlx::query(
        "select coalesce((select state = 'active' from pg_stat_activity where pid = $1), false) as is_active,
                b.pid = 0 as is_prepared, coalesce(a.backend_type = 'autovacuum worker', false) as is_autovacuum,
                format('pid %s (%s)', b.pid, concat_ws(', ',
                    'user ' || a.usename, nullif(a.application_name, ''), a.backend_type, a.state,
                    'statement began at ' || to_char(a.query_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                    'transaction open for ' || extract(epoch from clock_timestamp() - a.xact_start)::bigint || ' s')) as who
         from (values (1)) one (one)
         left join lateral unnest(pg_blocking_pids($1)) b (pid) on true
         left join pg_stat_activity a on a.pid = b.pid",
    );
    let rows = query.bind(pid).fetch_all(observer).await?;
    let (mut is_active, mut blockers) = (false, Vec::new());
    for row in &rows {
        is_active = row.try_get("is_active")?;
        if let Some(is_prepared) = row.try_get("is_prepared")? {
            let who = if is_prepared {
                "a prepared transaction (pg_prepared_xacts)".into()
            } else {
                row.try_get("who")?
            };
            blockers.push(Blocker {
                who,
                is_autovacuum: row.try_get("is_autovacuum")?,
            });
        }
    }
    Ok((is_active, blockers))
}

async fn timeout_of_autovacuum(observer: &mut PgConnection) -> Result<Duration, StoreError> {
    let query = sqlx::query_scalar(
        "select setting::bigint from pg_settings where name = 'deadlock_timeout'",
    );
    let asking = async { Ok(query.fetch_one(observer).await?) };
    let deadlock_timeout_ms: i64 = within_silence(asking).await?;
    let deadlock_timeout = Duration::from_millis(deadlock_timeout_ms.unsigned_abs());
    let wanted = deadlock_timeout.saturating_add(AUTOVACUUM_MARGIN);
    Ok(if wanted > AUTOVACUUM_LOCK_TIMEOUT_MAX {
        LOCK_TIMEOUT
    } else {
        wanted.max(LOCK_TIMEOUT)
    })
}

async fn within_silence<T>(
    asking: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(SILENCE_MAX, asking)
        .await
        .map_err(|_| StoreError::Silent(SILENCE_MAX))?
}

//! Brings the schema up to date while replicas work on it.
//!
//! A migration waits for a lock only briefly, because every other statement on that table waits
//! behind it. Then it lets them pass and tries again, and the log names the sessions that hold the
//! lock.

use std::pin::pin;
use std::time::{Duration, Instant};

use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Executor as _};

use super::{StoreError, close, connect, expect_utf8, pooler};
use crate::retry::Backoff;

/// How long one attempt waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Postgres cancels an autovacuum only for a session that has waited for `deadlock_timeout`. Behind
/// an autovacuum, an attempt waits this much longer than `deadlock_timeout`.
const AUTOVACUUM_MARGIN: Duration = Duration::from_millis(200);
/// If `deadlock_timeout` and the margin are longer than this, an attempt waits [`LOCK_TIMEOUT`].
const AUTOVACUUM_LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// How long all attempts together wait for locks.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Interval at which a second connection observes the session that migrates.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(200);
/// If that connection, or a session without a running statement, is silent for longer, the server
/// counts as away. A statement of a migration may take hours.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// SQLSTATE: the lock was not available in time; a deadlock.
const LOCK_NOT_AVAILABLE: [&str; 2] = ["55P03", "40P01"];

/// The result of an attempt.
enum Attempt {
    Done,
    /// Others hold a lock that it needs.
    Blocked(Vec<Blocker>),
}

/// A session, or a prepared transaction, that holds a lock.
struct Blocker {
    /// `pid 7 (user shop, psql, idle in transaction, …)`, without the text of a statement.
    session: String,
    is_autovacuum: bool,
}

/// Runs the migrations that the database lacks; returns how many this binary has.
///
/// Several may run at once: sqlx takes an advisory lock, and the same time limits apply to it.
pub async fn migrate(
    options: &PgConnectOptions,
    migrations: &Migrator,
) -> Result<usize, StoreError> {
    let (begun, mut backoff) = (Instant::now(), Backoff::default());
    let mut lock_timeout = LOCK_TIMEOUT;
    loop {
        let mut observer = connect(options, "shopbell-migrate").await?;
        let blockers = match attempt(options, migrations, &mut observer, lock_timeout).await? {
            Attempt::Done => break,
            Attempt::Blocked(blockers) => blockers,
        };
        let sessions: Vec<_> = blockers.iter().map(|blocker| &*blocker.session).collect();
        let sessions = if sessions.is_empty() {
            "a session that has ended".to_owned()
        } else {
            sessions.join(", ")
        };
        if begun.elapsed() >= PATIENCE {
            let waited_s = begun.elapsed().as_secs();
            return Err(StoreError::Migration(format!(
                "{sessions} held a lock for {waited_s} s; end that transaction, then run the migration again"
            )));
        }
        lock_timeout = match blockers.iter().any(|blocker| blocker.is_autovacuum) {
            true => timeout_of_autovacuum(&mut observer).await?,
            false => LOCK_TIMEOUT,
        };
        close(observer).await;
        let wait = backoff.next_wait();
        tracing::warn!(
            blockers = sessions,
            wait_ms = wait.as_millis(),
            "the migration did not get a lock and tries again"
        );
        tokio::time::sleep(wait).await;
    }
    Ok(migrations.iter().count())
}

/// Runs the missing migrations in a session of its own, which releases every lock when it ends.
async fn attempt(
    options: &PgConnectOptions,
    migrations: &Migrator,
    observer: &mut PgConnection,
    lock_timeout: Duration,
) -> Result<Attempt, StoreError> {
    let mut connection = connect(options, "shopbell-migrate").await?;
    let pid = within_silence(prepare(observer, &mut connection, lock_timeout)).await?;
    let (mut blockers, mut active_at) = (Vec::new(), Instant::now());
    let outcome = {
        let mut running = pin!(run(&mut connection, migrations));
        loop {
            if let Ok(outcome) = tokio::time::timeout(OBSERVE_INTERVAL, &mut running).await {
                break outcome;
            }
            let (is_active, seen) = within_silence(observe(observer, pid)).await?;
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

/// Sets the limits of the session that migrates, and returns its pid.
async fn prepare(
    observer: &mut PgConnection,
    connection: &mut PgConnection,
    lock_timeout: Duration,
) -> Result<i32, StoreError> {
    if pooler::share_a_server(observer, connection).await? {
        let reason = "DATABASE_URL leads to a pooler in transaction mode, but a migration needs a \
                      session of its own: use the address of Postgres itself";
        return Err(StoreError::Migration(reason.into()));
    }
    // A limit of the role or the database is meant for short statements.
    let lock_timeout_ms = lock_timeout.as_millis();
    let settings = format!("set statement_timeout = 0; set lock_timeout = {lock_timeout_ms}");
    let settings = sqlx::raw_sql(AssertSqlSafe(settings));
    connection.execute(settings).await?;
    let query = "select pg_backend_pid(), current_setting('server_encoding')";
    let (pid, encoding) = sqlx::query_as(query).fetch_one(connection).await?;
    expect_utf8(encoding)?;
    Ok(pid)
}

/// Runs the missing migrations. Those without a transaction, which build an index while the service
/// runs, come last.
async fn run(connection: &mut PgConnection, migrations: &Migrator) -> Result<(), MigrateError> {
    let (concurrent, others): (Vec<_>, Vec<_>) = migrations
        .iter()
        .cloned()
        .partition(|migration| migration.no_tx);
    let mut others = Migrator::with_migrations(others);
    others.set_ignore_missing(true);
    others.run(&mut *connection).await?;
    let applied = connection
        .list_applied_migrations(migrations.table_name.as_ref())
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
    // The build waits for every open transaction, and blocks none of them.
    connection.execute("set lock_timeout = 0").await?;
    // Another session may be building the index.
    connection.lock().await?;
    drop_failed_indexes(connection, &missing).await?;
    migrations.run(connection).await
}

/// Drops the invalid index of a build that failed: it slows down writes and serves no query.
/// `drop index concurrently` waits for open transactions.
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
            "an earlier build of this index failed; it is built again"
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

/// One row of [`observe`], for each blocker, or one with nulls if there is none.
#[derive(sqlx::FromRow)]
struct Observed {
    is_active: bool,
    is_prepared: Option<bool>,
    is_autovacuum: bool,
    session: String,
}

/// Returns whether the session of this pid runs a statement, and which sessions block it. Reads the
/// statistics views only. Without `pg_read_all_stats`, the user of another session is visible, but
/// not its state.
async fn observe(
    observer: &mut PgConnection,
    pid: i32,
) -> Result<(bool, Vec<Blocker>), StoreError> {
    // pg_blocking_pids() returns 0 for a prepared transaction.
    let rows: Vec<Observed> = sqlx::query_as(
        "select coalesce((select state = 'active' from pg_stat_activity where pid = $1), false) as is_active,
                b.pid = 0 as is_prepared, coalesce(a.backend_type = 'autovacuum worker', false) as is_autovacuum,
                format('pid %s (%s)', b.pid, concat_ws(', ',
                    'user ' || a.usename, nullif(a.application_name, ''), a.backend_type, a.state,
                    'statement began at ' || to_char(a.query_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                    'transaction open for ' || extract(epoch from clock_timestamp() - a.xact_start)::bigint || ' s')) as session
         from (values (1)) one (one)
         left join lateral unnest(pg_blocking_pids($1)) b (pid) on true
         left join pg_stat_activity a on a.pid = b.pid",
    )
    .bind(pid)
    .fetch_all(observer)
    .await?;
    let is_active = rows.iter().any(|row| row.is_active);
    let blocker = |row: Observed| {
        let session = match row.is_prepared? {
            true => "a prepared transaction (pg_prepared_xacts)".into(),
            false => row.session,
        };
        Some(Blocker {
            session,
            is_autovacuum: row.is_autovacuum,
        })
    };
    Ok((is_active, rows.into_iter().filter_map(blocker).collect()))
}

/// The lock timeout of an attempt that an autovacuum blocked before.
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

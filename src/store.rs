//! Postgres, the only truth: every SQL statement of the service is in this folder, as plain functions.
//!
//! In come events to store, feeds to read, acks and what people say; out go numbers, pages and cursors. Knows neither AMQP nor sockets.
//! Every write is a single statement, so a caller that is dropped halfway leaves no open transaction behind.

pub mod append;
pub mod canaries;
pub mod checkup;
pub mod cursors;
pub mod damage;
pub mod dead_letters;
pub mod epoch;
pub mod history;
pub mod holds;
pub mod imports;
pub mod inspect;
pub mod marks;
mod migration;
pub mod pages;
mod pooler;
pub mod pools;
pub mod traces;
pub mod undelivered;

use std::sync::LazyLock;
use std::time::Duration;

pub use self::migration::migrate;
use self::pools::Pool;
use crate::model::feed::{Seq, Version};
use crate::model::notification::Progress;
use sqlx::Row;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Postgres};

/// The one encoding that holds every character of an event.
const UTF8: &str = "UTF8";

/// The migrations of this binary. A newer schema is accepted, because migrations only add.
pub static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!();
    migrations.set_ignore_missing(true);
    migrations
});

/// An answer that takes longer never comes: the connection is half open. A little above the statement timeout of the pools.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a command waits until it is connected, and for the end of its connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The same for the check that probes ask for, which reads a few rows.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// `require_epoch` in `migrations/` raises it.
const EPOCH_OVER: &str = "SB001";

/// What went wrong with the database, told apart by what callers do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away or busy: the same call may succeed later.
    #[error("the database did not answer: {0}")]
    Away(#[source] sqlx::Error),
    /// The database took the statement and said nothing: whether it ran is not known.
    #[error("the database did not answer within {0:?}")]
    Silent(Duration),
    /// Postgres refuses a value of this very call: it will refuse it again.
    #[error("the database refused a value: {0}")]
    Refused(#[source] sqlx::Error),
    /// Postgres cannot read a row, or we cannot: it fails again until somebody repairs that row.
    #[error("stored rows are damaged: {0}")]
    Damaged(#[source] sqlx::Error),
    /// The database answers, and takes no writes.
    #[error("the database takes no writes: {0}; DATABASE_URL must lead to the primary")]
    ReadOnly(&'static str),
    /// The database cannot hold every text.
    #[error(
        "the encoding of the database is {0}, not UTF8; create one with `create database ... encoding 'UTF8' template template0`"
    )]
    Encoding(String),
    /// The epoch of the call is over: what it names may be something else now.
    #[error("the epoch is over: {0}")]
    EpochOver(#[source] sqlx::Error),
    /// A migration could not be run.
    #[error("the database could not be migrated: {0}")]
    Migration(String),
    /// The schema is not the one this binary was built for.
    #[error("the database schema is not ready: {0}; run `shopbell migrate`")]
    Schema(String),
}

impl StoreError {
    /// Whether another transaction held a lock for longer than the statement waits.
    pub fn is_lock_timeout(&self) -> bool {
        let Self::Away(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().as_deref() == Some("55P03")
    }

    /// Whether a write may have failed because of one value or row alone: refused, damaged, locked by another transaction (55P03,
    /// 40P01, 40001), or too slow (57014). Other errors, such as a full disk, concern every row.
    pub fn may_concern_one_row(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Damaged(_) => true,
            Self::Away(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| matches!(&*code, "55P03" | "40P01" | "40001" | "57014")),
            _ => false,
        }
    }

    /// Whether Postgres itself refused the statement, so that a part of its values may succeed. A connection that was lost or
    /// ended (SQLSTATE classes 08 and 57P), or that there is none of (53300), concerns all of them.
    pub fn may_concern_one_value(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Away(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
                !code.starts_with("08") && !code.starts_with("57P") && code != "53300"
            }),
            _ => false,
        }
    }
}

impl StoreError {
    /// A read fails because of what is stored in one of its rows.
    pub fn blames_rows(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Refused(_))
    }

    /// The same, or it took too long for one statement: reading less at a time may help.
    pub fn may_pass_in_parts(&self) -> bool {
        match self {
            Self::Away(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code == "57014")
            }
            error => error.blames_rows(),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    /// SQLSTATE classes 22 (data exception), 23 (constraint) and 54 (limit exceeded) blame a value; XX (internal error, corrupted
    /// data or index) and 58 (a file cannot be read) what is stored, like a value that we cannot decode. All else passes.
    fn from(error: sqlx::Error) -> Self {
        let code = match &error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                return Self::Damaged(error);
            }
            sqlx::Error::Database(database) => database.code().map(|code| code.into_owned()),
            _ => None,
        };
        match code.as_deref().and_then(|code| code.get(..2)) {
            _ if code.as_deref() == Some(EPOCH_OVER) => Self::EpochOver(error),
            Some("22" | "23" | "54") => Self::Refused(error),
            Some("XX" | "58") => Self::Damaged(error),
            _ => Self::Away(error),
        }
    }
}

/// A connection of its own for a command, which has [`set_up`](pools::set_up) no more than the caller wants. Not from a pool, which would
/// hide why the database cannot be reached behind its own timeout.
async fn connect(options: &PgConnectOptions, name: &str) -> Result<PgConnection, StoreError> {
    let options = pools::session_options(options).application_name(name);
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(StoreError::Silent(CONNECT_TIMEOUT)),
    }
}

/// Closes it; nobody waits for a server that is silent.
async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
}

/// Checks that the database answers, takes writes, holds every text and has every migration this binary knows (a newer schema
/// is fine: migrations only add, so an old replica works on while a new one rolls out).
pub async fn check(pool: &Pool) -> Result<(), StoreError> {
    let mut lease = match pool.acquire().await {
        Err(sqlx::Error::PoolTimedOut) if pool.leads_to_a_standby() => {
            return Err(StoreError::ReadOnly("the server is a standby"));
        }
        acquired => acquired?,
    };
    match tokio::time::timeout(CHECK_TIMEOUT, check_on(lease.connection())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            match &error {
                StoreError::Away(error) => lease.failed(error),
                StoreError::ReadOnly(_) => lease.distrust(),
                _ => {}
            }
            Err(error)
        }
        Err(_) => {
            lease.close();
            Err(StoreError::Silent(CHECK_TIMEOUT))
        }
    }
}

async fn check_on(connection: &mut PgConnection) -> Result<(), StoreError> {
    let query = sqlx::query(
        "select pg_is_in_recovery() as in_recovery, current_setting('transaction_read_only')::boolean as read_only,
                current_setting('server_encoding') as encoding",
    );
    let row = query.fetch_one(&mut *connection).await?;
    expect_utf8(row.try_get("encoding")?)?;
    if row.try_get("in_recovery")? {
        return Err(StoreError::ReadOnly("the server is a standby"));
    }
    if row.try_get("read_only")? {
        return Err(StoreError::ReadOnly("transactions are read-only"));
    }
    let applied = applied(connection).await?;
    match MIGRATIONS
        .iter()
        .find(|known| !applied.contains(&known.version))
    {
        Some(missing) => Err(StoreError::Schema(format!(
            "migration {} is missing",
            missing.version
        ))),
        None => Ok(()),
    }
}

/// Refuses a database that cannot hold every text.
fn expect_utf8(encoding: String) -> Result<(), StoreError> {
    match encoding.as_str() {
        UTF8 => Ok(()),
        _ => Err(StoreError::Encoding(encoding)),
    }
}

/// The migrations that the database has.
const APPLIED: &str = "select version from _sqlx_migrations order by version";

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, StoreError> {
    let query = sqlx::query_scalar(APPLIED);
    query.fetch_all(connection).await.map_err(|error| {
        match error.as_database_error().and_then(|error| error.code()) {
            Some(code) if code == "42P01" => StoreError::Schema("it was never migrated".into()),
            _ => StoreError::from(error),
        }
    })
}

/// Runs a statement and gives its rows. If no answer comes in time, the connections are replaced: sqlx itself would wait for as
/// long as the kernel does.
async fn rows(
    pool: &Pool,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, StoreError> {
    rows_within(ANSWER_TIMEOUT, pool, query).await
}

/// The same for what is not worth a longer wait.
async fn rows_within(
    limit: Duration,
    pool: &Pool,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, StoreError> {
    let mut lease = pool.acquire().await?;
    match tokio::time::timeout(limit, query.fetch_all(lease.connection())).await {
        Ok(Ok(rows)) => Ok(rows),
        Ok(Err(error)) => {
            lease.failed(&error);
            Err(error.into())
        }
        Err(_) => {
            // Postgres itself would have ended the statement by ANSWER_TIMEOUT: nobody is there.
            if limit >= ANSWER_TIMEOUT {
                lease.distrust();
            } else {
                lease.close();
            }
            Err(StoreError::Silent(limit))
        }
    }
}

/// How far its import was when a notification was stored; `None` for one that tells of none.
fn progress(row: &PgRow) -> Result<Option<Progress>, sqlx::Error> {
    let (done, failed) = (
        row.try_get::<Option<i64>, _>("import_done")?,
        row.try_get::<Option<i64>, _>("import_failed")?,
    );
    let total = row.try_get("import_total")?;
    Ok(done.zip(failed).map(|(done, failed)| Progress {
        done,
        failed,
        total,
    }))
}

/// A number from the database; the schema's checks keep it from being negative.
fn version(number: i64) -> Result<Version, sqlx::Error> {
    Version::new(number).ok_or_else(|| sqlx::Error::Decode("a negative version".into()))
}

/// The same.
fn seq(number: i64) -> Result<Seq, sqlx::Error> {
    Seq::new(number).ok_or_else(|| sqlx::Error::Decode("a negative seq".into()))
}

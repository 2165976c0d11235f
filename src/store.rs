//! Every SQL statement of the service, as plain functions. Postgres is the only source of truth.
//!
//! Events, acks, marks and requests for pages come in; numbers, pages and cursors go out. Nothing
//! here uses AMQP or sockets. Every write is a single statement, so a caller that is dropped halfway
//! leaves no open transaction.
//!
//! The doc comment of each statement lists its locks and indexes. Rows are derived (`FromRow`). The
//! functions that statements call are in `migrations/`; `migrations/README.md` lists them.

pub mod append;
pub mod canaries;
pub mod certificates;
pub mod checkup;
pub mod cursors;
pub mod damage;
pub mod dead_letters;
pub mod epoch;
pub mod forgetting;
pub mod history;
pub mod holds;
pub mod imports;
pub mod inspect;
pub mod marks;
mod migration;
pub mod pages;
pub mod pool;
mod pooler;
pub mod pools;
pub mod presence;
pub mod receipts;
pub mod retention;
pub mod settlements;
pub mod traces;
pub mod undelivered;
pub mod verify;

use std::sync::LazyLock;
use std::time::Duration;

pub use self::migration::migrate;
use self::pool::Pool;
use crate::model::feed::{Seq, Version};
use crate::model::notification::Progress;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, FromRow, Postgres};

/// The only encoding that has every character of an event.
const UTF8: &str = "UTF8";

/// The migrations of this binary. A newer schema is accepted, because migrations only add.
pub static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!();
    migrations.set_ignore_missing(true);
    migrations
});

/// After this a connection counts as half open. Slightly longer than the statement timeout of the
/// pools.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// Longest wait of a command for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait of a command for the end of its connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time of [`check`], which reads a few rows.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// SQLSTATE of `require_epoch` in `migrations/`.
const EPOCH_OVER: &str = "SB001";

/// An error of the database: one variant for each reaction of the callers.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away or busy. The same call may succeed later.
    #[error("the database did not answer: {0}")]
    Away(#[source] sqlx::Error),
    /// No answer arrived, so it is unknown whether the statement ran.
    #[error("the database did not answer within {0:?}")]
    Silent(Duration),
    /// Postgres refuses a value of this call, and will refuse it again.
    #[error("the database refused a value: {0}")]
    Refused(#[source] sqlx::Error),
    /// Postgres cannot read a row, or we cannot decode it. It fails again until the row is repaired.
    #[error("stored rows are damaged: {0}")]
    Damaged(#[source] sqlx::Error),
    /// The database answers, but takes no writes.
    #[error("the database takes no writes: {0}; DATABASE_URL must lead to the primary")]
    ReadOnly(&'static str),
    /// The encoding of the database lacks characters.
    #[error(
        "the encoding of the database is {0}, not UTF8; create one with `create database ... encoding 'UTF8' template template0`"
    )]
    Encoding(String),
    /// The epoch of the call is over, so its numbers may be those of other notifications.
    #[error("the epoch is over: {0}")]
    EpochOver(#[source] sqlx::Error),
    /// A migration failed.
    #[error("the database could not be migrated: {0}")]
    Migration(String),
    /// The schema is not the one that this binary needs.
    #[error("the database schema is not ready: {0}; run `shopbell migrate`")]
    Schema(String),
}

impl StoreError {
    /// Returns whether another transaction held a lock for longer than the statement waits.
    pub fn is_lock_timeout(&self) -> bool {
        self.away_code().is_some_and(|code| code == "55P03")
    }

    /// Returns whether a write may have failed because of one value or one row.
    ///
    /// Then the value is refused, the row is damaged or locked by another transaction (55P03, 40P01,
    /// 40001), or the statement took too long (57014). Other errors, such as a full disk, concern
    /// every row.
    pub fn may_concern_one_row(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Damaged(_) => true,
            _ => self
                .away_code()
                .is_some_and(|code| matches!(&*code, "55P03" | "40P01" | "40001" | "57014")),
        }
    }

    /// Returns whether Postgres itself refused the statement, so that some of its values may succeed.
    ///
    /// A connection that was lost or ended (SQLSTATE classes 08 and 57P), or that is missing (53300),
    /// concerns all values.
    pub fn may_concern_one_value(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            _ => self.away_code().is_some_and(|code| {
                !code.starts_with("08") && !code.starts_with("57P") && code != "53300"
            }),
        }
    }

    /// Returns whether a write may be stored although it failed: its reply was lost.
    pub fn may_be_stored(&self) -> bool {
        matches!(self, Self::Away(_)) && !self.may_concern_one_value()
    }

    /// Returns whether a read failed because of the content of one of its rows.
    pub fn blames_rows(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Refused(_))
    }

    /// Returns whether a read may succeed with fewer rows: one of its rows is to blame, or it took
    /// too long (57014).
    pub fn may_pass_in_parts(&self) -> bool {
        self.blames_rows() || self.away_code().is_some_and(|code| code == "57014")
    }

    /// The SQLSTATE of [`Away`](Self::Away), if Postgres sent one.
    fn away_code(&self) -> Option<std::borrow::Cow<'_, str>> {
        let Self::Away(sqlx::Error::Database(error)) = self else {
            return None;
        };
        error.code()
    }
}

impl From<sqlx::Error> for StoreError {
    /// Sorts by SQLSTATE class. 22 (data exception), 23 (constraint) and 54 (limit exceeded) blame a
    /// value. XX (corrupted data or index) and 58 (unreadable file) blame stored rows, like a value
    /// that we cannot decode. All other errors are temporary.
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

/// Opens a connection for a command, without the settings of [`set_up`](pools::set_up). A pool would
/// report its own timeout instead of the reason why the database is away.
async fn connect(options: &PgConnectOptions, name: &str) -> Result<PgConnection, StoreError> {
    let options = pools::session_options(options).application_name(name);
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(connected) => Ok(connected.map_err(|error| pool::explain(error, &options))?),
        Err(_) => Err(StoreError::Silent(CONNECT_TIMEOUT)),
    }
}

/// Closes a connection, and waits [`CLOSE_TIMEOUT`] at most for a silent server.
async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
}

/// Checks that the database answers, takes writes, has the encoding UTF8 and every migration of this
/// binary.
///
/// A newer schema is accepted: migrations only add, so an old replica continues while a new one
/// starts. Locks nothing; reads `_sqlx_migrations`.
pub async fn check(pool: &Pool) -> Result<(), StoreError> {
    let mut lease = match pool.acquire().await {
        Err(sqlx::Error::PoolTimedOut) if pool.leads_to_a_standby() => {
            return Err(StoreError::ReadOnly("the server is a standby"));
        }
        acquired => acquired?,
    };
    match tokio::time::timeout(CHECK_TIMEOUT, check_on(lease.connection())).await {
        Ok(Ok(())) => {
            lease.answered();
            Ok(())
        }
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
    let query = sqlx::query_as(
        "select pg_is_in_recovery(), current_setting('transaction_read_only')::boolean,
                current_setting('server_encoding')",
    );
    let (in_recovery, read_only, encoding) = query.fetch_one(&mut *connection).await?;
    expect_utf8(encoding)?;
    if in_recovery {
        return Err(StoreError::ReadOnly("the server is a standby"));
    }
    if read_only {
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

/// Rejects an encoding that lacks characters.
fn expect_utf8(encoding: String) -> Result<(), StoreError> {
    match encoding.as_str() {
        UTF8 => Ok(()),
        _ => Err(StoreError::Encoding(encoding)),
    }
}

/// The versions of the migrations that the database has.
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

/// Runs a statement without rows.
async fn execute(pool: &Pool, query: Query<'_, Postgres, PgArguments>) -> Result<(), StoreError> {
    rows(pool, query).await.map(drop)
}

/// Runs a statement and returns its rows as `T`.
async fn fetch<T>(
    pool: &Pool,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<T>, StoreError>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    let rows = rows(pool, query).await?;
    let decoded: Result<_, sqlx::Error> = rows.iter().map(T::from_row).collect();
    Ok(decoded?)
}

/// Runs a statement that returns one row.
async fn fetch_one<T>(pool: &Pool, query: Query<'_, Postgres, PgArguments>) -> Result<T, StoreError>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    let row = fetch(pool, query).await?.pop();
    Ok(row.ok_or(sqlx::Error::RowNotFound)?)
}

/// Runs a statement and returns its rows, for callers that borrow from them. If no answer arrives
/// in time, the connections are replaced: sqlx itself would wait as long as the kernel does.
async fn rows(
    pool: &Pool,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, StoreError> {
    rows_within(ANSWER_TIMEOUT, pool, query).await
}

/// Does the same within another limit.
async fn rows_within(
    limit: Duration,
    pool: &Pool,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, StoreError> {
    let mut lease = pool.acquire().await?;
    match tokio::time::timeout(limit, query.fetch_all(lease.connection())).await {
        Ok(Ok(rows)) => {
            lease.answered();
            Ok(rows)
        }
        Ok(Err(error)) => {
            lease.failed(&error);
            Err(error.into())
        }
        Err(_) => {
            // Postgres ends a statement before ANSWER_TIMEOUT, so the server is gone.
            if limit >= ANSWER_TIMEOUT {
                lease.distrust();
            } else {
                lease.close();
            }
            Err(StoreError::Silent(limit))
        }
    }
}

/// The progress of an import when a notification was stored; null for one of no import.
#[derive(FromRow)]
struct ProgressColumns {
    import_done: Option<i64>,
    import_failed: Option<i64>,
    import_total: Option<i64>,
}

impl ProgressColumns {
    fn progress(self) -> Option<Progress> {
        Some(Progress {
            done: self.import_done?,
            failed: self.import_failed?,
            total: self.import_total,
        })
    }
}

/// Checks a version from the database, which a constraint keeps from being negative.
fn version(number: i64) -> Result<Version, sqlx::Error> {
    Version::new(number).ok_or_else(|| sqlx::Error::Decode("a negative version".into()))
}

/// Checks a number from the database, which a constraint keeps from being negative.
fn seq(number: i64) -> Result<Seq, sqlx::Error> {
    Seq::new(number).ok_or_else(|| sqlx::Error::Decode("a negative seq".into()))
}

/// Returns the item of an ordinal from the database, which counts from 1.
fn at<T>(items: &[T], ordinal: i64) -> Option<(usize, &T)> {
    let index = usize::try_from(ordinal - 1).ok()?;
    Some((index, items.get(index)?))
}

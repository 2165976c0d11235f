//! Postgres, the only truth: every SQL statement of the service is in this folder, as plain functions.
//!
//! In come events to store, feeds to read, acks and what people say; out go numbers, pages and cursors. Knows neither AMQP nor sockets.
//! Every write is a single statement, so a caller that is dropped halfway leaves no open transaction behind.

pub mod answers;
pub mod append;
pub mod cursors;
pub mod history;
pub mod pages;

use std::time::Duration;

use crate::feed::{Seq, Version};
use crate::notification::Progress;
use sqlx::Row;
use sqlx::migrate::Migrate;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Postgres};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// How long a caller waits for a free connection, or a new one, before the database counts as away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A statement that takes longer is ended by Postgres: something is wrong, and its caller tries again.
const STATEMENT_TIMEOUT: &str = "10s";
/// An answer that takes longer never comes: the connection is half open. A little above the former.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// No statement of ours opens a transaction; one that is left open by whatever means must not hold a feed's lock.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "10s";
/// The same for the check that probes ask for, which reads a few rows.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Each partition stores one batch at a time; beyond these, one serves a retry while another is being closed.
const INGEST_CONNECTIONS_SPARE: u32 = 1;
/// Acks are written by one task.
const ACK_CONNECTIONS_MAX: u32 = 1;
/// What people say is written by one task.
const ANSWER_CONNECTIONS_MAX: u32 = 1;
/// Page and cursor reads: enough to keep Postgres busy, few enough that a replay cannot starve ingest.
const READ_CONNECTIONS_MAX: u32 = 6;
/// Who asks for history while this many ask waits for ACQUIRE_TIMEOUT at most.
const HISTORY_CONNECTIONS_MAX: u32 = 3;

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
    /// A migration could not be run.
    #[error("the database could not be migrated: {0}")]
    Migration(String),
    /// The schema is not the one this binary was built for.
    #[error("the database schema is not ready: {0}; run `shopbell migrate`")]
    Schema(String),
}

impl From<sqlx::Error> for StoreError {
    /// SQLSTATE classes 22 (data exception), 23 (constraint) and 54 (limit exceeded) blame a value; all else passes.
    fn from(error: sqlx::Error) -> Self {
        let blames_a_value = |code: &str| matches!(code.get(..2), Some("22" | "23" | "54"));
        match &error {
            sqlx::Error::Database(database) if database.code().as_deref().is_some_and(blames_a_value) => {
                Self::Refused(error)
            }
            _ => Self::Away(error),
        }
    }
}

/// One pool for each kind of work, so that none can starve another.
#[derive(Debug, Clone)]
pub struct Pools {
    /// For [`append`].
    pub ingest: PgPool,
    /// For [`cursors::advance`]; commits without waiting for the disk, for a lost ack only means a replay.
    pub acks: PgPool,
    /// For [`answers::write`].
    pub answers: PgPool,
    /// For [`pages`] and [`cursors::open`].
    pub reads: PgPool,
    /// For [`history`], apart, so that people who look back never hold up a replay.
    pub history: PgPool,
}

impl Pools {
    /// Makes the pools; connects only when the first statement needs it, so that the database may come up later.
    pub fn lazy(options: &PgConnectOptions, partitions: u8) -> Self {
        let pool = |size: u32, options: PgConnectOptions| {
            PgPoolOptions::new()
                .max_connections(size)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .connect_lazy_with(options)
        };
        let options = options.clone().application_name("shopbell").options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
        ]);
        Self {
            ingest: pool(u32::from(partitions) + INGEST_CONNECTIONS_SPARE, options.clone()),
            acks: pool(ACK_CONNECTIONS_MAX, options.clone().options([("synchronous_commit", "off")])),
            answers: pool(ANSWER_CONNECTIONS_MAX, options.clone()),
            reads: pool(READ_CONNECTIONS_MAX, options.clone()),
            history: pool(HISTORY_CONNECTIONS_MAX, options),
        }
    }

    /// Closes all of them, waiting for statements under way.
    pub async fn close(&self) {
        let Self { ingest, acks, answers, reads, history } = self;
        tokio::join!(ingest.close(), acks.close(), answers.close(), reads.close(), history.close());
    }
}

/// Brings the schema up to date. Safe to run from several replicas at once: sqlx takes an advisory lock.
pub async fn migrate(options: &PgConnectOptions) -> Result<usize, StoreError> {
    // Not from a pool, which would hide why the database cannot be reached behind its own timeout.
    let mut connection = PgConnection::connect_with(&options.clone().application_name("shopbell-migrate")).await?;
    let migrated = MIGRATIONS.run(&mut connection).await;
    connection.close().await?;
    migrated.map(|()| MIGRATIONS.iter().count()).map_err(|error| StoreError::Migration(error.to_string()))
}

/// Says whether the database answers and has every migration this binary knows (a newer schema is fine: migrations only
/// add, so an old replica works on while a new one rolls out).
pub async fn check(pool: &PgPool) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?;
    match tokio::time::timeout(CHECK_TIMEOUT, check_on(&mut connection)).await {
        Ok(checked) => checked,
        Err(_) => {
            connection.close_on_drop();
            Err(StoreError::Silent(CHECK_TIMEOUT))
        }
    }
}

async fn check_on(connection: &mut PgConnection) -> Result<(), StoreError> {
    let applied =
        connection.list_applied_migrations(MIGRATIONS.table_name.as_ref()).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(sqlx::Error::Database(database))
                if database.code().as_deref() == Some("42P01") =>
            {
                StoreError::Schema("it was never migrated".into())
            }
            sqlx::migrate::MigrateError::Execute(error) => StoreError::from(error),
            other => StoreError::Schema(other.to_string()),
        })?;
    match MIGRATIONS.iter().find(|known| !applied.iter().any(|done| done.version == known.version)) {
        Some(missing) => Err(StoreError::Schema(format!("migration {} is missing", missing.version))),
        None => Ok(()),
    }
}

/// Runs a statement and gives its rows. No answer in time closes the connection, so that the next call gets another:
/// sqlx itself would wait for as long as the kernel does.
async fn rows(pool: &PgPool, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, StoreError> {
    let mut connection = pool.acquire().await?;
    match tokio::time::timeout(ANSWER_TIMEOUT, query.fetch_all(&mut *connection)).await {
        Ok(rows) => Ok(rows?),
        Err(_) => {
            connection.close_on_drop();
            Err(StoreError::Silent(ANSWER_TIMEOUT))
        }
    }
}

/// How far its import was when a notification was stored; `None` for one that tells of none.
fn progress(row: &PgRow) -> Result<Option<Progress>, sqlx::Error> {
    let (done, failed) =
        (row.try_get::<Option<i64>, _>("import_done")?, row.try_get::<Option<i64>, _>("import_failed")?);
    let total = row.try_get("import_total")?;
    Ok(done.zip(failed).map(|(done, failed)| Progress { done, failed, total }))
}

/// A number from the database; the schema's checks keep it from being negative.
fn version(number: i64) -> Result<Version, sqlx::Error> {
    Version::new(number).ok_or_else(|| sqlx::Error::Decode("a negative version".into()))
}

/// The same.
fn seq(number: i64) -> Result<Seq, sqlx::Error> {
    Seq::new(number).ok_or_else(|| sqlx::Error::Decode("a negative seq".into()))
}

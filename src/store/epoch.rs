//! The epoch in the database: read first on each new connection, and renewed if the database went
//! back in time.

pub mod known;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection};
use sqlx::query::Query;
use sqlx::{FromRow, Postgres};

use self::known::{Doubt, Epochs};
use super::StoreError;
use super::pool::Pool;
use crate::model::feed::Epoch;

/// Most feeds, cursors and evicted cursors that one statement reads, and lowers if necessary.
const ROWS_PER_STATEMENT_MAX: i32 = 1_000;
/// SQLSTATE: the schema has no such function. The check of the schema reports it.
const UNDEFINED_FUNCTION: &str = "42883";
/// Why an epoch is renewed if a database has one that was replaced before.
const BACK_AGAIN: &str = "an epoch came back that had been replaced";

/// Locks nothing; reads the row of `epochs`, which it replaces if the database went back.
const CURRENT: &str = "select epoch, flushed from current_epoch($1, $2)";
/// Locks the row of `epochs`; see `renew_epoch` in `migrations/`.
const RENEW: &str = "select renew_epoch($1, $2)";
/// Locks the rows that it changes; uses `feeds_pkey`, `cursors_pkey` and `evicted_cursors_pkey`.
const LOWER_CURSORS: &str = "select feed, subscriber, device from lower_cursors($1, $2, $3, $4)";

/// Reads the epoch on a new connection, before its first use. Fails on a standby.
///
/// A restore or a fail-over ends all connections. So this replica runs no statement on a database
/// that went back in time before it has the new epoch.
pub(super) async fn begin(
    connection: &mut PgConnection,
    epochs: &Epochs,
) -> Result<(), sqlx::Error> {
    match read(connection, epochs).await {
        Err(sqlx::Error::Database(error))
            if error.code().as_deref() == Some(UNDEFINED_FUNCTION) =>
        {
            Ok(())
        }
        read => read,
    }
}

async fn read(connection: &mut PgConnection, epochs: &Epochs) -> Result<(), sqlx::Error> {
    let (known, flushed) = epochs.known();
    let query = sqlx::query_as(CURRENT);
    let query = query.bind(known.as_ref().map(Epoch::as_str)).bind(flushed);
    let (epoch, flushed): (String, Option<i64>) = query.fetch_one(&mut *connection).await?;
    let epoch = parse(&epoch)?;
    if epochs.learn(&epoch) {
        epochs.note_flushed(&epoch, flushed);
    } else {
        let query = sqlx::query_scalar(RENEW);
        let query = query.bind(epoch.as_str()).bind(BACK_AGAIN);
        let epoch: String = query.fetch_one(&mut *connection).await?;
        epochs.learn(&parse(&epoch)?);
    }
    Ok(())
}

/// Reads the epoch on any connection, because a pooler may have changed the server behind it.
/// Renews an epoch that is in doubt.
pub async fn check(pool: &Pool, epochs: &Epochs) -> Result<(), StoreError> {
    let (known, flushed) = epochs.known();
    let known = known.map(|epoch| epoch.as_str().to_owned());
    let query = sqlx::query(CURRENT).bind(known).bind(flushed);
    let (epoch, flushed): (String, Option<i64>) = super::fetch_one(pool, query).await?;
    let epoch = parse(&epoch)?;
    let doubt = match epochs.learn(&epoch) {
        true => epochs.doubted(),
        false => Some(Doubt {
            epoch: epoch.clone(),
            reason: BACK_AGAIN,
        }),
    };
    match doubt {
        Some(Doubt { epoch, reason }) => {
            let query = sqlx::query(RENEW);
            let query = query.bind(epoch.as_str().to_owned()).bind(reason);
            let (epoch,): (String,) = super::fetch_one(pool, query).await?;
            epochs.learn(&parse(&epoch)?);
        }
        None => epochs.note_flushed(&epoch, flushed),
    }
    Ok(())
}

/// The columns of [`LOWER_CURSORS`]; nulls at the end.
type LoweredRow = (Option<String>, Option<String>, Option<String>);

/// The feed, subscriber and device of the last row of a step.
type LoweredThrough = (String, String, String);

fn lowered_through((feed, subscriber, device): LoweredRow) -> Option<LoweredThrough> {
    Some((feed?, subscriber?, device?))
}

/// The step of [`LOWER_CURSORS`] after a key.
fn lower_after(
    (feed, subscriber, device): LoweredThrough,
) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(LOWER_CURSORS)
        .bind(feed)
        .bind(subscriber)
        .bind(device)
        .bind(ROWS_PER_STATEMENT_MAX)
}

/// Lowers the cursors above the last number of their feed, once in each epoch.
///
/// Locks the rows that it changes, in steps of [`ROWS_PER_STATEMENT_MAX`] rows; uses `feeds_pkey`,
/// `cursors_pkey` and `evicted_cursors_pkey`.
pub async fn lower_cursors(pool: &Pool, epoch: &Epoch) -> Result<(), StoreError> {
    let query =
        sqlx::query("select from epochs where epoch = $1 and not lowered").bind(epoch.as_str());
    if super::rows(pool, query).await?.is_empty() {
        return Ok(());
    }
    let mut after = Some(LoweredThrough::default());
    while let Some(key) = after {
        let row: LoweredRow = super::fetch_one(pool, lower_after(key)).await?;
        after = lowered_through(row);
    }
    let query =
        sqlx::query("update epochs set lowered = true where epoch = $1").bind(epoch.as_str());
    super::execute(pool, query).await
}

/// The epoch as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, FromRow)]
pub struct EpochState {
    /// The present epoch.
    pub epoch: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub since: time::OffsetDateTime,
    /// Why the last one was replaced.
    pub reason: String,
}

/// Reads the epoch for an operator. If `reason` is given, renews it first.
pub async fn by_hand(
    options: &PgConnectOptions,
    reason: Option<&str>,
) -> Result<EpochState, StoreError> {
    let mut connection = super::connect(options, "shopbell epoch").await?;
    sqlx::query("select current_epoch()")
        .execute(&mut connection)
        .await?;
    if let Some(reason) = reason {
        let query = sqlx::query(RENEW).bind(None::<&str>).bind(reason);
        query.execute(&mut connection).await?;
        // Running replicas do the same, but none may run.
        let mut after = Some(LoweredThrough::default());
        while let Some(key) = after {
            let row = lower_after(key).fetch_one(&mut connection).await?;
            after = lowered_through(LoweredRow::from_row(&row)?);
        }
    }
    let query = sqlx::query_as("select epoch, since, reason from epochs");
    let state = query.fetch_one(&mut connection).await?;
    super::close(connection).await;
    Ok(state)
}

/// Parses an epoch from the database, whose form a constraint checks.
pub(super) fn parse(epoch: &str) -> Result<Epoch, sqlx::Error> {
    Epoch::parse(epoch).map_err(|error| sqlx::Error::Decode(error.to_string().into()))
}

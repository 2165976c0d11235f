//! The epoch in the database: read before anything else on each new connection, renewed where the database went back.

pub mod known;

use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::StoreError;
use super::pools::Pool;
use crate::model::feed::Epoch;
use crate::store::epoch::known::{Doubt, Epochs};

/// Most feeds whose cursors are looked at in one statement.
const FEEDS_PER_STATEMENT_MAX: i32 = 5_000;
/// A schema without the function: the check of the schema tells about it.
const UNDEFINED_FUNCTION: &str = "42883";
/// An epoch that was replaced is the present one of a new connection.
const BACK_AGAIN: &str = "an epoch came back that had been replaced";

/// Reads the epoch on a new connection, before anything else is done on it: a restore or a fail-over ends all connections, so
/// no statement of this replica runs on a database that went back before that is known here. Fails on a standby.
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
    let query = sqlx::query("select epoch, flushed from current_epoch($1, $2)");
    let row = query
        .bind(known.as_ref().map(Epoch::as_str))
        .bind(flushed)
        .fetch_one(&mut *connection)
        .await?;
    let epoch = parse(row.try_get("epoch")?)?;
    if !epochs.learn(&epoch) {
        let query = sqlx::query("select renew_epoch($1, $2)")
            .bind(epoch.as_str())
            .bind(BACK_AGAIN);
        let row = query.fetch_one(&mut *connection).await?;
        epochs.learn(&parse(row.try_get(0)?)?);
        return Ok(());
    }
    epochs.note_flushed(&epoch, row.try_get("flushed")?);
    Ok(())
}

/// Reads the epoch on any connection: a pooler may have put another server behind it. Renews the one that is doubted.
pub async fn check(pool: &Pool, epochs: &Epochs) -> Result<(), StoreError> {
    let (known, flushed) = epochs.known();
    let query = sqlx::query("select epoch, flushed from current_epoch($1, $2)");
    let query = query
        .bind(known.as_ref().map(|epoch| epoch.as_str().to_owned()))
        .bind(flushed);
    let rows = super::rows(pool, query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let epoch = parse(row.try_get("epoch")?)?;
    let doubt = match epochs.learn(&epoch) {
        true => epochs.doubted(),
        false => Some(Doubt {
            epoch: epoch.clone(),
            reason: BACK_AGAIN,
        }),
    };
    match doubt {
        Some(Doubt { epoch, reason }) => {
            let query = sqlx::query("select renew_epoch($1, $2)")
                .bind(epoch.as_str().to_owned())
                .bind(reason);
            let rows = super::rows(pool, query).await?;
            let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            epochs.learn(&parse(row.try_get(0)?)?);
        }
        None => epochs.note_flushed(&epoch, row.try_get("flushed")?),
    }
    Ok(())
}

/// Moves back the cursors that stand above the last number of their feed, unless this was done in this epoch. Walks `feeds_pkey`
/// and `cursors_pkey` in steps.
pub async fn lower_cursors(pool: &Pool, epoch: &Epoch) -> Result<(), StoreError> {
    let query =
        sqlx::query("select from epochs where epoch = $1 and not lowered").bind(epoch.as_str());
    if super::rows(pool, query).await?.is_empty() {
        return Ok(());
    }
    let mut after = Some(String::new());
    while let Some(feed) = after {
        let query = sqlx::query("select lower_cursors($1, $2)")
            .bind(feed)
            .bind(FEEDS_PER_STATEMENT_MAX);
        let rows = super::rows(pool, query).await?;
        after = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    }
    let query =
        sqlx::query("update epochs set lowered = true where epoch = $1").bind(epoch.as_str());
    super::rows(pool, query).await.map(drop)
}

/// The epoch, when it began and why, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EpochState {
    /// The present epoch.
    pub epoch: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub since: time::OffsetDateTime,
    /// Why it was renewed.
    pub reason: String,
}

/// Reads the epoch for an operator, and renews it first where `reason` is given.
pub async fn by_hand(
    options: &PgConnectOptions,
    reason: Option<&str>,
) -> Result<EpochState, StoreError> {
    let mut connection = super::connect(options, "shopbell epoch").await?;
    sqlx::query("select current_epoch()")
        .execute(&mut connection)
        .await?;
    if let Some(reason) = reason {
        sqlx::query("select renew_epoch(null, $1)")
            .bind(reason)
            .execute(&mut connection)
            .await?;
        // Replicas do the same, if any run.
        let mut after = Some(String::new());
        while let Some(feed) = after {
            let query = sqlx::query_scalar("select lower_cursors($1, $2)")
                .bind(feed)
                .bind(FEEDS_PER_STATEMENT_MAX);
            after = query.fetch_one(&mut connection).await?;
        }
    }
    let row = sqlx::query("select epoch, since, reason from epochs")
        .fetch_one(&mut connection)
        .await?;
    super::close(connection).await;
    Ok(EpochState {
        epoch: row.try_get("epoch")?,
        since: row.try_get("since")?,
        reason: row.try_get("reason")?,
    })
}

/// An epoch from the database; the schema's check has its form.
pub(super) fn parse(epoch: &str) -> Result<Epoch, sqlx::Error> {
    Epoch::parse(epoch).map_err(|error| sqlx::Error::Decode(error.to_string().into()))
}

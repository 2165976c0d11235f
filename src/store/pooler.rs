//! Detects a pooler between us and Postgres.

use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

/// Comparisons of two connections: a pooler may assign several server processes in turn.
const COMPARISONS: usize = 4;

/// Returns whether two open connections use the same server process.
///
/// Only a pooler in transaction or statement mode does that. Uses the simple protocol, because
/// prepared statements may fail there.
pub(super) async fn share_a_server(
    one: &mut PgConnection,
    other: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    for _ in 0..COMPARISONS {
        if backend_pid(one).await? == backend_pid(other).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn backend_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = connection
        .fetch_one(sqlx::raw_sql("select pg_backend_pid()"))
        .await?;
    row.try_get(0)
}

/// Returns whether a prepared statement survives when another connection takes its server process.
///
/// It does with PgBouncer 1.21 or newer if `max_prepared_statements` is not 0.
pub(super) async fn keeps_prepared_statements(
    one: &mut PgConnection,
    other: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    for _ in 0..COMPARISONS {
        if let Err(error) = sqlx::query("select 1").execute(&mut *one).await {
            return is_lost_statement(&error).then_some(false).ok_or(error);
        }
        other.execute(sqlx::raw_sql("begin")).await?;
        let again = sqlx::query("select 1").execute(&mut *one).await;
        other.execute(sqlx::raw_sql("rollback")).await?;
        if let Err(error) = again {
            return is_lost_statement(&error).then_some(false).ok_or(error);
        }
    }
    Ok(true)
}

/// SQLSTATE: the name of a prepared statement is unknown, or another session has taken it.
fn is_lost_statement(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["26000", "42P05"].contains(&&*code))
}

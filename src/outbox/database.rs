//! Every SQL statement of the outbox, on a connection of the relay.
//!
//! Nothing here holds a transaction open: each function is one statement.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Executor as _, FromRow, Postgres};

use super::OutboxError;
use super::row::{EVENT_BYTES_MAX, Row};
use crate::tls;

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection counts as half open. Slightly longer than the timeout of statements.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(32);
/// Longest wait for the end of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of each session.
///
/// - A removal that a crash undoes is repeated, and Shopbell stores the event once. So it needs no
///   wait for the disk.
/// - Rows must arrive in the order of the index.
/// - The statements read few rows by index, also before the table has statistics. A plan for an unknown
///   limit would sort or join a whole backlog.
const SESSION: &str = "
    set statement_timeout = '30s';
    set idle_in_transaction_session_timeout = '10s';
    set synchronous_commit = off;
    set max_parallel_workers_per_gather = 0;
    set enable_seqscan = off;
    set enable_bitmapscan = off;
    set enable_hashjoin = off;
    set enable_mergejoin = off;
    set jit = off;
";

/// The channel that `shopbell_publish` notifies.
pub(super) const CHANNEL: &str = "shopbell_outbox";
/// The advisory lock of the active relay, "SHOPBELL" in ASCII. Advisory locks belong to one database.
const LOCK: i64 = 0x5348_4f50_4245_4c4c;

/// Most rows of one recipient in a read, so that one with many rows does not delay the others.
const ROWS_PER_RECIPIENT_MAX: i64 = 100;
/// Most bytes of rows in a read, and one row more.
const READ_BYTES_MAX: i64 = 16 * 1024 * 1024;
/// Rows up to which the probe counts. Beyond it the statistics of Postgres are precise enough.
const COUNTED_MAX: i64 = 100_000;

/// The first rows of the next recipients. One statement sees one snapshot: if it shows a row, it shows
/// all rows of earlier transactions. Walks `events_of_recipient` from recipient to recipient. Locks
/// nothing.
const READ: &str = "
    with recursive recipients as (
        (select recipient from shopbell_outbox.events where recipient > $1 order by recipient limit 1)
        union all
        select (select e.recipient from shopbell_outbox.events e where e.recipient > r.recipient
                order by e.recipient limit 1)
        from recipients r where r.recipient is not null
    ),
    heads as (
        select h.*
        from (select recipient from recipients where recipient is not null limit $2) r
        cross join lateral (
            select e.id, e.recipient,
                   coalesce(octet_length(e.data), 0)::bigint + coalesce(octet_length(e.extensions::text), 0) as bytes
            from shopbell_outbox.events e where e.recipient = r.recipient order by e.id limit $3) h
        limit $2
    ),
    sums as (
        select id, bytes, coalesce(sum(bytes) filter (where bytes <= $5) over (
            order by recipient, id rows between unbounded preceding and 1 preceding), 0) as bytes_before
        from heads
    )
    select e.id, e.recipient, e.type, e.event_id, e.source, e.subject,
           to_char(e.time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as time,
           to_char(e.expirytime at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as expirytime,
           e.extensions::text as extensions, case when s.bytes <= $5 then e.data end as data, s.bytes
    from sums s join shopbell_outbox.events e using (id)
    where s.bytes_before < $4
    order by e.recipient, e.id";

/// Locks the rows; walks the primary key.
const REMOVE: &str = "delete from shopbell_outbox.events where id = any($1)";

/// Locks the row; walks the primary key.
const SET_ASIDE: &str = "
    with gone as (delete from shopbell_outbox.events where id = $1 returning *)
    insert into shopbell_outbox.set_aside
        (id, recipient, type, event_id, source, subject, time, expirytime, extensions, data, created_at, reason)
    select id, recipient, type, event_id, source, subject, time, expirytime, extensions, data, created_at, $2 from gone
    on conflict do nothing";

/// Locks one row. It does nothing, and keeps no version of the row, if the relay is in that state.
const SET_ASLEEP: &str = "update shopbell_outbox.relay set asleep = $1 where asleep <> $1";

/// The rows that wait, the age of the oldest in seconds, and the rows that were set aside. Locks
/// nothing; counts by index, up to a bound.
const MEASURE: &str = "
    select case when counted.rows <= $1 then counted.rows
                else greatest(counted.rows, (select reltuples::bigint from pg_catalog.pg_class
                                             where oid = 'shopbell_outbox.events'::regclass)) end as rows,
           coalesce(extract(epoch from clock_timestamp() -
               (select created_at from shopbell_outbox.events order by id limit 1)), 0)::float8 as oldest_age_seconds,
           (select count(*) from (select from shopbell_outbox.set_aside limit $1) s) as set_aside
    from (select count(*) as rows from (select from shopbell_outbox.events limit $1 + 1) e) counted";

/// Whether the server takes no writes, and whether this role may do all that a relay does.
const CHECK: &str = "
    select pg_is_in_recovery() or current_setting('transaction_read_only')::boolean,
           has_table_privilege('shopbell_outbox.events', 'select') and
           has_table_privilege('shopbell_outbox.events', 'delete') and
           has_table_privilege('shopbell_outbox.set_aside', 'insert') and
           has_column_privilege('shopbell_outbox.relay', 'asleep', 'update')";

/// The lag of the outbox.
#[derive(Debug, FromRow)]
pub(super) struct Lag {
    pub(super) rows: i64,
    pub(super) oldest_age_seconds: f64,
    pub(super) set_aside: i64,
}

/// A connection to the outbox.
pub(super) struct Database {
    connection: PgConnection,
}

impl Database {
    /// Connects, and checks that the outbox can be used.
    pub(super) async fn open(options: &PgConnectOptions) -> Result<Self, OutboxError> {
        let options = session_options(options);
        let connecting = PgConnection::connect_with(&options);
        let connected = within(CONNECT_TIMEOUT, connecting).await;
        let mut connection = connected.map_err(explain)?;
        within(ANSWER_TIMEOUT, connection.execute(sqlx::raw_sql(SESSION))).await?;
        let mut database = Self { connection };
        let (is_read_only, is_permitted) =
            database.one(sqlx::query(CHECK)).await.map_err(not_ready)?;
        match (is_read_only, is_permitted) {
            (true, _) => Err(OutboxError::ReadOnly),
            (false, true) => Ok(database),
            (false, false) => Err(OutboxError::NotReady(
                "the role lacks privileges".to_owned(),
            )),
        }
    }

    /// Tries to become the active relay, until this connection ends. It does not wait, because a
    /// statement that waits would delay vacuum.
    pub(super) async fn try_lock(&mut self) -> Result<bool, OutboxError> {
        let query = sqlx::query("select pg_try_advisory_lock($1)").bind(LOCK);
        let (locked,) = self.one(query).await?;
        Ok(locked)
    }

    /// Reads the first rows of the recipients after this one: at most `rows_max`, in the order of
    /// recipient and id.
    pub(super) async fn read(
        &mut self,
        after: &str,
        rows_max: i64,
    ) -> Result<Vec<Row>, OutboxError> {
        let query = sqlx::query(READ)
            .bind(after)
            .bind(rows_max)
            .bind(ROWS_PER_RECIPIENT_MAX)
            .bind(READ_BYTES_MAX)
            .bind(EVENT_BYTES_MAX);
        self.all(query).await
    }

    /// Removes rows that RabbitMQ has confirmed.
    pub(super) async fn remove(&mut self, ids: &[i64]) -> Result<(), OutboxError> {
        let removed: Vec<(i64,)> = self.all(sqlx::query(REMOVE).bind(ids)).await?;
        drop(removed);
        Ok(())
    }

    /// Moves a row that can never be published to the rows that were set aside.
    pub(super) async fn set_aside(&mut self, id: i64, reason: &str) -> Result<(), OutboxError> {
        let moved: Vec<(i64,)> = self
            .all(sqlx::query(SET_ASIDE).bind(id).bind(reason))
            .await?;
        drop(moved);
        Ok(())
    }

    /// Sets whether publishers must notify the relay.
    pub(super) async fn set_asleep(&mut self, asleep: bool) -> Result<(), OutboxError> {
        let set: Vec<(i64,)> = self.all(sqlx::query(SET_ASLEEP).bind(asleep)).await?;
        drop(set);
        Ok(())
    }

    /// Measures the lag.
    pub(super) async fn measure(&mut self) -> Result<Lag, OutboxError> {
        self.one(sqlx::query(MEASURE).bind(COUNTED_MAX)).await
    }

    /// Closes the connection, which releases the lock.
    pub(super) async fn close(self) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.connection.close()).await;
    }

    async fn one<T>(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<T, OutboxError>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let row = self.all(query).await?.pop();
        Ok(row.ok_or(sqlx::Error::RowNotFound)?)
    }

    async fn all<T>(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<T>, OutboxError>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let rows = within(ANSWER_TIMEOUT, query.fetch_all(&mut self.connection)).await?;
        let decoded: Result<_, sqlx::Error> = rows.iter().map(T::from_row).collect();
        Ok(decoded?)
    }
}

/// The options of every session. PgBouncer by default refuses `extra_float_digits` in the start-up
/// message.
pub(super) fn session_options(options: &PgConnectOptions) -> PgConnectOptions {
    options
        .clone()
        .extra_float_digits(None)
        .application_name("shopbell-relay")
}

/// Bounds the wait for an answer: sqlx itself would wait as long as the kernel does.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, OutboxError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(OutboxError::Silent(limit)),
    }
}

/// Names the cause if the outbox is missing or forbidden.
fn not_ready(error: OutboxError) -> OutboxError {
    let OutboxError::Database(sqlx::Error::Database(database)) = &error else {
        return error;
    };
    // No such schema, table or column, or no privilege for them.
    match database.code().as_deref() {
        Some("3F000" | "42P01" | "42703" | "42501") => {
            OutboxError::NotReady(database.message().to_owned())
        }
        _ => error,
    }
}

/// Adds the reason and the remedy to an error of TLS.
fn explain(error: OutboxError) -> OutboxError {
    const SETTINGS: tls::Settings = tls::Settings {
        ca: "`sslrootcert` in SHOPBELL_OUTBOX_DATABASE_URL",
        client: Some("`sslcert` and `sslkey` in SHOPBELL_OUTBOX_DATABASE_URL"),
    };
    match &error {
        OutboxError::Database(source) => {
            tls::reason(source, SETTINGS).map_or(error, OutboxError::Tls)
        }
        _ => error,
    }
}

//! What an operator asks Postgres: is it the server, and is it set, as the promise needs it. Changes nothing.

use std::time::SystemTime;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{Connection as _, Row};

use super::{MIGRATIONS, StoreError, applied};

/// Most transactions and slots that are told.
const TOLD_MAX: i64 = 10;

/// What Postgres answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkup {
    /// `server_version`, for people.
    pub version: String,
    /// The first number of it.
    pub major: i32,
    /// A standby: it takes no writes.
    pub in_recovery: bool,
    /// Sessions begin read-only.
    pub read_only: bool,
    /// `fsync`.
    pub fsync: String,
    /// `full_page_writes`.
    pub full_page_writes: String,
    /// `synchronous_commit`, as our sessions get it.
    pub synchronous_commit: String,
    /// `synchronous_standby_names`.
    pub synchronous_standbys: String,
    /// How many standbys, and receivers of base backups, are connected.
    pub standbys: i64,
    /// `idle_in_transaction_session_timeout`, as other sessions of this user get it.
    pub idle_in_transaction_timeout: String,
    /// How far the server's clock is ahead of ours, in seconds.
    pub clock_ahead_seconds: f64,
    /// Most connections that our user may have to this database.
    pub connections_max: i64,
    /// How many clients are connected, ours among them.
    pub connections: i64,
    /// Transactions that have been open for longer than five minutes, as far as our user may see them, oldest first.
    pub old_transactions: Vec<OldTransaction>,
    /// Replication slots that nobody reads.
    pub idle_slots: Vec<IdleSlot>,
    /// Migrations that this binary needs and the database has not.
    pub missing_migrations: Vec<i64>,
    /// Migrations that the database has and this binary does not know.
    pub newer_migrations: Vec<i64>,
}

/// A transaction that holds back vacuum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldTransaction {
    /// Whose: `pid 7 (psql, idle in transaction)`.
    pub whose: String,
    /// How long it has been open.
    pub seconds: i64,
}

/// A replication slot that keeps the log for nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleSlot {
    /// Its name.
    pub name: String,
    /// How much of the log is kept for it.
    pub bytes: i64,
}

/// Asks everything, on a connection of its own.
pub async fn look(options: &PgConnectOptions) -> Result<Checkup, StoreError> {
    let mut connection = PgConnection::connect_with(&options.clone().application_name("shopbell doctor")).await?;
    let clock_ahead_seconds = clock_ahead(&mut connection).await?;
    let known = |version: &i64| MIGRATIONS.iter().any(|migration| migration.version == *version);
    let applied = match applied(&mut connection).await {
        Err(StoreError::Schema(_)) => Vec::new(),
        applied => applied?,
    };
    let missing = MIGRATIONS.iter().map(|migration| migration.version).filter(|version| !applied.contains(version));
    let row = sqlx::query(
        "select current_setting('server_version') as version,
                current_setting('server_version_num')::integer / 10000 as major,
                pg_is_in_recovery() as in_recovery,
                current_setting('default_transaction_read_only')::boolean as read_only,
                current_setting('fsync') as fsync,
                current_setting('full_page_writes') as full_page_writes,
                current_setting('synchronous_commit') as synchronous_commit,
                current_setting('synchronous_standby_names') as synchronous_standbys,
                (select count(*) from pg_stat_replication) as standbys,
                current_setting('idle_in_transaction_session_timeout') as idle_in_transaction_timeout,
                (select least(current_setting('max_connections')::bigint
                              - current_setting('superuser_reserved_connections')::bigint
                              - coalesce(current_setting('reserved_connections', true)::bigint, 0),
                              nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1))
                 from pg_roles r, pg_database d
                 where r.rolname = current_user and d.datname = current_database()) as connections_max,
                (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections",
    )
    .fetch_one(&mut connection)
    .await?;
    let checkup = Checkup {
        version: row.try_get("version")?,
        major: row.try_get("major")?,
        in_recovery: row.try_get("in_recovery")?,
        read_only: row.try_get("read_only")?,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("full_page_writes")?,
        synchronous_commit: row.try_get("synchronous_commit")?,
        synchronous_standbys: row.try_get("synchronous_standbys")?,
        standbys: row.try_get("standbys")?,
        idle_in_transaction_timeout: row.try_get("idle_in_transaction_timeout")?,
        clock_ahead_seconds,
        connections_max: row.try_get("connections_max")?,
        connections: row.try_get("connections")?,
        old_transactions: old_transactions(&mut connection).await?,
        idle_slots: idle_slots(&mut connection).await?,
        missing_migrations: missing.collect(),
        newer_migrations: applied.iter().copied().filter(|version| !known(version)).collect(),
    };
    connection.close().await?;
    Ok(checkup)
}

/// Compared with the middle of the question, whose half a way is the error.
async fn clock_ahead(connection: &mut PgConnection) -> Result<f64, sqlx::Error> {
    let ours = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let query = "select extract(epoch from clock_timestamp())::double precision";
    let before = ours();
    let theirs: f64 = sqlx::query_scalar(query).fetch_one(connection).await?;
    Ok(theirs - f64::midpoint(before, ours()))
}

async fn old_transactions(connection: &mut PgConnection) -> Result<Vec<OldTransaction>, sqlx::Error> {
    let query = sqlx::query(
        "select whose, extract(epoch from now() - since)::bigint as seconds
         from (select format('pid %s (%s, %s)', pid, coalesce(nullif(application_name, ''), usename), state) as whose,
                      xact_start as since
               from pg_stat_activity
               where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
               union all
               select format('prepared transaction %s', gid), prepared
               from pg_prepared_xacts where database = current_database()) t
         where since < now() - interval '5 minutes'
         order by since
         limit $1",
    );
    let old = |row: PgRow| Ok(OldTransaction { whose: row.try_get("whose")?, seconds: row.try_get("seconds")? });
    query.bind(TOLD_MAX).fetch_all(connection).await?.into_iter().map(old).collect()
}

async fn idle_slots(connection: &mut PgConnection) -> Result<Vec<IdleSlot>, sqlx::Error> {
    let query = sqlx::query(
        "select slot_name::text as name,
                coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                                              else pg_current_wal_lsn() end, restart_lsn), 0)::bigint as bytes
         from pg_replication_slots
         where not active
         order by 2 desc
         limit $1",
    );
    let slot = |row: PgRow| Ok(IdleSlot { name: row.try_get("name")?, bytes: row.try_get("bytes")? });
    query.bind(TOLD_MAX).fetch_all(connection).await?.into_iter().map(slot).collect()
}

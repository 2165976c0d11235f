//! What an operator asks Postgres: is it the server, and is it set, as the promise needs it. Changes nothing.

use std::time::SystemTime;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row};

use super::pools::{SESSION_SETTINGS, set_up};
use super::{APPLIED, MIGRATIONS, StoreError, close, connect, pooler};

/// Most transactions and slots that are told.
const TOLD_MAX: i64 = 10;

/// What Postgres answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkup {
    /// `server_version`, for people.
    pub version: String,
    /// The first number of it.
    pub major: i32,
    /// Our user.
    pub user: String,
    /// `server_encoding`.
    pub encoding: String,
    /// How our sessions reach their server processes.
    pub sessions: Sessions,
    /// The settings that the sessions of the pools rely on.
    pub guards: Vec<Guard>,
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
    /// Who receives the log.
    pub receivers: Receivers,
    /// `idle_in_transaction_session_timeout`, as other sessions of this user get it.
    pub idle_in_transaction_timeout: String,
    /// How far the server's clock is ahead of ours, in seconds.
    pub clock_ahead_seconds: f64,
    /// What bounds connections of our user to this database: at least the server.
    pub connection_limits: Vec<ConnectionLimit>,
    /// Transactions that have been open for longer than five minutes, as far as our user may see them, oldest first.
    pub old_transactions: Vec<OldTransaction>,
    /// Replication slots that nobody reads, those that keep most first.
    pub idle_slots: Vec<IdleSlot>,
    /// Migrations that this binary needs and the database has not.
    pub missing_migrations: Vec<i64>,
    /// Migrations that the database has and this binary does not know.
    pub newer_migrations: Vec<i64>,
}

/// How our sessions reach their server processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// Each has one of its own.
    Own,
    /// A pooler gives each transaction another one, and keeps prepared statements or not.
    Shared {
        /// Whether it does.
        prepared_statements: bool,
    },
}

/// A setting that the sessions of the pools rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its name in Postgres.
    pub setting: &'static str,
    /// What the pools set.
    pub wanted: &'static str,
    /// What a session of a pool has: where sessions are shared, what each has without our doing.
    pub found: String,
}

/// A transaction that holds back vacuum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldTransaction {
    /// Whose: `pid 7 (psql, idle in transaction)`.
    pub whose: String,
    /// How long it has been open.
    pub seconds: i64,
}

/// Who is connected to receive the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Receivers {
    /// Standbys that follow; logical subscribers and tools that take backups are none.
    pub standbys: i64,
    /// Of whatever kind, that commits wait for, or would if another were gone.
    pub synchronous: i64,
    /// Those of which our user may not see what they are.
    pub unseen: i64,
}

/// How many connections there may be, and are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// What sets it, for people: `max_connections`.
    pub setting: String,
    /// The most.
    pub max: i64,
    /// How many there are that count against it, ours among them.
    pub taken: i64,
}

/// A replication slot that nobody reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleSlot {
    /// Its name.
    pub name: String,
    /// What it keeps of the log.
    pub keeps: Kept,
}

/// What a slot keeps of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// This many bytes, and more each minute.
    Bytes(i64),
    /// Nothing, for nobody has ever read it.
    Nothing,
    /// Nothing any more: its reader has lost what it had still to read.
    Lost,
}

/// Asks everything, on connections of its own. In one transaction, and without prepared statements, so that it works behind every
/// pooler.
pub async fn look(options: &PgConnectOptions) -> Result<Checkup, StoreError> {
    let mut connection = connect(options, "shopbell doctor").await?;
    let mut pooled = connect(options, "shopbell doctor").await?;
    let sessions = sessions(&mut connection, &mut pooled).await?;
    set_up(&mut pooled).await?;
    let guards = guards(&mut pooled, sessions).await?;
    close(pooled).await;
    let mut connection = connection.begin().await?;
    let clock_ahead_seconds = clock_ahead(&mut connection).await?;
    let known = |version: &i64| {
        MIGRATIONS
            .iter()
            .any(|migration| migration.version == *version)
    };
    let is_migrated = "select to_regclass('_sqlx_migrations') is not null";
    let applied = match sqlx::query_scalar(is_migrated)
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?
    {
        true => {
            sqlx::query_scalar(APPLIED)
                .persistent(false)
                .fetch_all(&mut *connection)
                .await?
        }
        false => Vec::new(),
    };
    let missing = MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .filter(|version| !applied.contains(version));
    let row = sqlx::query(
        "select current_setting('server_version') as version,
                current_setting('server_version_num')::integer / 10000 as major,
                current_user::text as user_name,
                current_setting('server_encoding') as encoding,
                pg_is_in_recovery() as in_recovery,
                current_setting('transaction_read_only')::boolean as read_only,
                current_setting('fsync') as fsync,
                current_setting('full_page_writes') as full_page_writes,
                current_setting('synchronous_commit') as synchronous_commit,
                current_setting('synchronous_standby_names') as synchronous_standbys,
                current_setting('idle_in_transaction_session_timeout') as idle_in_transaction_timeout",
    )
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let checkup = Checkup {
        version: row.try_get("version")?,
        major: row.try_get("major")?,
        user: row.try_get("user_name")?,
        encoding: row.try_get("encoding")?,
        sessions,
        guards,
        in_recovery: row.try_get("in_recovery")?,
        read_only: row.try_get("read_only")?,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("full_page_writes")?,
        synchronous_commit: row.try_get("synchronous_commit")?,
        synchronous_standbys: row.try_get("synchronous_standbys")?,
        receivers: receivers(&mut connection).await?,
        idle_in_transaction_timeout: row.try_get("idle_in_transaction_timeout")?,
        clock_ahead_seconds,
        connection_limits: connection_limits(&mut connection).await?,
        old_transactions: old_transactions(&mut connection).await?,
        idle_slots: idle_slots(&mut connection).await?,
        missing_migrations: missing.collect(),
        newer_migrations: applied
            .iter()
            .copied()
            .filter(|version| !known(version))
            .collect(),
    };
    connection.rollback().await?;
    Ok(checkup)
}

async fn sessions(
    connection: &mut PgConnection,
    pooled: &mut PgConnection,
) -> Result<Sessions, sqlx::Error> {
    if !pooler::share_a_server(connection, pooled).await? {
        return Ok(Sessions::Own);
    }
    let prepared_statements = pooler::keeps_prepared_statements(pooled, connection).await?;
    Ok(Sessions::Shared {
        prepared_statements,
    })
}

/// Reads what a session of a pool really has: a pooler may have dropped what we set.
async fn guards(pooled: &mut PgConnection, sessions: Sessions) -> Result<Vec<Guard>, sqlx::Error> {
    // Behind a shared session only the defaults of the role and the database are always there.
    let value = match sessions {
        Sessions::Own => "setting",
        Sessions::Shared { .. } => "reset_val",
    };
    let mut guards = Vec::new();
    for (setting, wanted) in SESSION_SETTINGS {
        // Not prepared, for the same reason. Both are our own constants.
        let query = format!(
            "select {value} || coalesce(unit, '') as found from pg_settings where name = '{setting}'"
        );
        let row = pooled
            .fetch_one(sqlx::raw_sql(AssertSqlSafe(query)))
            .await?;
        guards.push(Guard {
            setting,
            wanted,
            found: row.try_get("found")?,
        });
    }
    Ok(guards)
}

/// Compared with the middle of the question, whose half a way is the error.
async fn clock_ahead(connection: &mut PgConnection) -> Result<f64, sqlx::Error> {
    let ours = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64()
    };
    let query = "select extract(epoch from clock_timestamp())::double precision";
    let before = ours();
    let theirs: f64 = sqlx::query_scalar(query)
        .persistent(false)
        .fetch_one(connection)
        .await?;
    Ok(theirs - f64::midpoint(before, ours()))
}

async fn receivers(connection: &mut PgConnection) -> Result<Receivers, sqlx::Error> {
    // Who may not read statistics sees that there is somebody, and nothing of them. A tool that takes the log waits for no
    // promotion, however it streams; where commits wait for one, it is synchronous all the same.
    let query = sqlx::query(
        "select count(*) filter (where state = 'streaming'
                                 and application_name not in ('pg_basebackup', 'pg_receivewal')
                                 and not exists (select from pg_replication_slots s
                                                 where s.active_pid = r.pid and s.slot_type = 'logical')) as standbys,
                count(*) filter (where sync_state <> 'async') as synchronous,
                count(*) filter (where state is null) as unseen
         from pg_stat_replication r",
    );
    let row = query.persistent(false).fetch_one(connection).await?;
    Ok(Receivers {
        standbys: row.try_get("standbys")?,
        synchronous: row.try_get("synchronous")?,
        unseen: row.try_get("unseen")?,
    })
}

async fn connection_limits(
    connection: &mut PgConnection,
) -> Result<Vec<ConnectionLimit>, sqlx::Error> {
    // Of others' connections our user may see no more than their user and database. No limit of a role or a database holds
    // for superusers.
    let query = sqlx::query(
        "with clients as (
             select usesysid, datid from pg_stat_activity
             where coalesce(backend_type, 'client backend') = 'client backend'
               and usesysid is not null and datid is not null
         )
         select 'max_connections' as setting,
                current_setting('max_connections')::bigint
                - current_setting('superuser_reserved_connections')::bigint
                - coalesce(current_setting('reserved_connections', true)::bigint, 0) as max,
                (select count(*) from clients) as taken
         union all
         select format('the connection limit of role %s', rolname), rolconnlimit,
                (select count(*) from clients where usesysid = oid)
         from pg_roles where rolname = current_user and rolconnlimit >= 0 and not rolsuper
         union all
         select format('the connection limit of database %s', datname), datconnlimit,
                (select count(*) from clients where datid = oid)
         from pg_database
         where datname = current_database() and datconnlimit >= 0
           and not (select rolsuper from pg_roles where rolname = current_user)",
    );
    let limit = |row: PgRow| {
        Ok(ConnectionLimit {
            setting: row.try_get("setting")?,
            max: row.try_get("max")?,
            taken: row.try_get("taken")?,
        })
    };
    query
        .persistent(false)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(limit)
        .collect()
}

async fn old_transactions(
    connection: &mut PgConnection,
) -> Result<Vec<OldTransaction>, sqlx::Error> {
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
    let old = |row: PgRow| {
        Ok(OldTransaction {
            whose: row.try_get("whose")?,
            seconds: row.try_get("seconds")?,
        })
    };
    query
        .bind(TOLD_MAX)
        .persistent(false)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(old)
        .collect()
}

async fn idle_slots(connection: &mut PgConnection) -> Result<Vec<IdleSlot>, sqlx::Error> {
    let query = sqlx::query(
        "select slot_name::text as name,
                wal_status is not distinct from 'lost' as is_lost,
                pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                                     else pg_current_wal_lsn() end, restart_lsn)::bigint as bytes
         from pg_replication_slots
         where not active
         order by is_lost, bytes desc nulls last
         limit $1",
    );
    let slot = |row: PgRow| {
        let keeps = match (row.try_get("is_lost")?, row.try_get("bytes")?) {
            (true, _) => Kept::Lost,
            (false, Some(bytes)) => Kept::Bytes(bytes),
            (false, None) => Kept::Nothing,
        };
        Ok(IdleSlot {
            name: row.try_get("name")?,
            keeps,
        })
    };
    query
        .bind(TOLD_MAX)
        .persistent(false)
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(slot)
        .collect()
}

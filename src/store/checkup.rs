//! Reads for `shopbell doctor` if Postgres, its settings and its schema are fit for Shopbell. Writes
//! nothing.

use std::time::SystemTime;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, FromRow, Row as _};

use super::pools::{SESSION_SETTINGS, set_up};
use super::{APPLIED, MIGRATIONS, StoreError, close, connect, pooler};

/// Most transactions and most slots that a checkup lists.
const LISTED_MAX: i64 = 10;

/// The state of a Postgres server.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkup {
    /// `server_version`, for people.
    pub version: String,
    /// The first number of `version`.
    pub major: i32,
    /// Our user.
    pub user: String,
    /// `server_encoding`.
    pub encoding: String,
    /// How sessions are assigned to server processes.
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
    /// `synchronous_commit` of our sessions.
    pub synchronous_commit: String,
    /// `synchronous_standby_names`.
    pub synchronous_standbys: String,
    /// The receivers of the write-ahead log.
    pub receivers: Receivers,
    /// `idle_in_transaction_session_timeout` of other sessions of this user.
    pub idle_in_transaction_timeout: String,
    /// Seconds by which the clock of the server is ahead of ours.
    pub clock_ahead_seconds: f64,
    /// The limits on connections of our user to this database; at least that of the server.
    pub connection_limits: Vec<ConnectionLimit>,
    /// Transactions that have been open for more than five minutes, if our user may see them, oldest
    /// first.
    pub old_transactions: Vec<OldTransaction>,
    /// Replication slots without a reader, largest first.
    pub idle_slots: Vec<IdleSlot>,
    /// Feeds that keep a due notification for a device, in retention's last walk.
    pub feeds_held_back: i64,
    /// Migrations of this binary that the database lacks.
    pub missing_migrations: Vec<i64>,
    /// Migrations of the database that this binary does not have.
    pub newer_migrations: Vec<i64>,
}

/// How sessions are assigned to server processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// Each session has a server process of its own.
    Own,
    /// A pooler assigns one to each transaction.
    Shared {
        /// The pooler keeps prepared statements.
        prepared_statements: bool,
    },
}

/// A setting that the sessions of the pools rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its name in Postgres.
    pub setting: &'static str,
    /// The value that the pools set.
    pub wanted: &'static str,
    /// The value in a session of a pool. If sessions are shared: the default of each session.
    pub found: String,
}

/// A transaction that holds back vacuum.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct OldTransaction {
    /// Its session: `pid 7 (psql, idle in transaction)`.
    pub whose: String,
    /// Seconds since it began.
    pub seconds: i64,
}

/// Connections that receive the write-ahead log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub struct Receivers {
    /// Standbys that stream; neither logical subscribers nor backup tools.
    pub standbys: i64,
    /// Receivers of any kind that commits wait for, or would wait for if another one ended.
    pub synchronous: i64,
    /// Receivers whose state our user may not see.
    pub unseen: i64,
}

/// A limit on connections.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct ConnectionLimit {
    /// The setting, for people: `max_connections`.
    pub setting: String,
    /// Maximum.
    pub max: i64,
    /// Connections that count against it, ours included.
    pub taken: i64,
}

/// A replication slot without a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleSlot {
    /// Its name.
    pub name: String,
    /// The part of the log that it keeps.
    pub keeps: Kept,
}

/// The part of the write-ahead log that a slot keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// So many bytes, and more each minute.
    Bytes(i64),
    /// Nothing, because the slot never had a reader.
    Nothing,
    /// Nothing any more: its reader has lost a part of the log.
    Lost,
}

/// Reads the state of the server, on connections of its own.
///
/// Uses one transaction and no prepared statements, so that it works behind every pooler. Locks
/// nothing.
pub async fn read(options: &PgConnectOptions) -> Result<Checkup, StoreError> {
    let mut connection = connect(options, "shopbell doctor").await?;
    let mut pooled = connect(options, "shopbell doctor").await?;
    let sessions = sessions(&mut connection, &mut pooled).await?;
    set_up(&mut pooled).await?;
    let guards = guards(&mut pooled, sessions).await?;
    close(pooled).await;
    let mut transaction = connection.begin().await?;
    let server = server(&mut transaction).await?;
    let applied = applied_migrations(&mut transaction).await?;
    let known: Vec<i64> = MIGRATIONS.iter().map(|known| known.version).collect();
    let without = |all: &[i64], some: &[i64]| -> Vec<i64> {
        let missing = all.iter().filter(|version| !some.contains(version));
        missing.copied().collect()
    };
    let checkup = Checkup {
        version: server.version,
        major: server.major,
        user: server.user_name,
        encoding: server.encoding,
        sessions,
        guards,
        in_recovery: server.in_recovery,
        read_only: server.read_only,
        fsync: server.fsync,
        full_page_writes: server.full_page_writes,
        synchronous_commit: server.synchronous_commit,
        synchronous_standbys: server.synchronous_standbys,
        idle_in_transaction_timeout: server.idle_in_transaction_timeout,
        receivers: receivers(&mut transaction).await?,
        clock_ahead_seconds: clock_ahead(&mut transaction).await?,
        connection_limits: connection_limits(&mut transaction).await?,
        old_transactions: old_transactions(&mut transaction).await?,
        idle_slots: idle_slots(&mut transaction).await?,
        feeds_held_back: feeds_held_back(&mut transaction).await?,
        missing_migrations: without(&known, &applied),
        newer_migrations: without(&applied, &known),
    };
    transaction.rollback().await?;
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

/// Reads the settings that a session of a pool has, because a pooler may drop those that we set.
async fn guards(pooled: &mut PgConnection, sessions: Sessions) -> Result<Vec<Guard>, sqlx::Error> {
    // Only the defaults of the role and the database are reliable in a shared session.
    let value = match sessions {
        Sessions::Own => "setting",
        Sessions::Shared { .. } => "reset_val",
    };
    let mut guards = Vec::new();
    for (setting, wanted) in SESSION_SETTINGS {
        // The simple protocol prepares nothing; both values are our own constants.
        let query = format!(
            "select {value} || coalesce(unit, '') as found from pg_settings where name = '{setting}'"
        );
        let query = sqlx::raw_sql(AssertSqlSafe(query));
        let found = pooled.fetch_one(query).await?.try_get(0)?;
        guards.push(Guard {
            setting,
            wanted,
            found,
        });
    }
    Ok(guards)
}

/// The columns of [`server`].
#[derive(FromRow)]
struct Server {
    version: String,
    major: i32,
    user_name: String,
    encoding: String,
    in_recovery: bool,
    read_only: bool,
    fsync: String,
    full_page_writes: String,
    synchronous_commit: String,
    synchronous_standbys: String,
    idle_in_transaction_timeout: String,
}

/// Reads settings of the server and the session.
async fn server(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    let query = sqlx::query_as(
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
    );
    query.persistent(false).fetch_one(connection).await
}

/// Reads the versions of the migrations that were applied; none if the database was never migrated.
async fn applied_migrations(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    let is_migrated = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null");
    let is_migrated = is_migrated.persistent(false);
    if !is_migrated.fetch_one(&mut *connection).await? {
        return Ok(Vec::new());
    }
    let applied = sqlx::query_scalar(APPLIED).persistent(false);
    applied.fetch_all(connection).await
}

/// Reads the result of retention's last walk; 0 if the table is missing, or our user may not read it.
async fn feeds_held_back(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let is_readable = sqlx::query_scalar(
        "select coalesce(has_table_privilege(to_regclass('retention'), 'select'), false)",
    );
    if !is_readable
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?
    {
        return Ok(0);
    }
    let query = sqlx::query_scalar("select coalesce(max(held_back_last), 0) from retention");
    query.persistent(false).fetch_one(connection).await
}

/// Compares the clocks at the middle of a round trip; half of the round trip is the error.
async fn clock_ahead(connection: &mut PgConnection) -> Result<f64, sqlx::Error> {
    let ours = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64()
    };
    let query = "select extract(epoch from clock_timestamp())::double precision";
    let query = sqlx::query_scalar(query).persistent(false);
    let before = ours();
    let theirs: f64 = query.fetch_one(connection).await?;
    Ok(theirs - f64::midpoint(before, ours()))
}

/// Counts the receivers of the log. Without `pg_read_all_stats`, their state is null.
async fn receivers(connection: &mut PgConnection) -> Result<Receivers, sqlx::Error> {
    // A backup tool is never promoted. If commits wait for one, it is synchronous all the same.
    let query = sqlx::query_as(
        "select count(*) filter (where state = 'streaming'
                                 and application_name not in ('pg_basebackup', 'pg_receivewal')
                                 and not exists (select from pg_replication_slots s
                                                 where s.active_pid = r.pid and s.slot_type = 'logical')) as standbys,
                count(*) filter (where sync_state <> 'async') as synchronous,
                count(*) filter (where state is null) as unseen
         from pg_stat_replication r",
    );
    query.persistent(false).fetch_one(connection).await
}

/// Reads the limits of the server, the role and the database. The limits of roles and databases do
/// not apply to superusers.
async fn connection_limits(
    connection: &mut PgConnection,
) -> Result<Vec<ConnectionLimit>, sqlx::Error> {
    // Without `pg_read_all_stats`, a connection of another user has no backend_type.
    let query = sqlx::query_as(
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
    query.persistent(false).fetch_all(connection).await
}

/// Reads open and prepared transactions of this database.
async fn old_transactions(
    connection: &mut PgConnection,
) -> Result<Vec<OldTransaction>, sqlx::Error> {
    let query = sqlx::query_as(
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
    let query = query.bind(LISTED_MAX).persistent(false);
    query.fetch_all(connection).await
}

/// Reads the inactive replication slots of the server.
async fn idle_slots(connection: &mut PgConnection) -> Result<Vec<IdleSlot>, sqlx::Error> {
    let query = sqlx::query_as(
        "select slot_name::text as name,
                wal_status is not distinct from 'lost' as is_lost,
                pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                                     else pg_current_wal_lsn() end, restart_lsn)::bigint as bytes
         from pg_replication_slots
         where not active
         order by is_lost, bytes desc nulls last
         limit $1",
    );
    let query = query.bind(LISTED_MAX).persistent(false);
    let slot = |(name, is_lost, bytes): (String, bool, Option<i64>)| {
        let keeps = match (is_lost, bytes) {
            (true, _) => Kept::Lost,
            (false, Some(bytes)) => Kept::Bytes(bytes),
            (false, None) => Kept::Nothing,
        };
        IdleSlot { name, keeps }
    };
    let slots = query.fetch_all(connection).await?;
    Ok(slots.into_iter().map(slot).collect())
}

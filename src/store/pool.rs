//! One pool of connections to Postgres, and the decision which of its connections are usable.

mod opening;
mod ready;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};

use self::opening::Openings;
use self::ready::Ready;
use crate::tls;

/// Longest wait of a caller for a free or a new connection; then the database counts as away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the answer to a ping when a caller returns a connection or is dropped. After that
/// the pool gives up the connection, so that a silent server occupies no place in the pool.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection that was idle for longer is closed, as sqlx closes those in its pool.
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// A connection returns to the pool of sqlx this often, which closes it after its longest life.
const READY_MAX: Duration = Duration::from_secs(60);
/// SQLSTATE: the server takes no writes.
const READ_ONLY: &str = "25006";

/// Connections for one kind of work.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(super) name: &'static str,
    pub(super) connections: PgPool,
    ready: Arc<Ready<Connected>>,
    openings: Openings,
    /// Shared by all pools of the replica, because they connect to the same server.
    pub(super) trust: Arc<Trust>,
    /// Waits that exceeded [`ACQUIRE_TIMEOUT`].
    pub(super) timeouts: Counter,
}

impl Pool {
    pub(super) fn new(name: &'static str, connections: PgPool, trust: Arc<Trust>) -> Self {
        Self {
            name,
            connections,
            ready: Arc::default(),
            openings: Openings::default(),
            trust,
            timeouts: Counter::default(),
        }
    }

    /// Returns a free or a new connection.
    pub(super) async fn acquire(&self) -> Result<Lease, sqlx::Error> {
        let waiting = match self
            .ready
            .take(|connected| connected.is_usable(&self.trust))
        {
            Ok(connected) => return Ok(self.lease(connected)),
            Err(waiting) => waiting,
        };
        let trusted_since_us = self.trust.since_us();
        let acquiring = self.openings.acquire(&self.connections, ACQUIRE_TIMEOUT);
        let acquired = acquiring.await;
        drop(waiting);
        match acquired {
            Ok(connection) => Ok(self.lease(Connected {
                connection,
                trusted_since_us,
                checked_at: Instant::now(),
                used_at: Instant::now(),
                is_closing: false,
            })),
            Err(error) => {
                if matches!(error, sqlx::Error::PoolTimedOut) {
                    self.timeouts.inc();
                }
                Err(explain(error, &self.connections.connect_options()))
            }
        }
    }

    fn lease(&self, connected: Connected) -> Lease {
        Lease {
            connected,
            acquired_at: Instant::now(),
            trust: self.trust.clone(),
            ready: self.ready.clone(),
        }
    }

    /// Begins to close all connections; waits for running statements.
    pub(super) async fn close(&self) {
        let closed = self.connections.close();
        drop(self.ready.close());
        closed.await;
    }

    /// Returns whether the last new connection led to a standby and was closed.
    pub(super) fn leads_to_a_standby(&self) -> bool {
        self.trust.is_standby.load(Ordering::Relaxed)
    }

    /// Number of connections.
    pub fn size(&self) -> u32 {
        self.connections.size()
    }

    /// Maximum of connections.
    pub fn connections_max(&self) -> u32 {
        self.connections.options().get_max_connections()
    }

    pub(super) fn counts(&self) -> [(&'static str, i64); 2] {
        // The two values are read one after the other, so idle may exceed the total.
        let idle = self.connections.num_idle() + self.ready.len();
        let idle = i64::try_from(idle).unwrap_or(i64::MAX);
        [
            ("idle", idle),
            ("used", (i64::from(self.size()) - idle).max(0)),
        ]
    }
}

/// Decides which connections are usable: those opened after the last evidence that the server has
/// changed or is gone.
#[derive(Debug)]
pub(super) struct Trust {
    start: Instant,
    /// Microseconds after `start`. Connections that were opened earlier are closed before use.
    since_us: AtomicU64,
    /// The last new connection led to a standby.
    pub(super) is_standby: AtomicBool,
}

impl Trust {
    pub(super) fn new() -> Arc<Self> {
        let (since_us, is_standby) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self {
            start: Instant::now(),
            since_us,
            is_standby,
        })
    }

    pub(super) fn distrust_older_than(&self, instant: Instant) {
        self.since_us
            .fetch_max(self.microseconds(instant), Ordering::Relaxed);
    }

    pub(super) fn covers(&self, age: Duration) -> bool {
        let opened_at = Instant::now().checked_sub(age).unwrap_or(self.start);
        self.microseconds(opened_at) >= self.since_us()
    }

    fn since_us(&self) -> u64 {
        self.since_us.load(Ordering::Relaxed)
    }

    fn microseconds(&self, instant: Instant) -> u64 {
        instant
            .saturating_duration_since(self.start)
            .as_micros()
            .try_into()
            .unwrap_or(u64::MAX)
    }
}

/// A connection that the pool of sqlx gave out.
///
/// If it is dropped, it returns there after every answer has been read, within [`RETURN_TIMEOUT`];
/// otherwise the pool opens another one in its place.
#[derive(Debug)]
struct Connected {
    connection: PoolConnection<Postgres>,
    /// The trust before the pool of sqlx checked it.
    trusted_since_us: u64,
    /// When the pool of sqlx checked it.
    checked_at: Instant,
    used_at: Instant,
    is_closing: bool,
}

impl Connected {
    /// Returns whether there is no evidence against it since it was checked.
    fn is_usable(&self, trust: &Trust) -> bool {
        let since_us = trust.since_us();
        since_us == self.trusted_since_us
            && trust.microseconds(self.checked_at) >= since_us
            && self.used_at.elapsed() < IDLE_MAX
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if self.is_closing {
            return;
        }
        let returned = self.connection.return_to_pool();
        // A runtime that ends drops its connections.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(RETURN_TIMEOUT, returned));
        }
    }
}

/// A connection that one caller uses.
///
/// A caller may drop it in the middle of a statement. Then it is pinged before its next use.
pub(super) struct Lease {
    connected: Connected,
    acquired_at: Instant,
    trust: Arc<Trust>,
    ready: Arc<Ready<Connected>>,
}

impl Lease {
    /// The connection, to run a statement on.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connected.connection
    }

    /// Keeps the connection for the next caller without a round trip, because every answer has been
    /// read.
    pub(super) fn answered(self) {
        let Self {
            mut connected,
            ready,
            ..
        } = self;
        connected.used_at = Instant::now();
        if connected.checked_at.elapsed() < READY_MAX {
            drop(ready.keep(connected));
        }
    }

    /// Closes the connection if its error shows that the server stops, is read-only or is gone. Then
    /// the connections that were opened before this statement are closed too, because they lead to
    /// the same server.
    pub(super) fn failed(&mut self, error: &sqlx::Error) {
        if ends_connection(error) {
            self.distrust();
        }
    }

    /// Does the same without a check of an error.
    pub(super) fn distrust(&mut self) {
        self.trust.distrust_older_than(self.acquired_at);
        self.close();
    }

    /// Closes this connection only.
    pub(super) fn close(&mut self) {
        self.connected.is_closing = true;
        self.connected.connection.close_on_drop();
    }
}

/// An error of TLS with its address and its reason.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {reason}")]
struct Explained {
    address: String,
    reason: String,
}

/// Adds the address, the reason and the remedy to an error of TLS. Returns other errors as they are.
pub(super) fn explain(error: sqlx::Error, options: &PgConnectOptions) -> sqlx::Error {
    const SETTINGS: tls::Settings = tls::Settings {
        ca: "`sslrootcert` in DATABASE_URL",
        client: Some("`sslcert` and `sslkey` in DATABASE_URL"),
    };
    let reason = match (tls::reason(&error, SETTINGS), &error) {
        (Some(reason), _) => reason,
        // The text of sqlx for a server without TLS, or of a file of certificates that is not usable.
        (None, sqlx::Error::Tls(error)) => {
            format!("{error}; turn on `ssl` in Postgres, and check the files in DATABASE_URL")
        }
        (None, _) => return error,
    };
    let address = format!("{}:{}", options.get_host(), options.get_port());
    sqlx::Error::Tls(Box::new(Explained { address, reason }))
}

/// Returns whether the server refuses writes.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().as_deref() == Some(READ_ONLY))
}

/// Returns whether an error makes the connection useless, and possibly all others to this server.
fn ends_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        // Read-only; shut down, crashed or starting; ended by a timeout; connection lost. Also prepared
        // statements that a migration or a pooler made stale, because sqlx would use them again.
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            let is_gone = matches!(
                &*code,
                READ_ONLY | "57P01" | "57P02" | "57P03" | "57P05" | "25P03"
            );
            is_gone || code.starts_with("08") || matches!(&*code, "0A000" | "26000" | "42P05")
        }),
        _ => false,
    }
}

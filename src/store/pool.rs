//! One pool of connections to Postgres, and the decision which of its connections are usable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};

use crate::tls;

/// Longest wait for the answer to a ping when a caller returns a connection or is dropped. After that
/// the pool gives up the connection, so that a silent server occupies no place in the pool.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);
/// SQLSTATE: the server takes no writes.
const READ_ONLY: &str = "25006";

/// Connections for one kind of work.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(super) name: &'static str,
    pub(super) connections: PgPool,
    /// Shared by all pools of the replica, because they connect to the same server.
    pub(super) trust: Arc<Trust>,
    /// Waits that exceeded [`ACQUIRE_TIMEOUT`](super::pools).
    pub(super) timeouts: Counter,
}

impl Pool {
    /// Returns a free or a new connection.
    pub(super) async fn acquire(&self) -> Result<Lease, sqlx::Error> {
        match self.connections.acquire().await {
            Ok(connection) => {
                let (acquired_at, trust) = (Instant::now(), self.trust.clone());
                Ok(Lease {
                    connection,
                    acquired_at,
                    trust,
                    is_closing: false,
                })
            }
            Err(error) => {
                if matches!(error, sqlx::Error::PoolTimedOut) {
                    self.timeouts.inc();
                }
                Err(explain(error, &self.connections.connect_options()))
            }
        }
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
        let idle = i64::try_from(self.connections.num_idle()).unwrap_or(i64::MAX);
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
        self.microseconds(opened_at) >= self.since_us.load(Ordering::Relaxed)
    }

    fn microseconds(&self, instant: Instant) -> u64 {
        instant
            .saturating_duration_since(self.start)
            .as_micros()
            .try_into()
            .unwrap_or(u64::MAX)
    }
}

/// A connection that one caller uses.
///
/// A caller may drop it in the middle of a statement. It returns to the pool after every answer has
/// been read, within [`RETURN_TIMEOUT`]; otherwise the pool opens another one in its place.
pub(super) struct Lease {
    connection: PoolConnection<Postgres>,
    acquired_at: Instant,
    trust: Arc<Trust>,
    is_closing: bool,
}

impl Lease {
    /// The connection, to run a statement on.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
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
        self.is_closing = true;
        self.connection.close_on_drop();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A runtime that ends drops its connections.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !self.is_closing {
            runtime.spawn(tokio::time::timeout(
                RETURN_TIMEOUT,
                self.connection.return_to_pool(),
            ));
        }
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

//! Connections to Postgres: one pool for each kind of work, so that none can starve another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use sqlx::Executor as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};

use super::epoch;
use super::pool::{Pool, Trust, is_read_only};
use crate::store::epoch::known::Epochs;

/// Longest time to open a connection. Callers wait less, because a database that needs more than that
/// for a free connection counts as away. But if many connections open at once, each may need more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to close all pools; then connections are dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The settings of each session. They are set by SQL, because PgBouncer and some providers refuse or
/// drop them in the start-up message.
///
/// - If a statement takes longer than its timeout, Postgres ends it and its caller tries again.
/// - No statement of ours leaves a transaction open. If one did, it would hold the lock of a feed.
/// - Each statement reads few rows by index. If the planner overestimates them, compilation costs a
///   hundred times the execution.
/// - The plan of a statement stays in use while its table grows. A table is small at first, and a plan that reads all of
///   it would then cost more with every row.
pub(super) const SESSION_SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("jit", "off"),
    ("enable_seqscan", "off"),
];
/// Each connection of ingest stores one batch at a time. One more connection serves a retry while another is
/// closed.
const INGEST_CONNECTIONS_SPARE: u32 = 1;
/// One task writes acks.
const ACK_CONNECTIONS_MAX: u32 = 1;
/// Two tasks write marks; one of them may wait for locks.
const MARK_CONNECTIONS_MAX: u32 = 2;
/// Reads of pages and cursors: enough to use Postgres fully, and too few to starve ingest.
const READ_CONNECTIONS_MAX: u32 = 6;
/// Probes, housekeeping and the canary wait for each other.
const UPKEEP_CONNECTIONS_MAX: u32 = 1;
/// Retention runs one statement at a time, which may take longer than others wait for a connection.
const RETENTION_CONNECTIONS_MAX: u32 = 1;
/// Further history requests wait.
const HISTORY_CONNECTIONS_MAX: u32 = 3;

/// The pools of a replica.
#[derive(Debug, Clone)]
pub struct Pools {
    /// For [`append`](super::append).
    pub ingest: Pool,
    /// For [`cursors::advance`](super::cursors::advance).
    pub acks: Pool,
    /// For [`marks::write`](super::marks::write).
    pub marks: Pool,
    /// For [`pages::read`](super::pages::read), [`cursors::read`](super::cursors::read) and
    /// [`cursors::make`](super::cursors::make).
    pub reads: Pool,
    /// For probes, housekeeping and the canary.
    pub upkeep: Pool,
    /// For [`history::read`](super::history::read), so that history cannot delay a replay.
    pub history: Pool,
    /// For [`retention`](super::retention), so that it cannot delay a probe.
    pub retention: Pool,
}

impl Pools {
    /// Makes the pools. Connects only when a statement needs it, so that the database may start later.
    /// Each new connection reads the epoch before its first use. `batches` is the number of batches that
    /// ingest stores at the same time.
    pub fn lazy(options: &PgConnectOptions, batches: u8, epochs: &Arc<Epochs>) -> Self {
        let trust = Trust::new();
        let options = service_options(options);
        let pool = |name, size: u32| {
            let (trusted, connected, epochs) = (trust.clone(), trust.clone(), epochs.clone());
            Pool::new(
                name,
                PgPoolOptions::new()
                    .max_connections(size)
                    .acquire_timeout(OPEN_TIMEOUT)
                    .test_before_acquire(false)
                    .before_acquire(move |_, metadata| {
                        let trusted = trusted.covers(metadata.age);
                        Box::pin(async move { Ok(trusted) })
                    })
                    .after_connect(move |connection, _| {
                        let (trust, epochs) = (connected.clone(), epochs.clone());
                        Box::pin(async move {
                            set_up(connection).await?;
                            let begun = epoch::begin(connection, &epochs).await;
                            trust
                                .is_standby
                                .store(begun.as_ref().is_err_and(is_read_only), Ordering::Relaxed);
                            begun
                        })
                    })
                    .connect_lazy_with(options.clone()),
                trust.clone(),
            )
        };
        Self {
            ingest: pool("ingest", u32::from(batches) + INGEST_CONNECTIONS_SPARE),
            acks: pool("acks", ACK_CONNECTIONS_MAX),
            // The label in metrics keeps its first name.
            marks: pool("answers", MARK_CONNECTIONS_MAX),
            reads: pool("reads", READ_CONNECTIONS_MAX),
            upkeep: pool("upkeep", UPKEEP_CONNECTIONS_MAX),
            history: pool("history", HISTORY_CONNECTIONS_MAX),
            retention: pool("retention", RETENTION_CONNECTIONS_MAX),
        }
    }

    /// Uses these options for each new connection. If they lead to another database, each open
    /// connection is closed before its next use. Otherwise they stay open.
    pub fn use_options(&self, options: &PgConnectOptions) {
        let place = |options: &PgConnectOptions| {
            (
                options.get_host().to_owned(),
                options.get_port(),
                options.get_socket().cloned(),
                options.get_database().map(str::to_owned),
            )
        };
        let connections = &self.upkeep.connections;
        let is_elsewhere = place(&connections.connect_options()) != place(options);
        for pool in self.all() {
            pool.connections
                .set_connect_options(service_options(options));
        }
        if is_elsewhere {
            // An attempt that began with the old options may still end. The timeout bounds it.
            let last = Instant::now() + OPEN_TIMEOUT;
            self.upkeep.trust.distrust_older_than(last);
        }
    }

    /// Maximum of connections of a replica.
    pub fn connections_max(&self) -> u32 {
        self.all().map(Pool::connections_max).iter().sum()
    }

    /// Closes all pools after their running statements; returns whether that took less than
    /// [`CLOSE_TIMEOUT`].
    pub async fn close(&self) -> bool {
        let [ingest, acks, marks, reads, upkeep, history, retention] = self.all().map(Pool::close);
        let closing =
            async { tokio::join!(ingest, acks, marks, reads, upkeep, history, retention) };
        tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_ok()
    }

    fn all(&self) -> [&Pool; 7] {
        let Self {
            ingest,
            acks,
            marks,
            reads,
            upkeep,
            history,
            retention,
        } = self;
        [ingest, acks, marks, reads, upkeep, history, retention]
    }
}

fn service_options(options: &PgConnectOptions) -> PgConnectOptions {
    session_options(options).application_name("shopbell")
}

/// The options of every session of the service, through a pool or not. PgBouncer by default refuses
/// `extra_float_digits` in the start-up message; it has no effect on numbers in binary.
pub(super) fn session_options(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().extra_float_digits(None)
}

/// Applies [`SESSION_SETTINGS`] to a new session. The caller limits the time.
pub(super) async fn set_up(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let settings: String = SESSION_SETTINGS
        .iter()
        .map(|(name, value)| format!("set {name} = '{value}';"))
        .collect();
    connection
        .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(settings)))
        .await?;
    Ok(())
}

/// Reads the pools when metrics are scraped.
impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let connections = Family::<[(&str, &str); 2], Gauge>::default();
        let connections_max = Family::<[(&str, &str); 1], Gauge>::default();
        let timeouts = Family::<[(&str, &str); 1], Counter>::default();
        for pool in self.all() {
            let name = ("pool", pool.name);
            for (state, count) in pool.counts() {
                connections
                    .get_or_create(&[name, ("state", state)])
                    .set(count);
            }
            connections_max
                .get_or_create(&[name])
                .set(i64::from(pool.connections_max()));
            timeouts.get_or_create(&[name]).inc_by(pool.timeouts.get());
        }
        tell(
            &mut encoder,
            "pool_connections",
            "Connections to Postgres",
            &connections,
        )?;
        tell(
            &mut encoder,
            "pool_connections_max",
            "Most connections to Postgres",
            &connections_max,
        )?;
        tell(
            &mut encoder,
            "pool_timeouts",
            "Waits for a connection to Postgres that were in vain",
            &timeouts,
        )
    }
}

fn tell(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

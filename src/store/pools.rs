//! Connections to Postgres: one pool for each kind of work, so that none can starve another.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

/// How long a caller waits for a free connection, or a new one, before the database counts as away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A statement that takes longer is ended by Postgres: something is wrong, and its caller tries again.
const STATEMENT_TIMEOUT: &str = "10s";
/// No statement of ours opens a transaction; one that is left open by whatever means must not hold a feed's lock.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "10s";
/// Each partition stores one batch at a time; beyond these, one serves a retry while another is being closed.
const INGEST_CONNECTIONS_SPARE: u32 = 1;
/// Acks are written by one task.
const ACK_CONNECTIONS_MAX: u32 = 1;
/// What people say is written by one task.
const ANSWER_CONNECTIONS_MAX: u32 = 1;
/// Page and cursor reads: enough to keep Postgres busy, few enough that a replay cannot starve ingest.
const READ_CONNECTIONS_MAX: u32 = 6;
/// A look and a canary wait for each other.
const UPKEEP_CONNECTIONS_MAX: u32 = 1;
/// Who asks for history while this many ask waits for ACQUIRE_TIMEOUT at most.
const HISTORY_CONNECTIONS_MAX: u32 = 3;

/// Connections for one kind of work.
#[derive(Debug, Clone)]
pub struct Pool {
    name: &'static str,
    connections: PgPool,
    /// How often nobody gave one back in time.
    timeouts: Counter,
}

impl Pool {
    /// A free connection, or a new one.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let acquired = self.connections.acquire().await;
        if let Err(sqlx::Error::PoolTimedOut) = acquired {
            self.timeouts.inc();
        }
        acquired
    }

    /// How many connections there are.
    pub fn size(&self) -> u32 {
        self.connections.size()
    }

    /// How many there may be.
    pub fn connections_max(&self) -> u32 {
        self.connections.options().get_max_connections()
    }

    fn counts(&self) -> [(&'static str, i64); 2] {
        // Read one after the other, so that a moment may seem to have more idle than there are.
        let idle = i64::try_from(self.connections.num_idle()).unwrap_or(i64::MAX);
        [("idle", idle), ("used", (i64::from(self.size()) - idle).max(0))]
    }
}

/// The pools of a replica.
#[derive(Debug, Clone)]
pub struct Pools {
    /// For [`append`](super::append).
    pub ingest: Pool,
    /// For [`cursors::advance`](super::cursors::advance); commits without waiting for the disk, for a lost ack only means a
    /// replay.
    pub acks: Pool,
    /// For [`answers::write`](super::answers::write).
    pub answers: Pool,
    /// For [`pages`](super::pages) and [`cursors::open`](super::cursors::open).
    pub reads: Pool,
    /// For what nobody waits for: looking around, and forgetting.
    pub upkeep: Pool,
    /// For [`history`](super::history), apart, so that people who look back never hold up a replay.
    pub history: Pool,
}

impl Pools {
    /// Makes the pools; connects only when the first statement needs it, so that the database may come up later.
    pub fn lazy(options: &PgConnectOptions, partitions: u8) -> Self {
        let pool = |name, size: u32, options: PgConnectOptions| Pool {
            name,
            connections: PgPoolOptions::new()
                .max_connections(size)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .connect_lazy_with(options),
            timeouts: Counter::default(),
        };
        let options = options.clone().application_name("shopbell").options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
        ]);
        let without_waiting = options.clone().options([("synchronous_commit", "off")]);
        Self {
            ingest: pool("ingest", u32::from(partitions) + INGEST_CONNECTIONS_SPARE, options.clone()),
            acks: pool("acks", ACK_CONNECTIONS_MAX, without_waiting),
            answers: pool("answers", ANSWER_CONNECTIONS_MAX, options.clone()),
            reads: pool("reads", READ_CONNECTIONS_MAX, options.clone()),
            upkeep: pool("upkeep", UPKEEP_CONNECTIONS_MAX, options.clone()),
            history: pool("history", HISTORY_CONNECTIONS_MAX, options),
        }
    }

    /// How many connections a replica takes at most.
    pub fn connections_max(&self) -> u32 {
        self.all().map(Pool::connections_max).iter().sum()
    }

    /// Closes all of them, waiting for statements under way.
    pub async fn close(&self) {
        let [ingest, acks, answers, reads, upkeep, history] = self.all().map(|pool| pool.connections.close());
        tokio::join!(ingest, acks, answers, reads, upkeep, history);
    }

    fn all(&self) -> [&Pool; 6] {
        let Self { ingest, acks, answers, reads, upkeep, history } = self;
        [ingest, acks, answers, reads, upkeep, history]
    }
}

/// Looks at the pools when it is asked.
impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let connections = Family::<[(&str, &str); 2], Gauge>::default();
        let connections_max = Family::<[(&str, &str); 1], Gauge>::default();
        let timeouts = Family::<[(&str, &str); 1], Counter>::default();
        for pool in self.all() {
            let name = ("pool", pool.name);
            for (state, count) in pool.counts() {
                connections.get_or_create(&[name, ("state", state)]).set(count);
            }
            connections_max.get_or_create(&[name]).set(i64::from(pool.connections_max()));
            timeouts.get_or_create(&[name]).inc_by(pool.timeouts.get());
        }
        tell(&mut encoder, "pool_connections", "Connections to Postgres", &connections)?;
        tell(&mut encoder, "pool_connections_max", "Most connections to Postgres", &connections_max)?;
        tell(&mut encoder, "pool_timeouts", "Waits for a connection to Postgres that were in vain", &timeouts)
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

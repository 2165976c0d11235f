//! The parts of a run: replicas, proxies, services, and the phase that all tasks follow.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::sync::watch;
use tokio::time::sleep;

use super::history::History;
use super::load::Load;
use super::setting::{Parts, Setting};
use crate::it::support::{Proxy, Replica, Tap, World};
use crate::services::Services;

/// Replicas of Shopbell.
pub const REPLICAS: usize = 3;
/// Pause before a replica that ended is started again, as an orchestrator does.
const SUPERVISION: Duration = Duration::from_millis(200);
/// Seconds of a drain. The default would be longer than the faults.
const DRAIN_SECONDS: u64 = 3;
const HEARTBEAT_SECONDS: u64 = 5;

/// The course of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Load and faults.
    Running,
    /// No new events, and no faults. All clients catch up.
    Draining,
    /// The clients ask for the counts and leave.
    Finishing,
}

/// Everything that the load and the faults share.
pub struct Stage {
    pub history: History,
    pub replicas: Vec<Replica>,
    /// The proxies between the clients and each replica.
    pub doors: Vec<Proxy>,
    /// The proxies between the replicas and the services.
    pub to_postgres: Proxy,
    pub to_rabbitmq: Proxy,
    /// Stands between that proxy and RabbitMQ, and can lose hints.
    pub tap: Tap,
    /// The proxy between the publishers and RabbitMQ.
    pub publishers: Proxy,
    /// Connections to Postgres without a proxy, for locks and queries.
    pub pool: PgPool,
    pub partitions: u8,
    /// `SHOPBELL_LEAN_HINTS_FROM`.
    pub lean_hints_from: usize,
    pub load: Load,
    /// Clients of a reconnect herd.
    pub herd: usize,
    exchange: String,
    phase: watch::Sender<Phase>,
    /// Replicas that stay down for now.
    held: Mutex<BTreeSet<usize>>,
    /// Before the services, because its removal needs them.
    pub world: World,
    pub parts: Parts,
    pub services: Services,
}

impl Stage {
    /// Starts the services, the replicas and the proxies.
    pub async fn open(
        folder: PathBuf,
        setting: Setting,
        partitions: u8,
        lean_hints_from: usize,
        herd: usize,
    ) -> Self {
        let services = Services::up().await;
        let parts = Parts::start(setting, &services, &folder).await;
        let world = World::at(parts.database_url.clone(), parts.amqp_url.clone()).await;
        let to_postgres = Proxy::before_service(&parts.database_url).await;
        let tap = Tap::before(&parts.amqp_url).await;
        let to_rabbitmq = Proxy::before_service(&tap.url(&parts.amqp_url)).await;
        let publishers = Proxy::before_service(&parts.amqp_url).await;
        let start_one = |number| {
            parts
                .environment(number)
                .into_iter()
                .fold(world.replica(), |setup, (variable, value)| {
                    setup.with(variable, value)
                })
                .with("DATABASE_URL", to_postgres.url(world.database_url()))
                .with("AMQP_URL", to_rabbitmq.url(world.amqp_url()))
                .with("SHOPBELL_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS)
                .with("SHOPBELL_DRAIN_SECONDS", DRAIN_SECONDS)
                .with("SHOPBELL_INGEST_PARTITIONS", partitions)
                .with("SHOPBELL_LEAN_HINTS_FROM", lean_hints_from)
                .start()
        };
        let replicas = join_all((0..REPLICAS).map(start_one)).await;
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).expect("a directory can be made");
        let mut doors = Vec::new();
        for (number, replica) in replicas.iter().enumerate() {
            let log = std::fs::File::create(logs.join(format!("{}.log", name(number))));
            replica.copy_log_to(log.expect("a log can be written"));
            doors.push(Proxy::before(&replica.public().to_string()).await);
        }
        let pool = PgPoolOptions::new()
            .max_connections(20)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&world.admin_database_url())
            .expect("DATABASE_URL is a URL");
        Self {
            exchange: world.name("events"),
            history: History::begin(folder),
            replicas,
            doors,
            to_postgres,
            to_rabbitmq,
            tap,
            publishers,
            pool,
            partitions,
            lean_hints_from,
            load: Load::new(),
            herd,
            phase: watch::Sender::new(Phase::Running),
            held: Mutex::default(),
            world,
            parts,
            services,
        }
    }

    /// The present phase, and its changes.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// The exchange for events.
    pub fn exchange(&self) -> &str {
        &self.exchange
    }

    /// The URL of RabbitMQ for the publishers.
    pub fn publishers_url(&self) -> String {
        self.publishers.url(self.world.amqp_url())
    }

    /// Keeps a replica down after its end, until `release`.
    pub fn hold(&self, replica: usize) {
        self.held().insert(replica);
    }

    /// Lets the supervision start a replica again.
    pub fn release(&self, replica: usize) {
        self.held().remove(&replica);
    }

    pub fn is_held(&self, replica: usize) -> bool {
        self.held().contains(&replica)
    }

    /// Starts each replica that ended. It never returns.
    pub async fn supervise(&self) {
        loop {
            for (number, replica) in self.replicas.iter().enumerate() {
                if !self.is_held(number) && !replica.is_running() {
                    self.history.say(&format!("{} starts", name(number)));
                    replica.launch();
                }
            }
            sleep(SUPERVISION).await;
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a replica in the history.
pub fn name(replica: usize) -> String {
    format!("replica-{replica}")
}

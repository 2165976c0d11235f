//! The RabbitMQ and Postgres of a run: the private services, or a cluster instead of one of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::cluster::Cluster;
use crate::it::support::Proxy;
use crate::rabbitmq_cluster::RabbitmqCluster;
use crate::services::Services;

/// Space for the data of Postgres: a new cluster needs 40 MB, and its log 80 MB.
const SMALL_DISK_MEGABYTES: u32 = 256;
/// An asynchronous standby does not have the transactions of this time.
pub const LAG: Duration = Duration::from_secs(2);
/// The library that moves the clock of a process.
const CLOCK_LIBRARY: &str = "faketime/libfaketimeMT.so.1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// One RabbitMQ and one Postgres.
    Alone,
    /// Three RabbitMQ nodes behind a load balancer.
    RabbitmqCluster,
    /// A primary whose commits wait for its standby.
    SynchronousStandby,
    /// A primary whose commits do not wait for its standby.
    AsynchronousStandby,
    /// A Postgres on a small disk.
    SmallDisk,
    /// Replicas whose wall clocks can be moved.
    MovedClocks,
}

impl Setting {
    /// Ingest partitions, if only this number keeps the order. RabbitMQ keeps the partition of a
    /// recipient in the memory of a node (docs/scaling.md).
    pub fn partitions(self) -> Option<u8> {
        (self == Self::RabbitmqCluster).then_some(1)
    }

    /// Whether a fail-over loses stored rows (docs/backup.md).
    pub fn is_lossy(self) -> bool {
        self == Self::AsynchronousStandby
    }

    /// Milliseconds without a fault, so that everything recovers and the recovery is measured. If every fault hits
    /// Postgres, they are longer than the time that a replica has to become ready. Otherwise no sample of
    /// readiness could be judged.
    pub fn calm_ms(self) -> std::ops::Range<u64> {
        match self {
            Self::SmallDisk | Self::SynchronousStandby | Self::AsynchronousStandby => {
                10_000..14_000
            }
            _ => 2_500..6_000,
        }
    }

    /// A fault, its end and the pause after it take less than this, except for the slowest ones. Nodes and standbys
    /// start slowly.
    pub fn seconds_per_fault(self) -> u64 {
        match self {
            Self::Alone | Self::MovedClocks => 30,
            _ => 60,
        }
    }

    /// The least share of acks in percent that the checker must judge. A fail-over ends the sessions of all
    /// replicas with their acks under way, and it may lower cursors if it loses rows.
    pub fn acks_judged_percent_min(self) -> u64 {
        match self {
            Self::AsynchronousStandby => 60,
            Self::SynchronousStandby => 75,
            _ => 90,
        }
    }
}

/// The parts of a setting.
pub struct Parts {
    pub setting: Setting,
    pub database_url: String,
    pub amqp_url: String,
    rabbitmq: Option<Mutex<RabbitmqCluster>>,
    pair: Option<Mutex<Pair>>,
    small: Option<Mutex<Cluster>>,
    clocks: Option<Clocks>,
}

impl Parts {
    /// Starts the parts that `services` lack. `folder` takes their files.
    pub async fn start(setting: Setting, services: &Services, folder: &Path) -> Self {
        let mut parts = Self {
            setting,
            database_url: services.database_url.clone(),
            amqp_url: services.amqp_url.clone(),
            rabbitmq: None,
            pair: None,
            small: None,
            clocks: None,
        };
        match setting {
            Setting::Alone => {}
            Setting::RabbitmqCluster => {
                let cluster = RabbitmqCluster::start().await;
                parts.amqp_url = cluster.url();
                parts.rabbitmq = Some(Mutex::new(cluster));
            }
            Setting::SynchronousStandby | Setting::AsynchronousStandby => {
                let pair = Pair::start(setting == Setting::SynchronousStandby).await;
                parts.database_url = pair.url();
                parts.pair = Some(Mutex::new(pair));
            }
            Setting::SmallDisk => {
                let cluster = Cluster::primary_on_disk_of(SMALL_DISK_MEGABYTES).await;
                parts.database_url = cluster.url();
                parts.small = Some(Mutex::new(cluster));
            }
            Setting::MovedClocks => parts.clocks = Some(Clocks::begin(folder)),
        }
        parts
    }

    /// Further environment variables of a replica.
    pub fn environment(&self, replica: usize) -> Vec<(&'static str, String)> {
        self.clocks
            .as_ref()
            .map(|clocks| clocks.environment(replica))
            .unwrap_or_default()
    }

    pub fn clocks(&self) -> &Clocks {
        self.clocks.as_ref().expect("replicas with moved clocks")
    }

    pub async fn rabbitmq(&self) -> MutexGuard<'_, RabbitmqCluster> {
        let cluster = self.rabbitmq.as_ref().expect("three nodes of RabbitMQ");
        cluster.lock().await
    }

    pub async fn pair(&self) -> MutexGuard<'_, Pair> {
        let pair = self.pair.as_ref().expect("a primary with a standby");
        pair.lock().await
    }

    pub async fn small(&self) -> MutexGuard<'_, Cluster> {
        let cluster = self.small.as_ref().expect("a Postgres on a small disk");
        cluster.lock().await
    }
}

/// A primary and its standby behind one address, which leads to the primary.
pub struct Pair {
    synchronous: bool,
    address: Proxy,
    primary: Cluster,
    /// With the way from it to the primary; `None` after it was promoted.
    standby: Option<(Cluster, Proxy)>,
}

impl Pair {
    async fn start(synchronous: bool) -> Self {
        let primary = Cluster::primary().await;
        let address = Proxy::before(&primary.authority()).await;
        let mut pair = Self {
            synchronous,
            address,
            primary,
            standby: None,
        };
        pair.complete().await;
        pair
    }

    fn url(&self) -> String {
        self.address.url(&self.primary.url())
    }

    /// Makes a standby if there is none.
    pub async fn complete(&mut self) {
        if self.standby.is_some() {
            return;
        }
        let replication = Proxy::before(&self.primary.authority()).await;
        let address = replication.address().to_string();
        let standby = self.primary.standby_of(&address).await;
        if self.synchronous {
            self.primary.require_standby().await;
        }
        self.standby = Some((standby, replication));
    }

    /// Kills the primary. An asynchronous standby lags before. Returns whether the primary ran.
    pub async fn kill_primary(&mut self) -> bool {
        let (_, replication) = self.standby.as_ref().expect("the pair is complete");
        if !self.synchronous {
            // Otherwise it could lag by more than the checker expects.
            self.primary.standby_catches_up().await;
            replication.stall();
            tokio::time::sleep(LAG).await;
        }
        let killed = self.primary.kill();
        replication.cut();
        self.address.cut();
        killed
    }

    /// The standby takes the place of the killed primary.
    pub async fn promote_standby(&mut self) {
        let (standby, _) = self.standby.take().expect("the pair is complete");
        standby.promote().await;
        self.primary = standby;
        self.address.lead_to(&self.primary.authority());
        self.address.mend();
    }
}

/// The wall clocks of the replicas. Each has a file with its distance from the true time.
pub struct Clocks {
    folder: PathBuf,
    library: PathBuf,
}

impl Clocks {
    fn begin(folder: &Path) -> Self {
        let clocks = Self {
            folder: folder.join("clocks"),
            library: clock_library(),
        };
        std::fs::create_dir_all(&clocks.folder).expect("a directory can be made");
        (0..super::stage::REPLICAS).for_each(|replica| clocks.set(replica, 0));
        clocks
    }

    /// Moves the clock of a replica to this distance.
    pub fn set(&self, replica: usize, seconds: i64) {
        // A rename, because the replica reads the file at any moment.
        let file = self.file(replica);
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).expect("a file can be written");
        std::fs::rename(new, file).expect("a file can be renamed");
    }

    /// Whether a process has loaded the library, so that its clock moves.
    pub fn move_clock_of(&self, process: u32) -> bool {
        let library = self.library.to_str().expect("a plain name");
        let maps = std::fs::read_to_string(format!("/proc/{process}/maps"));
        maps.is_ok_and(|maps| maps.contains(library))
    }

    fn environment(&self, replica: usize) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.to_str().expect("a plain name").to_owned();
        vec![
            ("LD_PRELOAD", path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.file(replica))),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // Only the wall clock. No correction of a clock moves the monotonic one.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    fn file(&self, replica: usize) -> PathBuf {
        self.folder.join(format!("replica-{replica}"))
    }
}

/// Debian has a directory of libraries for each processor.
fn clock_library() -> PathBuf {
    let mut directories = Path::new("/usr/lib").read_dir().expect("/usr/lib exists");
    let library = directories.find_map(|directory| {
        let library = directory.ok()?.path().join(CLOCK_LIBRARY);
        library.exists().then_some(library)
    });
    library.expect("the package faketime is installed: scripts/install faketime")
}

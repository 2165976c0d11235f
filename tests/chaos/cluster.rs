//! Postgres clusters of a story: a primary, its standby, and copies of its data directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::it::support::{eventually, holds};
use crate::programs::{installed, is_root, program, run};
use crate::small_disk::SmallDisk;

/// A copy recovers from its log first.
const START_BOUND: Duration = Duration::from_secs(60);
/// The log of some dozen events.
const NEAR_BYTES: i64 = 64 * 1024;
/// The programs of each version are in a directory of its own.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The superuser of every cluster. Connections come only from this machine and need no password.
const USER: &str = "shopbell";
/// Nothing checks it, but no log may contain it.
const PASSWORD: &str = "password-of-a-cluster";

/// One Postgres server with its own data directory. It ends with the story.
pub struct Cluster {
    folder: PathBuf,
    port: u16,
    server: Option<Child>,
    /// Its data directory is there.
    disk: Option<SmallDisk>,
}

impl Cluster {
    /// A new, empty primary that allows replication.
    pub async fn primary() -> Self {
        Self::empty().initialized().await
    }

    /// The same with a data directory that has only this much space. It needs root.
    pub async fn primary_on_disk_of(megabytes: u32) -> Self {
        let mut cluster = Self::empty();
        cluster.disk = Some(SmallDisk::mounted_at(&cluster.folder, megabytes));
        cluster.initialized().await
    }

    async fn initialized(self) -> Self {
        let mut command = self.command("initdb");
        command
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--username",
            ])
            .arg(USER)
            .arg("-D")
            .arg(self.data());
        run(command).await;
        self.started().await
    }

    /// A standby that streams from `authority` (`host:port`), the address of this primary or of a
    /// proxy.
    pub async fn standby_of(&self, authority: &str) -> Self {
        let standby = self.copy().await;
        let (host, port) = authority.split_once(':').expect("host:port");
        let conninfo = format!("primary_conninfo = 'host={host} port={port} user={USER}'\n");
        let configuration = standby.data().join("postgresql.auto.conf");
        std::fs::write(configuration, conninfo).expect("the configuration can be written");
        std::fs::write(standby.data().join("standby.signal"), "")
            .expect("the signal file can be written");
        standby.started().await
    }

    /// A base backup, like a snapshot of the volume. It is not started yet.
    pub async fn copy(&self) -> Self {
        let copy = Self::empty();
        let port = self.port.to_string();
        let backup = [
            "-h",
            "127.0.0.1",
            "-U",
            USER,
            "-p",
            &port,
            "--checkpoint=fast",
            "--no-sync",
            "-D",
        ];
        let mut command = copy.command("pg_basebackup");
        command.args(backup).arg(copy.data());
        run(command).await;
        copy
    }

    /// Starts the server, and waits until it accepts connections.
    pub async fn started(mut self) -> Self {
        self.start().await;
        self
    }

    /// Starts the server unless it runs, and waits until it accepts connections.
    pub async fn start(&mut self) {
        let runs = self
            .server
            .as_mut()
            .is_some_and(|server| matches!(server.try_wait(), Ok(None)));
        if !runs {
            self.launch();
        }
        eventually("the cluster answers", START_BOUND, async || {
            PgConnection::connect(&self.url())
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }

    fn launch(&mut self) {
        let mut server = self.command("postgres");
        server
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        let settings = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "wal_keep_size=256MB",
        ];
        settings
            .iter()
            .for_each(|setting| _ = server.args(["-c", setting]));
        let log = std::fs::File::create(self.folder.join("log")).expect("a log can be made");
        server
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log can be shared"))
            .stderr(log);
        self.server = Some(server.spawn().expect("Postgres starts"));
    }

    /// Kills every process of the server at once, like a power cut.
    /// Returns whether it ran.
    pub fn kill(&mut self) -> bool {
        let server = self.server.take();
        let ran = server.is_some();
        if let Some(mut server) = server {
            // Postgres ends its children if its first process is gone, but only after a while.
            let children = Command::new("pgrep")
                .args(["-P", &server.id().to_string()])
                .output()
                .expect("pgrep runs");
            server.kill().ok();
            server.wait().ok();
            let children = String::from_utf8_lossy(&children.stdout)
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>();
            // Some of them are gone by now.
            Command::new("kill")
                .arg("-KILL")
                .args(children)
                .stderr(Stdio::null())
                .status()
                .ok();
        }
        ran
    }

    /// From now on, each commit waits until a standby has it.
    pub async fn require_standby(&self) {
        self.execute("alter system set synchronous_standby_names = '*'")
            .await;
        self.execute("select pg_reload_conf()").await;
        eventually("a standby is synchronous", START_BOUND, async || {
            let synchronous = "select count(*) from pg_stat_replication where sync_state = 'sync'";
            let mut connection = PgConnection::connect(&self.url())
                .await
                .map_err(|error| error.to_string())?;
            let count: i64 = sqlx::query_scalar(synchronous)
                .fetch_one(&mut connection)
                .await
                .map_err(|error| error.to_string())?;
            holds(count == 1, format!("{count} are"))
        })
        .await;
    }

    /// Waits until a standby has all but the newest transactions. On a busy machine it may lag by seconds.
    pub async fn standby_catches_up(&self) {
        const LAG_BYTES: &str = "select max(pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn))::bigint from pg_stat_replication";
        eventually("the standby catches up", START_BOUND, async || {
            let mut connection = PgConnection::connect(&self.url())
                .await
                .map_err(|error| error.to_string())?;
            let bytes: Option<i64> = sqlx::query_scalar(LAG_BYTES)
                .fetch_one(&mut connection)
                .await
                .map_err(|error| error.to_string())?;
            let is_near = bytes.is_some_and(|bytes| bytes <= NEAR_BYTES);
            holds(is_near, format!("it lags by {bytes:?} bytes"))
        })
        .await;
    }

    /// Leaves no free space on its small disk.
    pub fn fill_disk(&self) {
        self.disk.as_ref().expect("a small disk").fill();
    }

    /// Frees the space again.
    pub fn free_disk(&self) {
        self.disk.as_ref().expect("a small disk").free();
    }

    /// Promotes a standby, and waits until it accepts writes.
    pub async fn promote(&self) {
        self.execute("select pg_promote(true, 60)").await;
    }

    /// Runs a statement as the superuser.
    pub async fn execute(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.url())
            .await
            .expect("the cluster answers");
        let executed = connection
            .execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned())))
            .await;
        executed.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// The URL of its maintenance database.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}/postgres", self.authority())
    }

    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn command(&self, name: &str) -> Command {
        let command = postgres(name, &self.folder);
        match &self.disk {
            Some(disk) => disk.command(&command),
            None => command,
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A folder that belongs to the user of Postgres, and a free port.
    fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("shopbell-cluster-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder can be made");
        if is_root() {
            let owned = program("chown", &folder)
                .arg("postgres:")
                .arg(&folder)
                .status()
                .expect("chown runs");
            assert!(
                owned.success(),
                "{} cannot be given to postgres",
                folder.display()
            );
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        Self {
            folder,
            port: port.port(),
            server: None,
            disk: None,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// A program of the newest Postgres that is installed, run as a user that it accepts.
fn postgres(name: &str, folder: &Path) -> Command {
    let path = format!("{VERSIONS}/{}/bin/{name}", newest_version());
    if !is_root() {
        return program(&path, folder);
    }
    let mut command = program("setpriv", folder);
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--init-groups",
        "--",
        &path,
    ]);
    command
}

fn newest_version() -> u32 {
    let versions = installed(VERSIONS)
        .read_dir()
        .expect("Postgres is installed: scripts/services up");
    let version = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.parse::<u32>().ok()
    };
    versions
        .filter_map(version)
        .max()
        .expect("a version of Postgres")
}

//! Three RabbitMQ nodes on this machine that form one cluster, and a load balancer before them.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::it::support::replica::free_address;
use crate::it::support::{eventually, holds};
use crate::programs::{program, run};

/// Nodes of a cluster. A quorum queue needs two of them.
pub const NODES: usize = 3;
/// A node starts in some seconds, and later on a loaded machine of two cores.
const START_BOUND: Duration = Duration::from_secs(120);
/// A node that does not reply to the opening of a connection within this time does not serve yet.
const ANSWER_BOUND: Duration = Duration::from_secs(5);
/// The opening of an AMQP 0-9-1 connection (section 4.2.2).
const OPENING: &[u8; 8] = b"AMQP\0\0\x09\x01";
/// The programs of RabbitMQ. Those in the PATH are wrappers that change to the user `rabbitmq`.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
const USER: &str = "shopbell";
const ONLY_LOCAL: &str = "-kernel inet_dist_use_interface {127,0,0,1}";
/// RabbitMQ 4.3 waits a minute by default (docs/scaling.md). Older versions ignore this, and would
/// refuse it in their configuration file.
const TAKES_OVER_SOON: &str = "-rabbit consumer_disconnected_timeout 5000";

/// The nodes have their own ports, names, data, and Erlang port mapper. All end with this.
pub struct RabbitmqCluster {
    folder: PathBuf,
    password: String,
    port_mapper: Child,
    port_mapper_port: u16,
    nodes: [Node; NODES],
    balancer: SocketAddr,
}

struct Node {
    name: String,
    port: u16,
    distribution_port: u16,
    process: Option<Child>,
}

impl RabbitmqCluster {
    /// Starts three nodes, and joins them.
    pub async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(format!("shopbell-rabbitmq-{id}"));
        fs::create_dir(&folder).expect("a folder can be made");
        let password = format!("{:032x}", fastrand::u128(..));
        let cookie = folder.join(".erlang.cookie");
        fs::write(&cookie, &password).expect("the cookie can be written");
        fs::set_permissions(cookie, Permissions::from_mode(0o400)).expect("the cookie is closed");
        let port_mapper_port = free_address().port();
        let node = |number: usize| Node {
            name: format!("shopbell-{id}-{number}@localhost"),
            port: free_address().port(),
            distribution_port: free_address().port(),
            process: None,
        };
        let nodes = std::array::from_fn(node);
        let ports = std::array::from_fn(|number: usize| nodes[number].port);
        let mut cluster = Self {
            port_mapper: port_mapper(&folder, port_mapper_port),
            balancer: balancer(ports).await,
            folder,
            password,
            port_mapper_port,
            nodes,
        };
        cluster.start_all_apart().await;
        cluster.join().await;
        cluster
    }

    /// The URL of the load balancer. It leads each connection to the next node that accepts one.
    pub fn url(&self) -> String {
        format!("amqp://{USER}:{}@{}/%2f", self.password, self.balancer)
    }

    /// Kills a node, like a power cut. Returns whether it ran.
    pub fn kill(&mut self, node: usize) -> bool {
        let Some(mut process) = self.nodes[node].process.take() else {
            return false;
        };
        process.kill().expect("a child can be killed");
        process.wait().expect("a child can be waited for");
        true
    }

    /// Starts a killed node again, and waits until it serves.
    pub async fn restart(&mut self, node: usize) {
        self.launch(node);
        self.serves(node).await;
    }

    /// Waits until every node is a running member of the cluster.
    pub async fn whole(&self) {
        eventually("the cluster is whole", START_BOUND, async || {
            let status = self
                .rabbitmqctl(0, &["cluster_status", "--formatter", "json"])
                .await;
            let status: serde_json::Value =
                serde_json::from_str(&status).map_err(|error| error.to_string())?;
            let running = status["running_nodes"].as_array().map_or(0, Vec::len);
            holds(running == NODES, format!("{running} nodes run"))
        })
        .await;
    }

    /// Runs `rabbitmqctl` against a node that runs, and returns its output.
    pub async fn rabbitmqctl(&self, node: usize, arguments: &[&str]) -> String {
        let mut command = self.command(node, &format!("{PROGRAMS}/rabbitmqctl"));
        command.arg("--quiet").args(arguments);
        run(command).await
    }

    async fn start_all_apart(&mut self) {
        for node in 0..NODES {
            self.configure(node);
            self.launch(node);
        }
        for node in 0..NODES {
            self.serves(node).await;
        }
    }

    async fn join(&self) {
        let first = self.nodes[0].name.clone();
        for node in 1..NODES {
            self.rabbitmqctl(node, &["stop_app"]).await;
            self.rabbitmqctl(node, &["join_cluster", &first]).await;
            self.rabbitmqctl(node, &["start_app"]).await;
        }
        self.whole().await;
    }

    fn configure(&self, node: usize) {
        let folder = self.folder_of(node);
        fs::create_dir_all(folder.join("conf.d")).expect("a folder can be made");
        let configuration = format!(
            "listeners.tcp.local = 127.0.0.1:{}\n\
             default_user = {USER}\n\
             default_pass = {}\n\
             vm_memory_high_watermark.absolute = 1GiB\n\
             disk_free_limit.absolute = 50MB\n\
             raft.wal_max_size_bytes = 16777216\n",
            self.nodes[node].port, self.password
        );
        let files = [
            ("rabbitmq.conf", configuration.as_str()),
            ("advanced.config", "[]."),
            ("enabled_plugins", "[rabbitmq_consistent_hash_exchange]."),
            ("rabbitmq-env.conf", ""),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("the configuration can be written");
        }
    }

    /// Starts a node that does not run, and returns at once.
    pub fn launch(&mut self, node: usize) {
        let mut command = self.command(node, &format!("{PROGRAMS}/rabbitmq-server"));
        let process = in_background(&mut command, &self.folder_of(node).join("out"));
        self.nodes[node].process = Some(process);
    }

    /// RabbitMQ replies to the opening of an AMQP connection only after everything else has started.
    pub async fn serves(&mut self, node: usize) {
        let Node { port, process, .. } = &mut self.nodes[node];
        let what = format!("node {node} of RabbitMQ serves");
        let out = self.folder.join(node.to_string()).join("out");
        eventually(&what, START_BOUND, async || {
            let ended = process
                .as_mut()
                .and_then(|process| process.try_wait().ok().flatten());
            assert!(
                ended.is_none(),
                "node {node} ended: {}",
                fs::read_to_string(&out).unwrap_or_default()
            );
            let answer = timeout(ANSWER_BOUND, first_byte(*port)).await;
            answer
                .map_err(|error| error.to_string())?
                .map_err(|error| error.to_string())
        })
        .await;
    }

    /// A program of RabbitMQ in the environment of a node. Neither the caller's environment nor
    /// RabbitMQ's own files name another directory.
    fn command(&self, node: usize, path: &str) -> Command {
        let folder = self.folder_of(node);
        let mut command = program(path, &self.folder);
        in_environment(&mut command, self.port_mapper_port);
        for (variable, name) in [
            ("RABBITMQ_CONF_ENV_FILE", "rabbitmq-env.conf"),
            ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
            ("RABBITMQ_CONFIG_FILES", "conf.d"),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
            ("RABBITMQ_MNESIA_BASE", "mnesia"),
            ("RABBITMQ_LOG_BASE", "log"),
            ("RABBITMQ_GENERATED_CONFIG_DIR", "config"),
            ("RABBITMQ_SCHEMA_DIR", "schema"),
        ] {
            command.env(variable, folder.join(name));
        }
        let Node {
            name,
            distribution_port,
            ..
        } = &self.nodes[node];
        command
            .env("HOME", &self.folder)
            .env("RABBITMQ_NODENAME", name)
            .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!("{ONLY_LOCAL} {TAKES_OVER_SOON}"),
            )
            .env("RABBITMQ_CTL_ERL_ARGS", ONLY_LOCAL)
            // The start script then becomes the Erlang VM, so a kill reaches the VM.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        command
    }

    fn folder_of(&self, node: usize) -> PathBuf {
        self.folder.join(node.to_string())
    }
}

impl Drop for RabbitmqCluster {
    fn drop(&mut self) {
        let nodes = self.nodes.iter_mut().filter_map(|node| node.process.take());
        for mut process in nodes {
            process.kill().ok();
            process.wait().ok();
        }
        self.port_mapper.kill().ok();
        self.port_mapper.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Erlang's port mapper. If a node started it, it would outlive the run.
fn port_mapper(folder: &Path, port: u16) -> Child {
    let mut command = program("epmd", folder);
    in_environment(&mut command, port);
    in_background(&mut command, &folder.join("epmd.out"))
}

fn in_environment(command: &mut Command, port_mapper_port: u16) {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("LC_ALL", "C.UTF-8")
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", port_mapper_port.to_string());
}

fn in_background(command: &mut Command, log: &Path) -> Child {
    let log = File::create(log).expect("a log can be made");
    // Erlang reserves memory for each descriptor that the system allows.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -Sn 65536; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    limited
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log can be shared"))
        .stderr(log);
    limited.spawn().expect("RabbitMQ is installed")
}

async fn first_byte(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(OPENING).await?;
    stream.read_u8().await.map(drop)
}

/// Accepts connections, and leads each to the next node in turn that accepts one. It ends with the
/// runtime.
async fn balancer(ports: [u16; NODES]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("the balancer can listen");
    let address = listener.local_addr().expect("a listener has an address");
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut near, _)) = listener.accept().await {
            turn += 1;
            tokio::spawn(async move {
                for node in turn..turn + NODES {
                    let port = ports[node % NODES];
                    if let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                        near.set_nodelay(true).ok();
                        far.set_nodelay(true).ok();
                        copy_bidirectional(&mut near, &mut far).await.ok();
                        return;
                    }
                }
            });
        }
    });
    address
}

//! nginx from the distribution in front of the replicas, configured as for WebSockets in
//! production. It is a process of this run, in its own directory and without special rights.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::it::support::process::signal;
use crate::it::support::replica::free_address;
use crate::it::support::{PATIENCE, Replica, eventually, holds};

/// The package installs it outside the PATH of an ordinary user.
const PROGRAM: &str = "/usr/sbin/nginx";
/// Bound for a stop of nginx without waiting.
const STOP_BOUND: Duration = Duration::from_secs(5);

/// A running nginx.
pub struct Nginx {
    address: SocketAddr,
    directory: PathBuf,
    child: Child,
}

/// nginx's response to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The status for the client.
    pub status: u16,
    /// The status of each replica in turn; 502 if it could not be reached.
    pub upstream: Vec<u16>,
    /// The path of the request.
    pub path: String,
}

impl Nginx {
    /// Installs it if it is missing, and starts it in front of `replicas`.
    pub async fn start(replicas: &[Replica]) -> Self {
        install().await;
        let address = free_address();
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nginx-{}", address.port()));
        fs::remove_dir_all(&directory).ok();
        fs::create_dir_all(&directory).expect("the target directory can be written to");
        write_configuration(&directory, address, replicas);
        let child = command(&directory).spawn().expect("nginx starts");
        let nginx = Self {
            address,
            directory,
            child,
        };
        eventually("nginx listens", PATIENCE, async || {
            let connected = TcpStream::connect(address).await;
            connected
                .map(drop)
                .map_err(|error| format!("{error}\n{}", nginx.complaints()))
        })
        .await;
        nginx
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Routes new clients to these replicas from now on, like a change of a Service's endpoints.
    /// Existing sessions stay. The old workers accept clients until the new ones run, which may be
    /// after the return.
    pub fn send_to(&self, replicas: &[Replica]) {
        write_configuration(&self.directory, self.address, replicas);
        signal(self.child.id(), "HUP");
    }

    /// Waits until it has set replicas aside this many times because they refused a client.
    pub async fn has_given_up(&self, times: usize) {
        eventually(
            &format!("nginx sets a replica aside for the {times}. time"),
            PATIENCE,
            async || {
                let given_up = self
                    .log()
                    .matches("upstream server temporarily disabled")
                    .count();
                holds(given_up >= times, given_up)
            },
        )
        .await;
    }

    /// Stops it when the last session has ended. Returns all its responses.
    pub async fn finish(mut self) -> Vec<Answered> {
        signal(self.child.id(), "QUIT");
        let status = eventually("nginx ends", PATIENCE, async || {
            self.child
                .try_wait()
                .expect("a child can be asked")
                .ok_or_else(|| "it runs".to_owned())
        })
        .await;
        assert!(
            status.success(),
            "nginx ended with {status}: {}",
            self.complaints()
        );
        assert_eq!(self.complaints(), "", "nginx has complaints");
        let log =
            fs::read_to_string(self.directory.join("access.log")).expect("nginx wrote its log");
        log.lines().map(Answered::parse).collect()
    }

    /// nginx's own problems: a refused configuration, or a lack of files or connections. The
    /// statuses show the refusals of replicas.
    fn complaints(&self) -> String {
        let is_complaint = |line: &&str| {
            ["[emerg]", "[alert]", "[crit]"]
                .iter()
                .any(|level| line.contains(level))
        };
        self.log()
            .lines()
            .filter(is_complaint)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    /// Removes it, also if the story failed. If only its master were killed, its workers would
    /// stay.
    fn drop(&mut self) {
        if thread::panicking() {
            let warns = |line: &&str| !line.contains("[notice]");
            eprintln!(
                "--- log of nginx:\n{}\n---",
                self.log()
                    .lines()
                    .filter(warns)
                    .collect::<Vec<_>>()
                    .join("\n")
            );
        }
        if let Ok(None) = self.child.try_wait() {
            signal(self.child.id(), "TERM");
            let polls = STOP_BOUND.as_millis() / 20;
            for _ in 0..polls {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}

impl Answered {
    fn parse(line: &str) -> Self {
        let mut fields = line.splitn(3, '|');
        let mut field = || {
            fields
                .next()
                .unwrap_or_else(|| panic!("a line of another form: {line}"))
        };
        let status = |text: &str| {
            text.parse()
                .unwrap_or_else(|_| panic!("no status in {line}"))
        };
        let (answer, upstream, path) = (field(), field(), field().to_owned());
        // "-" if no replica was asked; a colon if nginx redirected the request internally.
        let upstream = upstream
            .split([',', ':'])
            .map(str::trim)
            .filter(|one| *one != "-")
            .map(status)
            .collect();
        Self {
            status: status(answer),
            upstream,
            path,
        }
    }
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("-p")
        .arg(directory)
        .args(["-c", "nginx.conf", "-e", "error.log"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

async fn install() {
    if Path::new(PROGRAM).exists() {
        return;
    }
    let mut install = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
    install.arg("nginx").stdin(Stdio::null());
    let output = spawn_blocking(move || install.output().expect("scripts/install runs")).await;
    let output = output.expect("waiting for a script does not panic");
    assert!(
        output.status.success(),
        "no nginx: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn write_configuration(directory: &Path, address: SocketAddr, replicas: &[Replica]) {
    let mut servers = String::new();
    for replica in replicas {
        writeln!(
            servers,
            "        server {} max_fails=1 fail_timeout=10s;",
            replica.public()
        )
        .expect("text grows");
    }
    let configuration = CONFIGURATION
        .replace("ADDRESS", &address.to_string())
        .replace("        SERVERS\n", &servers);
    fs::write(directory.join("nginx.conf"), configuration)
        .expect("the configuration can be written");
}

/// After a reload, old workers keep their sockets for `worker_shutdown_timeout`. It is longer than
/// any story, so only a replica closes them.
const CONFIGURATION: &str = "\
daemon off;
worker_processes 2;
worker_shutdown_timeout 1h;
pid nginx.pid;
error_log error.log notice;

events {
    worker_connections 6000;
}

http {
    log_format answers '$status|$upstream_status|$request_uri';
    access_log access.log answers;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;

    # Requests without an upgrade share connections to the replicas.
    map $http_upgrade $connection_upgrade {
        default upgrade;
        '' '';
    }

    upstream shopbell {
        zone shopbell 256k;
        SERVERS
        keepalive 16;
    }

    server {
        listen ADDRESS backlog=4096;

        location / {
            proxy_pass http://shopbell;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            # More than a heartbeat, so that the service closes silent clients.
            proxy_read_timeout 90s;
            proxy_connect_timeout 2s;
            # If a replica that leaves refuses with 503, another accepts the client.
            proxy_next_upstream error timeout http_503;
        }
    }
}
";

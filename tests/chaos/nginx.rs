//! nginx from the distribution in front of the replicas, set up as for sockets in production: a process of this run's own, in
//! a directory of its own, that runs as nobody in particular.

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

/// Where the package puts it: outside the path of a user who is not root.
const PROGRAM: &str = "/usr/sbin/nginx";
/// How long an nginx that is told to leave at once may take.
const STOP_BOUND: Duration = Duration::from_secs(5);

/// A running nginx.
pub struct Nginx {
    address: SocketAddr,
    directory: PathBuf,
    child: Child,
}

/// What nginx answered to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The status that the client got.
    pub status: u16,
    /// The status of each replica that was asked, in turn; 502 for one that could not be reached.
    pub upstream: Vec<u16>,
    /// What was asked for.
    pub path: String,
}

impl Nginx {
    /// Starts it, installed if it is missing, in front of `replicas`.
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

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on clients are sent to these, as when a Service's endpoints change; sessions stay where they are. Returns
    /// before nginx is done with it: its old workers take clients until its new ones do.
    pub fn send_to(&self, replicas: &[Replica]) {
        write_configuration(&self.directory, self.address, replicas);
        signal(self.child.id(), "HUP");
    }

    /// Waits until it has given up replicas so many times, for a while: because they refused somebody.
    pub async fn has_given_up(&self, times: usize) {
        eventually(
            &format!("nginx gives up a replica for the {times}. time"),
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

    /// Ends it when the last session has ended; gives all that it answered.
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

    /// What nginx says is wrong with itself: a configuration that it did not take, files or connections that ran out. That a
    /// replica refused somebody is told by the statuses.
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
    /// Leaves nothing behind, also where the story failed: its master, killed, would leave its workers.
    fn drop(&mut self) {
        if thread::panicking() {
            let warns = |line: &&str| !line.contains("[notice]");
            eprintln!(
                "--- nginx said:\n{}\n---",
                self.log()
                    .lines()
                    .filter(warns)
                    .collect::<Vec<_>>()
                    .join("\n")
            );
        }
        if let Ok(None) = self.child.try_wait() {
            signal(self.child.id(), "TERM");
            let looks = STOP_BOUND.as_millis() / 20;
            for _ in 0..looks {
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
        // "-" where nobody was asked; a colon where the request was passed on inside nginx.
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
    install.arg("nginx-light").stdin(Stdio::null());
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

/// A reload leaves the old workers to their sockets for as long as `worker_shutdown_timeout` says: longer than any story, so
/// that only a replica closes them.
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

    # What is no upgrade shares connections to the replicas.
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
            # More than a heartbeat: it is the service that closes who is silent.
            proxy_read_timeout 90s;
            proxy_connect_timeout 2s;
            # A replica that leaves refuses with 503: another takes the client in.
            proxy_next_upstream error timeout http_503;
        }
    }
}
";

//! A real PgBouncer between Shopbell and the world's Postgres.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::replica::free_address;
use super::{APP, OWNER, PATIENCE, World, eventually, run_any, url};

/// Bound for the installation on a slow network.
const INSTALL_BOUND: Duration = Duration::from_secs(900);

/// A PgBouncer that ends with the story.
pub struct PgBouncer {
    address: SocketAddr,
    child: Child,
}

impl PgBouncer {
    /// Starts one in this `pool_mode`, with more lines of configuration.
    pub async fn start(world: &World, pool_mode: &str, more: &str) -> Self {
        install().await;
        let (address, folder) = (
            free_address(),
            world.folder(&format!("pgbouncer-{pool_mode}-{}", more.len())),
        );
        let (_, password) = url::user_and_password(world.database_url());
        let users = [APP, OWNER].map(|user| format!("\"{user}\" \"{password}\"\n"));
        let (host, port) = url::host_and_port(world.database_url());
        let listen_port = address.port();
        let configuration = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {listen_port}\n\
             auth_type = scram-sha-256\nauth_file = {folder}/users.txt\npool_mode = {pool_mode}\nunix_socket_dir =\n\
             max_client_conn = 200\ndefault_pool_size = 40\n{more}\n"
        );
        for (file, text) in [
            ("users.txt", users.concat()),
            ("pgbouncer.ini", configuration),
        ] {
            let path = format!("{folder}/{file}");
            fs::write(&path, text).expect("a file can be written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("our own file");
        }
        let child = program(&folder).spawn().expect("PgBouncer starts");
        let pooler = Self { address, child };
        eventually("PgBouncer listens", PATIENCE, async || {
            TcpStream::connect(address)
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
        pooler
    }

    /// Whether this version keeps prepared statements in transaction mode, as 1.21 and later do.
    pub async fn keeps_prepared_statements() -> bool {
        install().await;
        let mut version = pgbouncer();
        version.arg("--version");
        let done = run_any(version, PATIENCE).await.succeeded();
        let number = done.stdout.split_whitespace().nth(1).and_then(|version| {
            let (major, rest) = version.split_once('.')?;
            let minor = rest.split('.').next()?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        number.expect("PgBouncer has a version") >= (1, 21)
    }

    /// The service's URL through this PgBouncer.
    pub fn url(&self, service_url: &str) -> String {
        url::at(service_url, &self.address.to_string())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn install() {
    let mut install = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
    install.arg("pgbouncer").stdin(Stdio::null());
    run_any(install, INSTALL_BOUND).await.succeeded();
}

/// It refuses to run as root, but reads its configuration before it changes the user.
fn program(folder: &str) -> Command {
    let mut command = pgbouncer();
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if is_root {
        command.args(["--user", "postgres"]);
    }
    command.arg(format!("{folder}/pgbouncer.ini"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn pgbouncer() -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("pgbouncer");
    // Debian installs it outside the PATH of an ordinary user.
    command.env("PATH", format!("{path}:/usr/sbin"));
    command
}

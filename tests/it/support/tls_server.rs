//! Servers with TLS: a real Postgres whose certificate changes, and one of openssl that only shakes
//! hands, in the place of a RabbitMQ with a bad certificate.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::net::TcpStream;

use super::certificates::Certificate;
use super::process::signal;
use super::replica::free_address;
use super::{PATIENCE, eventually, run_any};

/// The connections that Postgres accepts with and without TLS.
pub const ANY: &str = "host all all 127.0.0.1/32 trust\n";

/// A Postgres with its own data and TLS. It ends with the story.
pub struct TlsPostgres {
    folder: PathBuf,
    port: u16,
    child: Child,
    /// Opened once, because the rules of a story may refuse a new one.
    admin: PgConnection,
}

impl TlsPostgres {
    /// Makes and starts it. It trusts client certificates of `ca`.
    pub async fn start(ca: &Path, certificate: &Certificate) -> Self {
        let port = free_address().port();
        let folder = std::env::temp_dir().join(format!("shopbell-tls-{port}"));
        fs::create_dir(&folder).expect("a folder can be made");
        give(&folder);
        let data = folder.join("data");
        let mut initdb = postgres("initdb");
        initdb
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "--username=shopbell", "-D"])
            .arg(&data);
        run_any(initdb, PATIENCE).await.succeeded();
        install(ca, &folder.join("ca.pem"));
        show(&folder, certificate);
        let (place, configuration) = (folder.display(), data.join("postgresql.conf"));
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nssl = on\n\
             ssl_ca_file = '{place}/ca.pem'\nssl_cert_file = '{place}/server.pem'\nssl_key_file = '{place}/server.key'\n"
        );
        let old = fs::read_to_string(&configuration).expect("initdb wrote it");
        fs::write(&configuration, old + &settings).expect("settings can be written");
        let log = fs::File::create(folder.join("log")).expect("a log can be made");
        let mut server = postgres("postgres");
        server.arg("-D").arg(&data).stdin(Stdio::null());
        server
            .stdout(log.try_clone().expect("a log can be shared"))
            .stderr(log);
        let child = server.spawn().expect("Postgres starts");
        let admin = eventually("Postgres answers", PATIENCE, async || {
            let connected = PgConnection::connect(&url(port, "disable")).await;
            connected.map_err(|error| error.to_string())
        })
        .await;
        Self {
            folder,
            port,
            child,
            admin,
        }
    }

    /// Its URL with this `sslmode`, and with more parameters behind it.
    pub fn url(&self, sslmode: &str) -> String {
        url(self.port, sslmode)
    }

    /// Changes its certificate, its settings, and the connections that it accepts. New connections
    /// may still meet the old ones for a moment.
    pub async fn change(&mut self, certificate: &Certificate, settings: &[&str], rules: &str) {
        show(&self.folder, certificate);
        fs::write(self.folder.join("data/pg_hba.conf"), rules).expect("rules can be written");
        let mut statements = vec!["alter system reset all".to_owned()];
        let set = settings
            .iter()
            .map(|setting| format!("alter system set {setting}"));
        statements.extend(set);
        statements.push("select pg_reload_conf()".to_owned());
        for statement in statements {
            let statement = sqlx::raw_sql(AssertSqlSafe(statement));
            self.admin.execute(statement).await.expect("a setting");
        }
    }

    /// The number of sessions with TLS.
    pub async fn encrypted_sessions(&mut self) -> i64 {
        let query = "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid)
                     where s.ssl and a.application_name = 'shopbell'";
        let count = sqlx::query_scalar(query).fetch_one(&mut self.admin).await;
        count.expect("Postgres answers")
    }
}

impl Drop for TlsPostgres {
    fn drop(&mut self) {
        signal(self.child.id(), "QUIT");
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// `openssl s_server`. It ends with the story.
pub struct TlsServer {
    pub address: SocketAddr,
    child: Child,
}

impl TlsServer {
    /// Starts it with more arguments.
    pub async fn start(certificate: &Certificate, more: &[&str]) -> Self {
        Self::listen(certificate, &[&["-www"], more].concat(), ".").await
    }

    /// Starts it as a web server with the files of a folder.
    pub async fn of_files(certificate: &Certificate, folder: &str) -> Self {
        Self::listen(certificate, &["-WWW"], folder).await
    }

    async fn listen(certificate: &Certificate, arguments: &[&str], folder: &str) -> Self {
        let address = free_address();
        let mut server = Command::new("openssl");
        server
            .args(["s_server", "-accept", &address.to_string(), "-cert"])
            .arg(&certificate.certificate)
            .arg("-key")
            .arg(&certificate.key)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = server.spawn().expect("openssl is installed");
        let server = Self { address, child };
        eventually("openssl listens", PATIENCE, async || {
            let connected = TcpStream::connect(address).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        server
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn url(port: u16, sslmode: &str) -> String {
    format!("postgres://shopbell@localhost:{port}/postgres?sslmode={sslmode}")
}

/// Copies the certificate and the key to the place where Postgres reads them.
fn show(folder: &Path, certificate: &Certificate) {
    install(&certificate.certificate, &folder.join("server.pem"));
    install(&certificate.key, &folder.join("server.key"));
}

fn install(from: &Path, to: &Path) {
    fs::copy(from, to).expect("a file can be copied");
    fs::set_permissions(to, Permissions::from_mode(0o600)).expect("our own file");
    give(to);
}

/// Gives a file to the user of Postgres.
fn give(path: &Path) {
    if is_root() {
        let (user, group) = user_of_postgres();
        chown(path, Some(user), Some(group)).expect("root gives it away");
    }
}

fn user_of_postgres() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let user = users.lines().find(|user| user.starts_with("postgres:"));
    let mut numbers = user.expect("Postgres is installed").split(':').skip(2);
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    (number().expect("an id"), number().expect("an id"))
}

/// A program of the newest Postgres on this machine, run as a user that it accepts.
fn postgres(program: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
    let versions = versions.filter_map(|version| version.ok()?.file_name().into_string().ok());
    let newest = versions.max_by_key(|version| version.parse::<u32>().unwrap_or(0));
    let newest = newest.expect("Postgres is installed");
    let program = format!("/usr/lib/postgresql/{newest}/bin/{program}");
    let mut command = match is_root() {
        true => Command::new("setpriv"),
        false => Command::new(&program),
    };
    if is_root() {
        command.args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--",
        ]);
        command.arg(program);
    }
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

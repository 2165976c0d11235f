//! The shipped binary as a service: it is started, killed, restarted, and queried over its
//! operations port.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use super::http::{self, Reply};
use super::log::Log;
use super::process::{Environment, shopbell, signal};
use super::{Done, PATIENCE, command, eventually, holds};

/// Time for a stop beyond the drain: the current batch, the cursors and the connections.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// Ports below the range for outgoing connections, so that a replica finds its ports free after a
/// restart.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// A running Shopbell. Clones are the same replica.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    environment: Environment,
    role: Option<&'static str>,
    open_files: Option<u32>,
    public: SocketAddr,
    operations: SocketAddr,
    drain: Duration,
    log: Log,
    /// `None` if it was killed or has ended. Held only to check or replace the child.
    child: Mutex<Option<Child>>,
}

impl Replica {
    /// Starts the binary on ports of its own. It may not be ready yet.
    pub(super) fn spawn(
        mut environment: Environment,
        role: Option<&'static str>,
        open_files: Option<u32>,
    ) -> Self {
        let (public, operations) = (free_address(), free_address());
        environment.insert("SHOPBELL_LISTEN".to_owned(), public.to_string());
        environment.insert("SHOPBELL_OPS_LISTEN".to_owned(), operations.to_string());
        let drain_seconds = environment
            .entry("SHOPBELL_DRAIN_SECONDS".to_owned())
            .or_insert_with(|| "0".to_owned());
        let drain = Duration::from_secs(drain_seconds.parse().expect("a drain in seconds"));
        let inner = Inner {
            environment,
            role,
            open_files,
            public,
            operations,
            drain,
            log: Log::default(),
            child: Mutex::new(None),
        };
        let replica = Self(Arc::new(inner));
        replica.launch();
        replica
    }

    /// The address for merchants.
    pub fn public(&self) -> SocketAddr {
        self.0.public
    }

    /// The address for operators.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub fn operations(&self) -> SocketAddr {
        self.0.operations
    }

    /// Waits until it serves, with Postgres and RabbitMQ.
    pub async fn ready(&self) {
        self.ready_within(PATIENCE).await;
    }

    /// The same within a bound.
    pub async fn ready_within(&self, bound: Duration) {
        self.reports(bound, r#""broker":"ok""#).await;
    }

    /// Waits until it serves, and reports this of RabbitMQ.
    pub async fn reports_broker(&self, state: &str) {
        self.reports(PATIENCE, &format!(r#""broker":"{state}""#))
            .await;
    }

    async fn reports(&self, bound: Duration, wanted: &str) {
        eventually(
            &format!("the replica at {} reports {wanted}", self.0.public),
            bound,
            async || {
                assert!(
                    self.is_running(),
                    "the replica ended instead of getting ready:\n{}",
                    self.0.log.text()
                );
                let reply = self.try_get("/readyz").await?;
                let whole = reply.status == 200 && reply.text().contains(wanted);
                holds(whole, format!("{} {}", reply.status, reply.text()))
            },
        )
        .await;
    }

    /// Kills it, like a power cut.
    pub fn kill(&self) {
        self.with_child(|child| {
            if let Some(mut child) = child.take() {
                child.kill().expect("a child can be killed");
                child.wait().expect("a child can be waited for");
            }
        });
    }

    /// Starts it again on the same ports, and waits until it serves. If it still runs, it is killed
    /// first.
    pub async fn restart(&self) {
        self.kill();
        self.launch();
        self.ready().await;
    }

    /// Starts it again on the same ports, and returns at once. It must have ended.
    pub fn launch(&self) {
        let mut command = shopbell(&self.0.environment);
        if let Some(files) = self.0.open_files {
            command = limited(command, files);
        }
        command
            .arg("serve")
            .args(self.0.role.map(|role| format!("--role={role}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("shopbell starts");
        self.0
            .log
            .follow(child.stderr.take().expect("stderr is piped"));
        self.with_child(|running| *running = Some(child));
    }

    /// Its process, if it runs.
    #[allow(
        dead_code,
        reason = "only the chaos stories use it, and both test binaries share this file"
    )]
    pub fn process_id(&self) -> Option<u32> {
        self.is_running()
            .then(|| self.with_child(|child| child.as_ref().map(Child::id)))?
    }

    /// Writes every line of its log to this file too, the kept ones first.
    #[allow(
        dead_code,
        reason = "only the chaos stories use it, and both test binaries share this file"
    )]
    pub fn copy_log_to(&self, file: fs::File) {
        self.0.log.copy_to(file);
    }

    /// Sends SIGTERM, as an init system does, and returns at once.
    pub fn ask_to_leave(&self) {
        signal(self.pid(), "TERM");
    }

    /// Sends SIGINT, as a person at a terminal does, and returns at once.
    pub fn interrupt(&self) {
        signal(self.pid(), "INT");
    }

    /// Waits for its end, within its drain and the time for a stop.
    pub async fn ended(&self) -> ExitStatus {
        let (what, bound) = (
            format!("the replica at {} ends", self.0.public),
            self.0.drain + STOP_GRACE,
        );
        let status = eventually(&what, bound, async || {
            self.with_child(|child| {
                let running = child.as_mut().expect("a replica that was not killed");
                running
                    .try_wait()
                    .expect("a child can be asked")
                    .ok_or_else(|| "it runs".to_owned())
            })
        })
        .await;
        self.with_child(|child| *child = None);
        status
    }

    /// Sends SIGTERM, and waits for its end.
    pub async fn terminate(&self) -> ExitStatus {
        self.ask_to_leave();
        self.ended().await
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        self.with_child(|child| {
            child
                .as_mut()
                .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
        })
    }

    /// `GET path` on the operations port.
    pub async fn get(&self, path: &str) -> Reply {
        match self.try_get(path).await {
            Ok(reply) => reply,
            Err(error) => panic!("GET {path} on the operations port: {error}"),
        }
    }

    /// A metric, summed over its labels; 0 if it is missing.
    pub async fn metric(&self, name: &str) -> u64 {
        self.samples(name)
            .await
            .iter()
            .map(|(_, value)| value)
            .sum()
    }

    /// A metric whose labels contain `label`, for example `reason="too_large"`.
    pub async fn metric_where(&self, name: &str, label: &str) -> u64 {
        self.samples(name)
            .await
            .iter()
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value)
            .sum()
    }

    /// The names of all its metrics.
    pub async fn metric_names(&self) -> BTreeSet<String> {
        let text = self.get("/metrics").await.text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| line.split(['{', ' ']).next())
            .map(str::to_owned)
            .collect()
    }

    /// Waits until a metric has reached `least`.
    pub async fn metric_reaches(&self, name: &str, least: u64) {
        eventually(&format!("{name} reaches {least}"), PATIENCE, async || {
            let value = self.metric(name).await;
            holds(value >= least, value)
        })
        .await;
    }

    /// Waits until a metric whose labels contain `label` is `wanted`. A fraction is dropped.
    pub async fn metric_is(&self, name: &str, label: &str, wanted: u64) {
        eventually(
            &format!("{name}{{{label}}} is {wanted}"),
            PATIENCE,
            async || {
                let samples = self.samples(name).await;
                let values: Vec<u64> = samples
                    .iter()
                    .filter(|(labels, _)| labels.contains(label))
                    .map(|(_, value)| *value)
                    .collect();
                holds(
                    !values.is_empty() && values.iter().sum::<u64>() == wanted,
                    format!("{values:?}"),
                )
            },
        )
        .await;
    }

    /// Runs `shopbell` with `arguments` to its end, as in the container of this replica.
    pub async fn shopbell(&self, arguments: &[&str]) -> Done {
        command::run(&self.0.environment, arguments).await
    }

    /// Its memory now.
    pub fn rss_bytes(&self) -> u64 {
        let pid = self.pid();
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc has the process");
        let kibibytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.expect("a live process holds memory") * 1_024
    }

    /// The number of its threads with this name.
    pub fn threads(&self, name: &str) -> usize {
        let tasks =
            fs::read_dir(format!("/proc/{}/task", self.pid())).expect("/proc has the threads");
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|comm| comm.trim_end() == name).count()
    }

    /// Waits until the last event of this level with this field has a wanted value, and returns it.
    ///
    /// A story identifies an event by its fields, so that its text can change.
    pub async fn logs(&self, level: &str, field: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let what = format!("the replica logs {level} with a wanted {field}");
        eventually(&what, PATIENCE, async || {
            let last = self.0.log.fields(level, field).pop();
            last.filter(|value| is_wanted(value)).ok_or(self.log())
        })
        .await
    }

    /// Its log so far, in all of its lives.
    pub fn log(&self) -> String {
        self.0.log.text()
    }

    /// The lines of panics, in any of its lives.
    pub fn panics(&self) -> Vec<String> {
        self.0.log.panics()
    }

    fn pid(&self) -> u32 {
        self.with_child(|child| child.as_ref().map(Child::id))
            .expect("a replica that runs")
    }

    /// The same, if it replies.
    pub async fn try_get(&self, path: &str) -> Result<Reply, String> {
        http::get(self.0.operations, path)
            .await
            .map_err(|error| error.to_string())
    }

    /// The samples of one metric: labels and value.
    async fn samples(&self, name: &str) -> Vec<(String, u64)> {
        let text = self.get("/metrics").await.text();
        let sample = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            // Other metrics may begin with the same name.
            let whole = labels.is_empty() || labels.starts_with('{');
            whole.then(|| {
                (
                    labels.to_owned(),
                    value.parse::<f64>().expect("a number") as u64,
                )
            })
        };
        text.lines().filter_map(sample).collect()
    }

    fn with_child<T>(&self, act: impl FnOnce(&mut Option<Child>) -> T) -> T {
        act(&mut self.0.child.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(mut child) = self
            .child
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            child.kill().ok();
            child.wait().ok();
        }
        if thread::panicking() {
            let mut text = format!("--- log of the replica at {}:\n", self.public);
            write!(text, "{}", self.log.text()).ok();
            eprintln!("{text}---");
        }
    }
}

/// The same command, under a soft limit of open files.
fn limited(command: Command, files: u32) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -Sn {files} && exec \"$0\" \"$@\"")])
        .arg(command.get_program());
    limited.env_clear().envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    limited
}

/// A loopback address that nothing listens on, and that this process has not used before.
pub fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in PORTS {
        // At random, because other test processes search for ports too.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS)));
        if !given.contains(&address.port()) && TcpListener::bind(address).is_ok() {
            given.insert(address.port());
            return address;
        }
    }
    panic!("no free port in {PORTS:?}");
}

//! One Shopbell for one run: the release binary as a process, with its own database and AMQP
//! prefix.

use std::ffi::OsString;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::measure::Processes;
use crate::publisher::{Publisher, Target};
use crate::services::{Services, free_port};
use crate::wire::Server;

/// Bound for each wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The same if a poll costs time of Postgres.
const RARE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A running Shopbell and everything of its own.
pub struct Stage<'a> {
    pub services: &'a Services,
    pub server: Server,
    pub pool: PgPool,
    name: String,
    environment: Vec<(OsString, OsString)>,
    operations_port: u16,
    child: Child,
}

/// A further replica of a stage, with the role gateway.
pub struct Gateway {
    pub port: u16,
    operations_port: u16,
    child: Child,
}

impl<'a> Stage<'a> {
    /// Starts it migrated, and waits until it is ready.
    pub async fn set(services: &'a Services) -> anyhow::Result<Self> {
        Self::set_with(services, &[]).await
    }

    /// The same with further settings.
    pub async fn set_with(
        services: &'a Services,
        settings: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("bench{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        services.create_database(&name).await?;
        let (public_port, operations_port) = (free_port()?, free_port()?);
        let secret: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(32)
            .collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_shopbell"));
        command
            .env_clear()
            .env("DATABASE_URL", services.database_url(&name))
            .env("AMQP_URL", &services.amqp_url)
            .env("SHOPBELL_AMQP_PREFIX", &name)
            .env("SHOPBELL_JWT_HS256_SECRET", &secret)
            .env("SHOPBELL_LISTEN", format!("127.0.0.1:{public_port}"))
            .env(
                "SHOPBELL_OPS_LISTEN",
                format!("127.0.0.1:{operations_port}"),
            )
            .env("SHOPBELL_DRAIN_SECONDS", "0")
            // The ledger would include its events.
            .env("SHOPBELL_CANARY_SECONDS", "0")
            .env("RUST_LOG", "warn");
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        // An experiment may add settings: SHOPBELL_BENCH_ENV="NAME=value NAME=value".
        let extra = std::env::var("SHOPBELL_BENCH_ENV").unwrap_or_default();
        command.envs(
            extra
                .split_whitespace()
                .filter_map(|pair| pair.split_once('=')),
        );
        ensure!(
            command
                .arg("migrate")
                .stdout(Stdio::null())
                .status()?
                .success(),
            "shopbell migrate failed"
        );
        let set = command.get_envs();
        let environment: Vec<(OsString, OsString)> = set
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let child = serve(&environment)
            .spawn()
            .context("could not start shopbell")?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect(&services.database_url(&name))
            .await?;
        let server = Server::Shopbell {
            port: public_port,
            secret,
        };
        let stage = Self {
            services,
            server,
            pool,
            name,
            environment,
            operations_port,
            child,
        };
        ready(operations_port).await?;
        Ok(stage)
    }

    /// Starts a gateway beside it, on these ports or on free ones, and waits until it is ready.
    pub async fn gateway(&self, ports: Option<(u16, u16)>) -> anyhow::Result<Gateway> {
        let (port, operations_port) = match ports {
            Some(ports) => ports,
            None => (free_port()?, free_port()?),
        };
        let child = serve(&self.environment)
            .args(["--role", "gateway"])
            .env("SHOPBELL_LISTEN", format!("127.0.0.1:{port}"))
            .env(
                "SHOPBELL_OPS_LISTEN",
                format!("127.0.0.1:{operations_port}"),
            )
            .spawn()
            .context("could not start a gateway")?;
        let gateway = Gateway {
            port,
            operations_port,
            child,
        };
        ready(operations_port).await?;
        Ok(gateway)
    }

    /// All processes of the server side.
    pub fn processes(&self) -> Processes {
        self.services.processes().with("Shopbell", self.pid())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A publisher to it.
    pub async fn publisher(&self) -> anyhow::Result<Publisher> {
        let target = Target::Events(format!("{}.events", self.name));
        Publisher::connect(&self.services.amqp_url, target).await
    }

    /// A counter of its `/metrics`.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let metrics = get(self.operations_port, "/metrics").await?;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.with_context(|| format!("/metrics has no {name}"))
    }

    /// Waits until this many notifications are stored.
    pub async fn stored(&self, events: usize) -> anyhow::Result<()> {
        self.stored_within(events, PATIENCE).await
    }

    /// The same with another bound.
    pub async fn stored_within(&self, events: usize, bound: Duration) -> anyhow::Result<()> {
        wait_within(bound, "all is stored", async || {
            Ok(self.metric("shopbell_events_stored_total").await? >= events as f64)
        })
        .await
    }

    /// Waits until this many sessions are open.
    pub async fn sessions_are(&self, sessions: usize) -> anyhow::Result<()> {
        wait_until("sessions open or end", async || {
            Ok(self.metric("shopbell_sessions").await? == sessions as f64)
        })
        .await
    }

    /// Waits until every ack has reached the database.
    pub async fn settled(&self) -> anyhow::Result<()> {
        wait_until("every ack is written", async || {
            let behind = "select count(*) from undelivered_feeds";
            Ok(sqlx::query_scalar::<_, i64>(behind)
                .fetch_one(&self.pool)
                .await?
                == 0)
        })
        .await
    }

    /// Waits until so many cursors of a feed have its last number.
    pub async fn acked_by(&self, feed: &str, cursors: usize) -> anyhow::Result<()> {
        let acked = "select count(*) from cursors c join feeds f using (feed)
                     where c.feed = $1 and c.acked_seq = f.last_seq";
        let begun = Instant::now();
        loop {
            let query = sqlx::query_scalar::<_, i64>(acked).bind(feed);
            let count = query.fetch_one(&self.pool).await?;
            if count == cursors as i64 {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{count} of {cursors} have acked"
            );
            tokio::time::sleep(RARE_POLL_INTERVAL).await;
        }
    }

    /// Does the work that Postgres would do later by itself.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        for statement in ["vacuum analyze", "checkpoint"] {
            sqlx::raw_sql(statement).execute(&self.pool).await?;
        }
        Ok(())
    }

    /// Fails unless the counters balance: all events are stored, and none is a duplicate or a dead
    /// letter.
    pub async fn balanced(&self, events: usize) -> anyhow::Result<()> {
        let stored = self.metric("shopbell_events_stored_total").await?;
        let received = self.metric("shopbell_events_received_total").await?;
        ensure!(
            stored == events as f64 && received == stored,
            "of {events} events {received} were received and {stored} stored"
        );
        Ok(())
    }

    /// Ends it, and removes everything of its own.
    pub async fn strike(mut self) -> anyhow::Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "shopbell ended by itself");
        self.child.kill()?;
        self.child.wait()?;
        self.pool.close().await;
        self.services.drop_database(&self.name).await?;
        let own = ["ingest", "dead-letter", "unroutable", "gateways"]
            .map(|queue| format!("{}.{queue}", self.name));
        self.services.delete_queues(own).await
    }
}

impl Gateway {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until all its sessions have ended.
    pub async fn has_no_sessions(&self) -> anyhow::Result<()> {
        wait_until("its sessions end", async || {
            let metrics = get(self.operations_port, "/metrics").await?;
            Ok(metrics.contains("\nshopbell_sessions 0\n"))
        })
        .await
    }

    /// Kills it. Returns its ports.
    pub fn kill(mut self) -> anyhow::Result<(u16, u16)> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "a gateway ended by itself"
        );
        self.child.kill()?;
        self.child.wait()?;
        Ok((self.port, self.operations_port))
    }
}

fn serve(environment: &[(OsString, OsString)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shopbell"));
    let variables = environment.iter().map(|(name, value)| (name, value));
    command.env_clear().envs(variables).arg("serve");
    command
}

async fn ready(operations_port: u16) -> anyhow::Result<()> {
    wait_until("it is ready", async || {
        let reply = get(operations_port, "/readyz").await?;
        Ok(reply.contains(r#""status":"ready""#))
    })
    .await
}

async fn wait_until(what: &str, met: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_within(PATIENCE, what, met).await
}

async fn wait_within(
    bound: Duration,
    what: &str,
    met: impl AsyncFn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let seen = met().await;
        if matches!(seen, Ok(true)) {
            return Ok(());
        }
        if begun.elapsed() > bound {
            bail!("after {bound:?} not: {what} ({seen:?})");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn get(operations_port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", operations_port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply)
}

impl Drop for Gateway {
    /// If a run fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Stage<'_> {
    /// If a run fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! RabbitMQ and Postgres of the benchmark with default settings, and RabbitMQ with the plugins of
//! the peers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row};

use crate::measure::Processes;
use crate::wire::Server;

/// Both. They end if this is dropped.
pub struct Services {
    pub amqp_url: String,
    pub web_mqtt: Server,
    pub web_stomp: Server,
    place: Place,
    database_url: String,
    rabbitmq: u32,
    postgres: u32,
}

/// The programs of the services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Here,
    /// Another Debian in this directory.
    Root(PathBuf),
}

impl Services {
    /// Starts both on an empty directory. Postgres has default settings, or those of docs/scaling.md
    /// for many notifications.
    pub async fn up(place: Place, is_for_many_notifications: bool) -> anyhow::Result<Self> {
        place.services(&["down", "--purge"])?;
        let (mqtt_port, stomp_port) = (free_port()?, free_port()?);
        let settings = format!(
            "web_mqtt.tcp.ip = 127.0.0.1\nweb_mqtt.tcp.port = {mqtt_port}\nweb_mqtt.tcp.backlog = 4096\nmqtt.listeners.tcp = none\n\
             mqtt.allow_anonymous = false\nmqtt.exchange = amq.topic\nmqtt.vhost = /\n\
             web_stomp.tcp.ip = 127.0.0.1\nweb_stomp.tcp.port = {stomp_port}\nweb_stomp.tcp.backlog = 4096\nstomp.listeners.tcp = none\n"
        );
        let folder = place.directory().join("rabbitmq/conf.d");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("10-peers.conf"), settings)?;
        let mut up = place.command(&["up"]);
        if is_for_many_notifications {
            up.env("SHOPBELL_SERVICES_SHARED_BUFFERS", "2GB");
        }
        let printed = output(up)?;
        let url = |name: &str| {
            let line = printed
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(str::to_owned)
                .with_context(|| format!("scripts/services up printed no {name}"))
        };
        let (database_url, amqp_url) = (url("DATABASE_URL")?, url("AMQP_URL")?);
        let status = place.services(&["status"])?;
        let pid = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let pid = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
            pid.with_context(|| format!("scripts/services status printed no process of {name}"))
        };
        // Switched on later, for sessions that exist by then.
        let mut connection = PgConnection::connect(&database_url).await?;
        sqlx::query("alter system set session_preload_libraries = 'auto_explain'")
            .execute(&mut connection)
            .await?;
        if is_for_many_notifications {
            for setting in ["max_wal_size = '8GB'", "checkpoint_timeout = '15min'"] {
                sqlx::query(AssertSqlSafe(format!("alter system set {setting}")))
                    .execute(&mut connection)
                    .await?;
            }
        }
        sqlx::query("select pg_reload_conf()")
            .execute(&mut connection)
            .await?;
        let uri: AMQPUri = amqp_url.parse().map_err(anyhow::Error::msg)?;
        let (user, password) = (
            uri.authority.userinfo.username,
            uri.authority.userinfo.password,
        );
        Ok(Self {
            web_mqtt: Server::WebMqtt {
                port: mqtt_port,
                user: user.clone(),
                password: password.clone(),
            },
            web_stomp: Server::WebStomp {
                port: stomp_port,
                user,
                password,
            },
            rabbitmq: pid("rabbitmq")?,
            postgres: pid("postgres")?,
            place,
            database_url,
            amqp_url,
        })
    }

    /// Their processes.
    pub fn processes(&self) -> Processes {
        Processes::default()
            .with("RabbitMQ", self.rabbitmq)
            .with("Postgres", self.postgres)
    }

    /// A directory for a server beside them, unless they run in another Debian.
    pub fn directory_beside(&self, name: &str) -> Option<PathBuf> {
        match self.place {
            Place::Here => Some(self.place.directory().join(name)),
            Place::Root(_) => None,
        }
    }

    /// RabbitMQ's process id.
    pub fn rabbitmq(&self) -> u32 {
        self.rabbitmq
    }

    /// The URL of a database.
    pub fn database_url(&self, database: &str) -> String {
        match self.database_url.rsplit_once('/') {
            Some((server, _)) => format!("{server}/{database}"),
            None => self.database_url.clone(),
        }
    }

    /// Makes an empty database.
    pub async fn create_database(&self, database: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.database_url).await?;
        sqlx::query(AssertSqlSafe(format!("create database {database}")))
            .execute(&mut connection)
            .await?;
        Ok(())
    }

    /// Deletes it, also if clients are connected, and lets Postgres write its memory to disk, so
    /// that the next run starts without that load.
    pub async fn drop_database(&self, database: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.database_url).await?;
        sqlx::query(AssertSqlSafe(format!(
            "drop database {database} with (force)"
        )))
        .execute(&mut connection)
        .await?;
        sqlx::query("checkpoint").execute(&mut connection).await?;
        Ok(())
    }

    /// Lets Postgres write the plan of each statement to its log, or stops it.
    pub async fn explain(&self, on: bool) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.database_url).await?;
        // In this session too, so that Postgres knows the names.
        for statement in [
            "load 'auto_explain'".to_owned(),
            format!(
                "alter system set auto_explain.log_min_duration = {}",
                if on { 0 } else { -1 }
            ),
            "alter system set auto_explain.log_nested_statements = on".to_owned(),
            "select pg_reload_conf()".to_owned(),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await?;
        }
        Ok(())
    }

    /// The last plan of each statement in Postgres' log.
    pub fn explained(&self) -> anyhow::Result<String> {
        let log = std::fs::read_to_string(self.place.directory().join("log/postgres.out"))?;
        let entries = log.split("  plan:\n").skip(1).filter_map(|entry| {
            // An entry's lines begin with a tab; the next entry's first line does not.
            let lines: Vec<&str> = entry
                .lines()
                .take_while(|line| line.starts_with('\t'))
                .collect();
            let plan = lines.iter().position(|line| line.contains("(cost="))?;
            Some((lines[..plan].join("\n"), lines[plan..].join("\n")))
        });
        let last: std::collections::BTreeMap<String, String> = entries.collect();
        Ok(last
            .into_iter()
            .map(|(statement, plan)| format!("{statement}\n\n{plan}\n\n"))
            .collect())
    }

    /// A channel of its own.
    pub async fn channel(&self) -> anyhow::Result<(Connection, Channel)> {
        let connection =
            Connection::connect(&self.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }

    /// Deletes the existing ones of these queues.
    pub async fn delete_queues(
        &self,
        queues: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<()> {
        let (connection, channel) = self.channel().await?;
        for queue in queues {
            channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await?;
        }
        connection.close(200, "goodbye".into()).await?;
        Ok(())
    }

    /// Declares a quorum queue that gets all events of an exchange.
    pub async fn declare_quorum_queue(
        &self,
        queue: &str,
        exchange: &str,
        kind: ExchangeKind,
    ) -> anyhow::Result<()> {
        let (connection, channel) = self.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        let options = QueueDeclareOptions {
            durable: true,
            ..Default::default()
        };
        channel
            .queue_declare(queue.into(), options, arguments)
            .await?;
        let (options, none) = (
            ExchangeDeclareOptions {
                durable: true,
                ..Default::default()
            },
            FieldTable::default(),
        );
        channel
            .exchange_declare(exchange.into(), kind, options, none.clone())
            .await?;
        channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                "#".into(),
                QueueBindOptions::default(),
                none,
            )
            .await?;
        connection.close(200, "goodbye".into()).await?;
        Ok(())
    }

    /// The bytes that RabbitMQ has sent on the connections that are open.
    pub fn sent_bytes(&self) -> anyhow::Result<SentBytes> {
        let list = ["rabbitmqctl", "-q", "list_connections"];
        let columns = ["send_oct", "client_properties"];
        let listed = self.place.services(&[&list[..], &columns[..]].concat())?;
        let mut sent = SentBytes::default();
        for line in listed.lines() {
            let Some((bytes, properties)) = line.split_once('\t') else {
                continue;
            };
            // The first line has the names of the columns.
            let Ok(bytes) = bytes.parse::<f64>() else {
                continue;
            };
            sent.all += bytes;
            if properties.contains("shopbell fanout") {
                sent.hints += bytes;
            }
        }
        ensure!(sent.hints > 0.0, "no connection receives hints: {listed}");
        Ok(sent)
    }

    /// Versions for the report.
    pub async fn versions(&self) -> anyhow::Result<String> {
        let mut connection = PgConnection::connect(&self.database_url).await?;
        let postgres: String = sqlx::query("show server_version")
            .fetch_one(&mut connection)
            .await?
            .try_get(0)?;
        let rabbitmq = self.place.services(&["rabbitmqctl", "version"])?;
        Ok(format!("RabbitMQ {}, Postgres {postgres}", rabbitmq.trim()))
    }
}

/// Bytes that RabbitMQ has sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct SentBytes {
    pub all: f64,
    /// Those on connections for hints.
    pub hints: f64,
}

impl SentBytes {
    /// Those since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            all: self.all - earlier.all,
            hints: self.hints - earlier.hints,
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // Their data is of no use afterwards.
        let _ = self.place.services(&["down", "--purge"]);
    }
}

/// A port that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    // Below the range that the kernel gives to outgoing connections, of which there are thousands
    // here.
    let free = (0..100)
        .map(|_| fastrand::u16(10_000..20_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.context("found no free port")
}

impl Place {
    /// A separate one for an unoptimised run of the tests, which must not end a long one.
    fn directory(&self) -> PathBuf {
        let debug = if cfg!(debug_assertions) { "-debug" } else { "" };
        let other = match self {
            Self::Here => "",
            Self::Root(_) => "-other",
        };
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        target.join(format!("bench-services{other}{debug}"))
    }

    fn services(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services"));
        command
            .args(arguments)
            .env_remove("DATABASE_URL")
            .env_remove("AMQP_URL")
            .env("SHOPBELL_SERVICES_DIR", self.directory())
            .env(
                "SHOPBELL_SERVICES_PLUGINS",
                "rabbitmq_web_mqtt,rabbitmq_web_stomp",
            );
        if let Self::Root(root) = self {
            command.env("SHOPBELL_SERVICES_ROOT", root);
        }
        command
    }
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

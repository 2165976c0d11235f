//! A shop with an outbox: a Postgres database of its own, and the relays that publish from it.

use std::net::SocketAddr;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::http::{self, Reply};
use super::log::Log;
use super::process::{Environment, shopbell, signal};
use super::replica::free_address;
use super::{PATIENCE, World, eventually, holds, url};

/// The role of the relay.
const RELAY: &str = "shopbell_relay";
/// A role of the shop, which publishes.
const SHOP: &str = "shopbell_shop";
/// Roles belong to the whole server, so one story at a time changes them.
const ROLES_LOCK: i64 = 0x5348_4f50_5f52_4f4c;
/// Bound for a stop.
const STOP_BOUND: Duration = Duration::from_secs(15);

/// The database of a shop.
pub struct Shop {
    admin_url: String,
    shop_url: String,
    relay_url: String,
    /// As the role of the shop.
    pub pool: PgPool,
    /// As the owner of the database.
    pub admin: PgPool,
}

impl Shop {
    /// A shop whose database has the outbox.
    pub async fn open(world: &World) -> Self {
        let shop = Self::without_outbox(world).await;
        shop.install(world).await;
        shop
    }

    /// A shop whose database is empty.
    pub async fn without_outbox(world: &World) -> Self {
        let admin_url = world.another_database();
        let database = admin_url.rsplit('/').next().expect("a URL has a path");
        let database = database.split('?').next().expect("a database has a name");
        let mut server = PgConnection::connect(&world.server_url)
            .await
            .expect("Postgres can be reached");
        server
            .execute(AssertSqlSafe(format!("create database \"{database}\"")))
            .await
            .expect("a database can be created");
        server.close().await.ok();
        let pool = |url: &str| {
            let options = PgPoolOptions::new().max_connections(10);
            options.connect_lazy(url).expect("a URL")
        };
        let (shop_url, relay_url) = (
            url::with_user(&admin_url, SHOP),
            url::with_user(&admin_url, RELAY),
        );
        Self {
            pool: pool(&shop_url),
            admin: pool(&admin_url),
            admin_url,
            shop_url,
            relay_url,
        }
    }

    /// Runs the output of `shopbell relay --print-sql`, as an operator does.
    pub async fn install(&self, world: &World) {
        let mut lock = PgConnection::connect(&world.server_url)
            .await
            .expect("Postgres can be reached");
        // Unlocked when the connection ends.
        lock.execute(AssertSqlSafe(format!(
            "select pg_advisory_lock({ROLES_LOCK})"
        )))
        .await
        .expect("a lock");
        for print in ["--print-sql", "--print-privileges"] {
            let sql = world.shopbell(&["relay", print]).await.succeeded().stdout;
            self.run(&sql).await;
        }
        let password = url::user_and_any_password(&self.admin_url).map(|(_, password)| password);
        let password = password.map_or("null".to_owned(), |password| format!("'{password}'"));
        self.run(&format!(
            "do $$ begin if not exists (select from pg_roles where rolname = '{SHOP}') then create role {SHOP} login; end if; end $$;
             alter role {SHOP} password {password}; alter role {RELAY} password {password};
             grant shopbell_outbox_publisher to {SHOP};
             create table if not exists orders (merchant text primary key, number bigint not null);
             grant select, insert, update, delete on orders to {SHOP};"
        ))
        .await;
        lock.close().await.ok();
    }

    /// Runs statements as the owner.
    pub async fn run(&self, statements: &str) {
        let run = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        if let Err(error) = run.execute(&self.admin).await {
            panic!("{statements}: {error}");
        }
    }

    /// Publishes an event in a transaction of its own.
    pub async fn publish(&self, recipient: &str, data: &str) -> String {
        let query = "select shopbell_outbox.shopbell_publish($1, 'custom.thing', $2)";
        let query = sqlx::query_scalar(query).bind(recipient).bind(data);
        query
            .fetch_one(&self.pool)
            .await
            .expect("the event is accepted")
    }

    /// Writes an order of each of these merchants, with its event, as often as `rounds`, in one statement.
    pub async fn publish_many(&self, merchants: i64, rounds: i64) {
        let query = "select count(shopbell_outbox.shopbell_publish('merchant-' || m, 'custom.thing', n::text))
                     from generate_series(1, $2) n, generate_series(1, $1) m";
        let query = sqlx::query_scalar::<_, i64>(query)
            .bind(merchants)
            .bind(rounds);
        let published = query.fetch_one(&self.pool).await;
        assert_eq!(
            published.expect("the events are accepted"),
            merchants * rounds
        );
    }

    /// The number of rows in a table of the outbox.
    pub async fn rows(&self, table: &str) -> Result<i64, String> {
        let query = format!("select count(*) from shopbell_outbox.{table}");
        let query = sqlx::query_scalar(AssertSqlSafe(query));
        query
            .fetch_one(&self.admin)
            .await
            .map_err(|error| error.to_string())
    }

    /// Waits until the relay has published all rows.
    pub async fn expect_empty(&self, bound: Duration) {
        eventually("the outbox is empty", bound, async || {
            let rows = self.rows("events").await?;
            holds(rows == 0, rows)
        })
        .await;
    }

    /// The URL of the relay's role.
    pub fn relay_url(&self) -> &str {
        &self.relay_url
    }

    /// The URL of the shop's role.
    pub fn shop_url(&self) -> &str {
        &self.shop_url
    }

    /// A relay with these settings, before its start.
    pub fn relay(&self, world: &World, settings: &[(&str, &str)]) -> Relay {
        let operations = free_address();
        let mut environment = world.environment();
        for (name, value) in [
            ("AMQP_URL", world.publisher_amqp_url()),
            ("SHOPBELL_OUTBOX_DATABASE_URL", self.relay_url()),
            ("SHOPBELL_OPS_LISTEN", &operations.to_string()),
        ]
        .iter()
        .chain(settings)
        {
            environment.insert((*name).to_owned(), (*value).to_owned());
        }
        environment.remove("DATABASE_URL");
        Relay {
            environment,
            operations,
            log: Log::default(),
            child: Mutex::default(),
        }
    }
}

/// A `shopbell relay`.
pub struct Relay {
    environment: Environment,
    operations: SocketAddr,
    log: Log,
    child: Mutex<Option<Child>>,
}

impl Relay {
    /// Starts it, and returns at once. It must have ended.
    pub fn launch(&self) {
        let mut command = shopbell(&self.environment);
        command
            .arg("relay")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("shopbell starts");
        self.log
            .follow(child.stderr.take().expect("stderr is piped"));
        *self.child() = Some(child);
    }

    /// Starts it, and waits until it publishes.
    pub async fn start(self) -> Self {
        self.launch();
        self.reports(200, r#""relay":"active""#).await;
        self
    }

    /// Kills it, like a power cut.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    /// Sends SIGTERM, and waits for its end.
    pub async fn terminate(&self) -> ExitStatus {
        let mut child = self.child().take().expect("a relay that runs");
        signal(child.id(), "TERM");
        eventually("the relay ends", STOP_BOUND, async || {
            let ended = child.try_wait().expect("a child can be asked");
            ended.ok_or_else(|| self.log.text())
        })
        .await
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child().as_ref().map(Child::id);
        signal(id.expect("a relay that runs"), name);
    }

    /// Waits until `/readyz` has this status and this text.
    pub async fn reports(&self, status: u16, text: &str) -> String {
        let what = format!("the relay reports {status} {text}");
        eventually(&what, PATIENCE, async || {
            let reply = self.get("/readyz").await?;
            let body = reply.text();
            match reply.status == status && body.contains(text) {
                true => Ok(body),
                false => Err(format!("{} {body}\n{}", reply.status, self.log.text())),
            }
        })
        .await
    }

    /// `GET path` on the operations port.
    pub async fn get(&self, path: &str) -> Result<Reply, String> {
        let reply = http::get(self.operations, path).await;
        reply.map_err(|error| error.to_string())
    }

    /// A metric, summed over its labels.
    pub async fn metric(&self, name: &str) -> Result<f64, String> {
        let text = self.get("/metrics").await?.text();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{'])
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// Waits until a metric is at least this.
    pub async fn metric_reaches(&self, name: &str, least: f64) {
        eventually(&format!("{name} reaches {least}"), PATIENCE, async || {
            let value = self.metric(name).await?;
            holds(value >= least, value)
        })
        .await;
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the relay:\n{}---", self.log.text());
        }
    }
}

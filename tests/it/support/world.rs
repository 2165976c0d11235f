//! One test's world, and the books that are checked when it ends.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::process::Environment;
use super::{
    Broker, Done, Handshake, PATIENCE, Publisher, Replica, Token, command, eventually, holds,
    template, url,
};

/// A database, a prefix in the broker and a key that no other test has, and the replicas that share them.
pub struct World {
    pub(super) server_url: String,
    amqp_url: String,
    pub(super) database: String,
    database_url: String,
    secret: String,
    pool: PgPool,
    /// The first is the world's own; a story may add one.
    prefixes: Mutex<Vec<String>>,
    /// Those that a story makes beside the world's own.
    more_databases: Mutex<Vec<String>>,
    replicas: Mutex<Vec<Replica>>,
}

impl World {
    /// A new one, empty and migrated, in the services that the environment names.
    pub async fn new() -> Self {
        Self::at(service("DATABASE_URL"), service("AMQP_URL")).await
    }

    /// A new one in the services at these URLs.
    pub async fn at(server_url: String, amqp_url: String) -> Self {
        let name = Uuid::new_v4().simple().to_string()[..12].to_owned();
        let database = format!("shopbell_test_{name}");
        let database_url = url::with_database(&server_url, &database);
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .connect_lazy(&database_url)
            .expect("DATABASE_URL is a URL");
        let world = Self {
            server_url,
            amqp_url,
            database,
            database_url,
            secret: Uuid::new_v4().simple().to_string() + &Uuid::new_v4().simple().to_string(),
            pool,
            prefixes: Mutex::new(vec![format!("t-{name}")]),
            more_databases: Mutex::default(),
            replicas: Mutex::default(),
        };
        template::create_database(&world.server_url, &world.database, &world.environment()).await;
        world
    }

    /// A replica to be set up, and started with [`Setup::start`].
    pub fn replica(&self) -> Setup<'_> {
        Setup {
            world: self,
            environment: self.environment(),
            role: None,
            open_files: None,
        }
    }

    /// A replica that serves, as it comes.
    pub async fn serve(&self) -> Replica {
        self.replica().start().await
    }

    /// A merchant whose client is about to connect with a good token.
    pub fn merchant(&self, subscriber: &str) -> Handshake {
        Handshake::new(subscriber, &self.token(subscriber))
    }

    /// A good token.
    pub fn token(&self, subscriber: &str) -> Token {
        Token::new(&self.secret, subscriber)
    }

    /// What good tokens are signed with.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// A publisher to the world's exchange.
    pub async fn publisher(&self) -> Publisher {
        Publisher::connect(&self.amqp_url, &self.name("events")).await
    }

    /// A publisher to the world's exchange that reaches RabbitMQ another way.
    pub async fn publisher_at(&self, amqp_url: &str) -> Publisher {
        Publisher::connect(amqp_url, &self.name("events")).await
    }

    /// A publisher to the exchange of another prefix.
    pub async fn publisher_to(&self, prefix: &str) -> Publisher {
        Publisher::connect(&self.amqp_url, &format!("{prefix}.events")).await
    }

    /// A look into RabbitMQ.
    pub async fn broker(&self) -> Broker {
        Broker::connect(&self.amqp_url).await
    }

    /// Runs `shopbell` with `arguments` to its end.
    pub async fn shopbell(&self, arguments: &[&str]) -> Done {
        command::run(&self.environment(), arguments).await
    }

    /// The same, with these settings (empty: as good as unset).
    pub async fn shopbell_with(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Done {
        let mut environment = self.environment();
        environment.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        command::run(&environment, arguments).await
    }

    /// A file of this test run, for a command to read; gives its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", self.database));
        std::fs::write(&path, bytes).expect("a file can be written");
        path.to_str()
            .expect("the target directory has a plain name")
            .to_owned()
    }

    /// The name of an exchange or queue of this world.
    pub fn name(&self, what: &str) -> String {
        format!("{}.{what}", self.prefixes()[0])
    }

    /// A second set of exchanges and queues over the same database.
    pub fn another_prefix(&self) -> String {
        let prefix = format!("{}-{}", self.prefixes()[0], self.prefixes().len());
        self.prefixes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(prefix.clone());
        prefix
    }

    /// The URL of a database that is not there yet, for a story to make.
    pub fn another_database(&self) -> String {
        let mut more = self
            .more_databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let database = format!("{}_{}", self.database, more.len() + 1);
        more.push(database.clone());
        url::with_database(&self.server_url, &database)
    }

    /// A folder of this test run; gives its path.
    pub fn folder(&self, name: &str) -> String {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", self.database));
        std::fs::create_dir_all(&path).expect("a folder can be made");
        path.to_str()
            .expect("the target directory has a plain name")
            .to_owned()
    }

    /// RabbitMQ's URL, to stand a proxy in front of.
    pub fn amqp_url(&self) -> &str {
        &self.amqp_url
    }

    /// The URL of the world's database, to stand a proxy in front of.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// What a process needs to be part of this world.
    pub fn environment(&self) -> Environment {
        let settings = [
            ("DATABASE_URL", self.database_url.clone()),
            ("AMQP_URL", self.amqp_url.clone()),
            ("SHOPBELL_AMQP_PREFIX", self.prefixes()[0].clone()),
            ("SHOPBELL_JWT_HS256_SECRET", self.secret.clone()),
            // Its events would be in the books; a story that is about it turns it on.
            ("SHOPBELL_CANARY_SECONDS", "0".to_owned()),
        ];
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }

    /// How many notifications are stored in `feed`, and the highest of their numbers.
    pub async fn stored(&self, feed: &str) -> (u64, u64) {
        let query = "select count(*), coalesce(max(seq), 0) from notifications where feed = $1";
        let (count, last): (i64, i64) = sqlx::query_as(query)
            .bind(feed)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers");
        (count.unsigned_abs(), last.unsigned_abs())
    }

    /// How many notifications are stored, in all feeds together.
    pub async fn stored_in_all(&self) -> u64 {
        self.number("select count(*) from notifications").await
    }

    /// The highest number that any feed has reached.
    pub async fn last_seq(&self) -> u64 {
        self.number("select coalesce(max(seq), 0) from notifications")
            .await
    }

    /// Changes the world's database behind everybody's back.
    pub async fn meddle(&self, statements: &'static str) {
        sqlx::raw_sql(statements)
            .execute(&self.pool)
            .await
            .expect("the database takes it");
    }

    /// What a query answers that asks for one number.
    pub async fn number(&self, query: &'static str) -> u64 {
        let number = sqlx::query_scalar::<_, i64>(query)
            .fetch_one(&self.pool)
            .await;
        number.expect("the database answers").unsigned_abs()
    }

    /// Waits until at least `least` notifications are stored, in all feeds together; the database may be away meanwhile.
    pub async fn stored_reaches(&self, least: u64, bound: Duration) {
        eventually(&format!("{least} are stored"), bound, async || {
            let query = sqlx::query_scalar::<_, i64>("select count(*) from notifications");
            let count = query
                .fetch_one(&self.pool)
                .await
                .map_err(|error| error.to_string())?;
            holds(count.unsigned_abs() >= least, count)
        })
        .await;
    }

    /// Waits until exactly `1..=count` are stored in `feed`.
    pub async fn expect_stored(&self, feed: &str, count: u64) {
        eventually(
            &format!("1..={count} are stored in {feed}"),
            PATIENCE,
            async || {
                let stored = self.stored(feed).await;
                holds(
                    stored == (count, count),
                    format!("(count, last) = {stored:?}"),
                )
            },
        )
        .await;
    }

    /// Waits until `subscriber`'s cursor in its own feed stands at `seq` in the database, where every replica reads it.
    pub async fn expect_cursor(&self, subscriber: &str, device: &str, seq: u64) {
        let query =
            "select acked_seq from cursors where feed = $1 and subscriber = $1 and device = $2";
        eventually(
            &format!("the cursor of {subscriber} {device} stands at {seq}"),
            PATIENCE,
            async || {
                let query = sqlx::query_scalar::<_, i64>(query)
                    .bind(subscriber)
                    .bind(device);
                let acked = query
                    .fetch_optional(&self.pool)
                    .await
                    .expect("the database answers")
                    .unwrap_or(-1);
                holds(u64::try_from(acked) == Ok(seq), acked)
            },
        )
        .await;
    }

    /// Waits until `subscriber`'s cursor in `feed` stands at `seq` in the database.
    pub async fn expect_acked(&self, feed: &str, subscriber: &str, device: &str, seq: u64) {
        let query =
            "select acked_seq from cursors where feed = $1 and subscriber = $2 and device = $3";
        eventually(
            &format!("{subscriber} {device} stands at {seq} in {feed}"),
            PATIENCE,
            async || {
                let query = sqlx::query_scalar::<_, i64>(query)
                    .bind(feed)
                    .bind(subscriber)
                    .bind(device);
                let acked = query
                    .fetch_optional(&self.pool)
                    .await
                    .expect("the database answers")
                    .unwrap_or(-1);
                holds(u64::try_from(acked) == Ok(seq), acked)
            },
        )
        .await;
    }

    /// How many cursors `subscriber` has in its own feed.
    pub async fn cursors(&self, subscriber: &str) -> i64 {
        let query =
            sqlx::query_scalar("select count(*) from cursors where feed = $1 and subscriber = $1");
        query
            .bind(subscriber)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers")
    }

    /// How many of `feed` nobody has read, and how many nobody has handled, counted row by row.
    pub async fn unanswered(&self, feed: &str) -> (u64, u64) {
        let query = "select count(*) filter (where read_at is null), count(*) filter (where handled_at is null)
                     from notifications where feed = $1";
        let (unread, unhandled): (i64, i64) = sqlx::query_as(query)
            .bind(feed)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers");
        (unread.unsigned_abs(), unhandled.unsigned_abs())
    }

    /// What is kept of an import: done, failed, total, status.
    pub async fn import(
        &self,
        feed: &str,
        import: &str,
    ) -> Option<(i64, i64, Option<i64>, String)> {
        let query =
            "select done, failed, total, status from imports where feed = $1 and import_id = $2";
        sqlx::query_as(query)
            .bind(feed)
            .bind(import)
            .fetch_optional(&self.pool)
            .await
            .expect("the database answers")
    }

    /// Runs a statement that sets a story's scene.
    pub async fn execute(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(&self.pool)
            .await
            .expect("the database takes it");
    }

    /// Nobody else writes to `feeds`, until what this gives is dropped: as an operator's forgotten transaction does it.
    pub async fn lock_feeds(&self) -> Lock {
        self.lock("lock table feeds in exclusive mode").await
    }

    /// Nobody else writes to the row of `merchant-42` in `feeds`, until what this gives is dropped.
    pub async fn lock_feed_of_merchant_42(&self) -> Lock {
        self.lock("select from feeds where feed = 'merchant-42' for update")
            .await
    }

    /// Nobody else reads `notifications`, until what this gives is dropped.
    pub async fn lock_notifications(&self) -> Lock {
        self.lock("lock table notifications in access exclusive mode")
            .await
    }

    /// Nobody else reads or writes `traces`, until what this gives is dropped.
    pub async fn lock_traces(&self) -> Lock {
        self.lock("lock table traces in access exclusive mode")
            .await
    }

    /// Nobody else makes the first cursor of `merchant-42`, until what this gives is dropped.
    pub async fn lock_new_cursor_of_merchant_42(&self) -> Lock {
        let statement = "insert into cursors (feed, subscriber, device, acked_seq) values ('merchant-42', 'merchant-42', '', 0)";
        self.lock(statement).await
    }

    /// Runs a statement in a transaction that stays open until what this gives is dropped.
    pub async fn lock(&self, statement: &'static str) -> Lock {
        let mut transaction = self.pool.begin().await.expect("the database answers");
        sqlx::query(statement)
            .execute(&mut *transaction)
            .await
            .expect("the database takes it");
        Lock(transaction)
    }

    /// Asserts that what is counted as it happens is what is counted row by row.
    async fn check_counts(&self) {
        let feeds = "select count(*) from feeds f
            left join (select feed, max(seq) as last, count(*) filter (where read_at is null) as unread,
                              count(*) filter (where handled_at is null) as unhandled,
                              min(seq) filter (where read_at is null) as oldest_unread
                       from notifications group by feed) n on n.feed = f.feed
            where (f.last_seq, f.unread, f.unhandled) <>
                  (coalesce(n.last, 0), coalesce(n.unread, 0), coalesce(n.unhandled, 0))
               or n.oldest_unread <= f.read_seq
               or f.version <> (select coalesce(max(c.version), 0) from changes c where c.feed = f.feed)";
        assert_eq!(
            self.number(feeds).await,
            0,
            "feeds whose counts are not what their rows say"
        );
        // An item counts once, with its last status; of an import with several runs, the newest item knows the last run's counts.
        let imports = "select count(*) from imports i
            cross join lateral (
                select count(*) filter (where newest) as items, count(*) filter (where newest and failed) as failures
                from (select n.data::json ->> 'status' = 'failed' as failed,
                             row_number() over (partition by n.data::json ->> 'index' order by n.seq desc) = 1 as newest
                      from notifications n
                      where n.feed = i.feed and n.event_type = 'import.item' and n.data::json ->> 'import_id' = i.import_id) n) n
            left join lateral (
                select n.import_done as done, n.import_failed as failed from notifications n
                where n.feed = i.feed and n.event_type like 'import.%' and n.data::json ->> 'import_id' = i.import_id
                order by n.seq desc limit 1) last on true
            where (i.done, i.failed) <> (last.done, last.failed)
               or i.run = 1 and (i.done, i.failed) <> (n.items, n.failures)";
        assert_eq!(
            self.number(imports).await,
            0,
            "imports whose totals are not what their items say"
        );
    }

    /// Ends the story and checks the counters: what was received is stored, a duplicate, a dead letter or given back; the
    /// counts are what the rows say; every replica
    /// leaves with exit status 0; nobody panicked; nothing is left in the queues, nothing unacknowledged.
    pub async fn finish(self) {
        let replicas = self.replicas();
        let running: Vec<_> = replicas
            .iter()
            .filter(|replica| replica.is_running())
            .collect();
        eventually("the counters balance", PATIENCE, async || {
            let mut sums = [0; 5];
            for replica in &running {
                let counted = ["received", "stored", "duplicate", "dead_lettered", "abandoned"];
                for (sum, what) in sums.iter_mut().zip(counted) {
                    *sum += replica.metric(&format!("shopbell_events_{what}_total")).await;
                }
            }
            let [received, stored, duplicate, dead_lettered, abandoned] = sums;
            let seen = format!(
                "{received} received, {stored} stored, {duplicate} duplicate, {dead_lettered} dead letters, {abandoned} abandoned"
            );
            holds(received == stored + duplicate + dead_lettered + abandoned, seen)
        })
        .await;
        self.check_counts().await;
        for replica in &running {
            let status = replica.terminate().await;
            assert!(
                status.success(),
                "a replica asked to leave ended with {status}"
            );
        }
        for replica in &replicas {
            assert_eq!(replica.panics(), Vec::<String>::new(), "a replica panicked");
        }
        let broker = self.broker().await;
        for prefix in self.prefixes() {
            let queues = ["ingest", "ingest.2", "ingest.3", "ingest.4", "unroutable"];
            for queue in queues.map(|queue| format!("{prefix}.{queue}")) {
                // Whatever was unacknowledged lies in the queue again, now that its consumers are gone.
                eventually(
                    &format!("nothing is left in {queue}"),
                    PATIENCE,
                    async || {
                        let depth = broker.depth(&queue).await.unwrap_or(0);
                        holds(depth == 0, depth)
                    },
                )
                .await;
            }
        }
    }

    fn prefixes(&self) -> Vec<String> {
        self.prefixes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replicas(&self) -> Vec<Replica> {
        self.replicas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for World {
    /// Leaves nothing behind, also where the story failed.
    fn drop(&mut self) {
        for replica in self.replicas() {
            replica.kill();
        }
        let (server_url, amqp_url) = (self.server_url.clone(), self.amqp_url.clone());
        let (mut databases, prefixes) = (vec![self.database.clone()], self.prefixes());
        databases.append(
            &mut self
                .more_databases
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        // On a thread of its own: a runtime cannot wait inside another one.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                for database in databases {
                    template::drop_database(&server_url, &database).await;
                }
                let broker = Broker::connect(&amqp_url).await;
                for prefix in prefixes {
                    broker.clear(&prefix).await;
                }
            });
        });
        if cleaning.join().is_err() && !std::thread::panicking() {
            panic!("the world could not be cleared away");
        }
    }
}

/// A transaction that stands in others' way; over when it is dropped.
pub struct Lock(
    #[expect(dead_code, reason = "it only has to be there")] Transaction<'static, Postgres>,
);

/// A replica being set up.
pub struct Setup<'a> {
    world: &'a World,
    environment: Environment,
    role: Option<&'static str>,
    open_files: Option<u32>,
}

impl Setup<'_> {
    /// With a setting of its own.
    pub fn with(mut self, variable: &str, value: impl ToString) -> Self {
        self.environment
            .insert(variable.to_owned(), value.to_string());
        self
    }

    /// Without a setting that it would otherwise have.
    pub fn without(mut self, variable: &str) -> Self {
        self.environment.remove(variable);
        self
    }

    /// One half of it only: `ingest` or `gateway`.
    pub fn role(mut self, role: &'static str) -> Self {
        self.role = Some(role);
        self
    }

    /// As a container that allows it only so many open files at first.
    pub fn open_files(mut self, files: u32) -> Self {
        self.open_files = Some(files);
        self
    }

    /// Starts it, and waits until it serves.
    pub async fn start(self) -> Replica {
        let replica = Replica::spawn(self.environment, self.role, self.open_files);
        self.world
            .replicas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(replica.clone());
        replica.ready().await;
        replica
    }
}

fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set. These tests need a real Postgres and RabbitMQ: `make test` provides both")
    })
}

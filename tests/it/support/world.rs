//! One test's world: a database, a prefix in RabbitMQ, a signing key, and the replicas that use
//! them.

mod database;
mod teardown;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sqlx::postgres::{PgPool, PgPoolOptions};
use uuid::Uuid;

use super::process::Environment;
use super::{Broker, Done, Handshake, Proxy, Publisher, Replica, Token, command, template, url};

/// The user of the service in RabbitMQ.
const SERVICE: &str = "shopbell-service";
/// The user of publishers.
const PUBLISHER: &str = "shopbell-publisher";
/// The user of people who declare, inspect and repair.
const OPERATOR: &str = "shopbell-operator";

/// The test's own database, prefix and key, and the replicas that share them.
pub struct World {
    pub(super) server_url: String,
    amqp_urls: AmqpUrls,
    pub(super) database: String,
    database_url: String,
    secret: String,
    pool: PgPool,
    /// The first is the world's own. A story may add more.
    prefixes: Mutex<Vec<String>>,
    /// Databases that a story adds.
    more_databases: Mutex<Vec<String>>,
    replicas: Mutex<Vec<Replica>>,
}

impl World {
    /// An empty, migrated world in the services that the environment names.
    pub async fn new() -> Self {
        Self::at(service("DATABASE_URL"), service("AMQP_URL")).await
    }

    /// The same in the services at these URLs.
    pub async fn at(server_url: String, amqp_url: String) -> Self {
        let name = Uuid::new_v4().simple().to_string()[..12].to_owned();
        let database = format!("shopbell_test_{name}");
        let admin_url = url::with_database(&server_url, &database);
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect_lazy(&admin_url)
            .expect("DATABASE_URL is a URL");
        let world = Self {
            server_url,
            amqp_urls: AmqpUrls::of(amqp_url).await,
            database,
            database_url: url::with_user(&admin_url, template::APP),
            secret: Uuid::new_v4().simple().to_string() + &Uuid::new_v4().simple().to_string(),
            pool,
            prefixes: Mutex::new(vec![format!("t-{name}")]),
            more_databases: Mutex::default(),
            replicas: Mutex::default(),
        };
        template::create_database(&world.server_url, &world.database, &world.environment()).await;
        world
    }

    /// Prepares a replica, which [`Setup::start`] starts.
    pub fn replica(&self) -> Setup<'_> {
        Setup {
            world: self,
            environment: self.environment(),
            role: None,
            open_files: None,
        }
    }

    /// A running replica with the default settings.
    pub async fn serve(&self) -> Replica {
        self.replica().start().await
    }

    /// A merchant's client with a valid token, before its handshake.
    pub fn merchant(&self, subscriber: &str) -> Handshake {
        Handshake::new(subscriber, &self.token(subscriber))
    }

    /// A valid token.
    pub fn token(&self, subscriber: &str) -> Token {
        Token::new(&self.secret, subscriber)
    }

    /// The secret that signs valid tokens.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// A publisher to the world's exchange.
    pub async fn publisher(&self) -> Publisher {
        Publisher::connect(&self.amqp_urls.publisher, &self.name("events")).await
    }

    /// A publisher to the world's exchange through this URL.
    pub async fn publisher_at(&self, amqp_url: &str) -> Publisher {
        Publisher::connect(amqp_url, &self.name("events")).await
    }

    /// A publisher to the exchange of another prefix.
    pub async fn publisher_to(&self, prefix: &str) -> Publisher {
        Publisher::connect(&self.amqp_urls.publisher, &format!("{prefix}.events")).await
    }

    /// A connection to inspect RabbitMQ.
    pub async fn broker(&self) -> Broker {
        Broker::connect(&self.amqp_urls.admin).await
    }

    /// Runs `shopbell` with `arguments` to its end, with the role of Postgres and the user of RabbitMQ
    /// that the command needs.
    pub async fn shopbell(&self, arguments: &[&str]) -> Done {
        self.shopbell_with(&[], arguments).await
    }

    /// The same with these settings. An empty value counts as unset.
    pub async fn shopbell_with(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Done {
        let mut environment = self.environment();
        let role = match arguments.first() {
            Some(&"migrate") => template::OWNER,
            Some(&"doctor" | &"inspect" | &"verify") => template::READER,
            _ => template::APP,
        };
        let amqp_url = match arguments.first() {
            Some(&"declare" | &"doctor" | &"dead-letters" | &"publish") => &self.amqp_urls.operator,
            _ => &self.amqp_urls.service,
        };
        environment.insert("DATABASE_URL".to_owned(), self.database_url_of(role));
        environment.insert("AMQP_URL".to_owned(), amqp_url.clone());
        environment.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        command::run(&environment, arguments).await
    }

    /// Writes a file for a command, and returns its path.
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

    /// The URL of a database that does not exist yet.
    pub fn another_database(&self) -> String {
        let mut more = self
            .more_databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let database = format!("{}_{}", self.database, more.len() + 1);
        more.push(database.clone());
        url::with_database(&self.server_url, &database)
    }

    /// Creates a folder, and returns its path.
    pub fn folder(&self, name: &str) -> String {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", self.database));
        std::fs::create_dir_all(&path).expect("a folder can be made");
        path.to_str()
            .expect("the target directory has a plain name")
            .to_owned()
    }

    /// RabbitMQ, as the user of the service.
    pub fn amqp_url(&self) -> &str {
        &self.amqp_urls.service
    }

    /// The virtual host of `privileges/rabbitmq.json`, as one of its users. Its names begin with
    /// `shopbell`.
    pub fn amqp_url_of(&self, user: &str) -> String {
        url::with_user(&url::with_database(&self.amqp_urls.admin, "shopbell"), user)
    }

    /// RabbitMQ, as its administrator.
    pub fn broker_url(&self) -> &str {
        &self.amqp_urls.admin
    }

    /// RabbitMQ, as the user of publishers.
    pub fn publisher_amqp_url(&self) -> &str {
        &self.amqp_urls.publisher
    }

    /// The database, as the role of the service.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// The database, as a role of `privileges/postgres.sql`.
    pub fn database_url_of(&self, role: &str) -> String {
        url::with_user(&self.database_url, role)
    }

    /// The same URL as a role of `privileges/postgres.sql`.
    pub fn as_role(&self, url: &str, role: &str) -> String {
        url::with_user(url, role)
    }

    /// The database, as any role.
    pub fn database_url_with(&self, role: &str, password: &str) -> String {
        url::with_user_and_password(&self.database_url, role, password)
    }

    /// The database, as the superuser of the server.
    pub fn admin_database_url(&self) -> String {
        url::with_database(&self.server_url, &self.database)
    }

    /// The environment of a process in this world.
    pub fn environment(&self) -> Environment {
        let settings = [
            ("DATABASE_URL", self.database_url.clone()),
            ("AMQP_URL", self.amqp_urls.service.clone()),
            ("SHOPBELL_AMQP_PREFIX", self.prefixes()[0].clone()),
            ("SHOPBELL_JWT_HS256_SECRET", self.secret.clone()),
            // The counters would include its events. A story about it turns it on.
            ("SHOPBELL_CANARY_SECONDS", "0".to_owned()),
        ];
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .into()
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

/// RabbitMQ as each of its users.
struct AmqpUrls {
    admin: String,
    service: String,
    publisher: String,
    operator: String,
}

impl AmqpUrls {
    /// The users of `privileges/rabbitmq*.json`, which `scripts/services` creates with the password
    /// of the administrator. A RabbitMQ of the tester's own may lack them.
    async fn of(admin: String) -> Self {
        let has_users = Broker::accepts(&url::with_user(&admin, SERVICE)).await;
        let url = |user: &str| match has_users {
            true => url::with_user(&admin, user),
            false => admin.clone(),
        };
        Self {
            service: url(SERVICE),
            publisher: url(PUBLISHER),
            operator: url(OPERATOR),
            admin,
        }
    }
}

/// A replica before its start.
pub struct Setup<'a> {
    world: &'a World,
    environment: Environment,
    role: Option<&'static str>,
    open_files: Option<u32>,
}

impl Setup<'_> {
    /// Adds a setting.
    pub fn with(mut self, variable: &str, value: impl ToString) -> Self {
        self.environment
            .insert(variable.to_owned(), value.to_string());
        self
    }

    /// Removes a default setting.
    pub fn without(mut self, variable: &str) -> Self {
        self.environment.remove(variable);
        self
    }

    /// Only one role: `ingest` or `gateway`.
    pub fn role(mut self, role: &'static str) -> Self {
        self.role = Some(role);
        self
    }

    /// Limits its open files at first, as a container does.
    pub fn open_files(mut self, files: u32) -> Self {
        self.open_files = Some(files);
        self
    }

    /// Starts it with a proxy before Postgres.
    pub async fn start_behind_database_proxy(self) -> (Proxy, Replica) {
        let url = self.world.database_url();
        let proxy = Proxy::before_service(url).await;
        let replica = self.with("DATABASE_URL", proxy.url(url)).start().await;
        (proxy, replica)
    }

    /// Starts it with a proxy before RabbitMQ.
    pub async fn start_behind_broker_proxy(self) -> (Proxy, Replica) {
        let url = self.world.amqp_url();
        let proxy = Proxy::before_service(url).await;
        let replica = self.with("AMQP_URL", proxy.url(url)).start().await;
        (proxy, replica)
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

//! New passwords and addresses of Postgres and RabbitMQ, without a restart.

use std::fs;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use crate::support::{
    Event, Merchant, PATIENCE, Proxy, Publisher, Replica, Setup, World, eventually, holds,
};

const MERCHANT: &str = "m-1";

#[tokio::test]
async fn a_reconnect_uses_the_url_that_its_file_has_now() {
    let world = World::new().await;
    let role = world.name("role").replace(['-', '.'], "_");
    let named = |password: &str| world.database_url_with(&role, password);
    let admin = PgPool::connect_lazy(&world.admin_database_url()).expect("it is a URL");
    execute(
        &admin,
        format!("create role {role} login password 'one' in role shopbell_app"),
    )
    .await;
    let database = world.file("database-url", format!("{}\n", named("one")).as_bytes());
    let setup = world
        .replica()
        .without("DATABASE_URL")
        .with("DATABASE_URL_FILE", &database);
    let Opening {
        first,
        second,
        amqp,
        replica,
        publisher,
        mut merchant,
    } = Opening::of(&world, setup).await;

    // A file that cannot be used changes nothing.
    for bad in ["", "hunter2", "postgres://hunter2@a,b/c"] {
        fs::write(&database, bad).expect("a file can be written");
        let reason = if bad.is_empty() {
            "is empty"
        } else {
            "cannot be used"
        };
        replica
            .logs("ERROR", "problem", |problem| problem.contains(reason))
            .await;
    }
    assert!(!replica.log().contains("hunter2"));

    // The old password and the old address end. Every connection is opened again.
    execute(&admin, format!("alter role {role} password 'two'")).await;
    fs::write(&database, named("two")).expect("a file can be written");
    fs::write(&amqp, second.url(world.amqp_url())).expect("a file can be written");
    // The other file was written before this one.
    replica
        .logs("INFO", "variable", |variable| variable == "AMQP_URL")
        .await;
    let of_role = format!("from pg_stat_activity where usename = '{role}'");
    assert!(
        count(
            &admin,
            format!("select count(pg_terminate_backend(pid)) {of_role}")
        )
        .await
            > 0
    );
    first.cut();
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    merchant.take_seqs(3..=5).await;
    merchant.leave().await;
    replica.ready().await;
    let connected = format!("select count(*) {of_role}");
    eventually("it has connections of the role", PATIENCE, async || {
        holds(count(&admin, connected.clone()).await > 0, "none")
    })
    .await;
    assert!(replica.terminate().await.success());
    execute(&admin, format!("drop role {role}")).await;
    world.finish().await;
}

#[tokio::test]
async fn a_new_address_of_rabbitmq_ends_the_old_connections() {
    let world = World::new().await;
    let Opening {
        first,
        second,
        amqp,
        replica,
        publisher,
        mut merchant,
    } = Opening::of(&world, world.replica()).await;

    // Only the address changes. Nothing else ends the open connections.
    fs::write(&amqp, second.url(world.amqp_url())).expect("a file can be written");
    eventually(
        "no connection is at the old address",
        PATIENCE,
        async || holds(first.connections() == 0, first.connections()),
    )
    .await;
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    merchant.take_seqs(3..=5).await;
    assert!(second.connections() > 0);
    replica.ready().await;
    merchant.leave().await;
    world.finish().await;
}

/// A replica that reads the URL of RabbitMQ from a file, and a merchant that has got two events.
struct Opening {
    /// The address of RabbitMQ in the file.
    first: Proxy,
    /// Another address of the same RabbitMQ.
    second: Proxy,
    /// The path of the file.
    amqp: String,
    replica: Replica,
    publisher: Publisher,
    merchant: Merchant,
}

impl Opening {
    async fn of(world: &World, setup: Setup<'_>) -> Self {
        let (first, second) = (
            Proxy::before_service(world.amqp_url()).await,
            Proxy::before_service(world.amqp_url()).await,
        );
        let amqp = world.file("amqp-url", first.url(world.amqp_url()).as_bytes());
        let setup = setup.without("AMQP_URL").with("AMQP_URL_FILE", &amqp);
        let replica = setup.start().await;
        let publisher = world.publisher().await;
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        publisher.publish_all(Event::orders(MERCHANT, 2)).await;
        merchant.take_seqs(1..=2).await;
        Self {
            first,
            second,
            amqp,
            replica,
            publisher,
            merchant,
        }
    }
}

async fn execute(admin: &PgPool, statement: String) {
    let executed = sqlx::raw_sql(AssertSqlSafe(statement)).execute(admin).await;
    executed.expect("the database accepts the statement");
}

async fn count(admin: &PgPool, query: String) -> i64 {
    let counted = sqlx::query_scalar(AssertSqlSafe(query))
        .fetch_one(admin)
        .await;
    counted.expect("the database answers")
}

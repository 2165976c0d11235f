//! The roles of Postgres and the users of RabbitMQ can do their work and nothing more. All other
//! stories run with the same roles and users.

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::{APP, Event, OWNER, PATIENCE, PRIVILEGES, Publisher, READER, World};
use crate::support::{eventually, holds};

const MERCHANT: &str = "merchant-42";
/// SQLSTATE: the role has no such privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Held by the stories of the users of RabbitMQ, which share a virtual host.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn each_role_of_postgres_is_refused_more_than_its_work() {
    let world = World::new().await;
    world
        .change_database("create schema other; create table other.secrets (secret text)")
        .await;
    let refused_to_all = [
        "create role intruder",
        "create database intruder",
        "create schema intruder",
        "create temporary table intruder ()",
        "alter system set fsync = off",
        "copy feeds to program 'true'",
        "copy feeds to '/tmp/feeds'",
        "select pg_read_file('PG_VERSION')",
        "select rolpassword from pg_authid",
        "select secret from other.secrets",
        "select pg_reload_conf()",
        "select lo_import('/etc/passwd')",
        "set session_replication_role = replica",
    ];
    let schema = [
        "create table intruder ()",
        "create function intruder() returns integer language sql as 'select 1'",
        "alter table feeds add column intruder text",
        "alter function current_epoch(text, bigint) owner to current_user",
        "create index on notifications (created_at)",
        "truncate notifications",
        "drop table notifications",
        "create trigger intruder before insert on feeds execute function suppress_redundant_updates_trigger()",
        "set role shopbell_owner",
    ];
    let migrations = [
        "delete from _sqlx_migrations",
        "update _sqlx_migrations set checksum = ''",
        "insert into _sqlx_migrations select * from _sqlx_migrations",
    ];
    let rows = [
        "insert into feeds (feed) values ('intruder')",
        "update notifications set data = ''",
        "delete from dead_letters",
        "select renew_epoch(null, 'intruder')",
        "set role shopbell_app",
    ];
    for (role, statements) in [
        (OWNER, refused_to_all.to_vec()),
        (APP, [&refused_to_all[..], &schema, &migrations].concat()),
        (
            READER,
            [&refused_to_all[..], &schema, &migrations, &rows].concat(),
        ),
    ] {
        let mut session = PgConnection::connect(&world.database_url_of(role))
            .await
            .expect("the role may connect");
        for statement in statements {
            let done = session.execute(sqlx::raw_sql(statement)).await;
            let code = done.as_ref().err().and_then(sqlx::Error::as_database_error);
            let code = code.and_then(|error| error.code().map(|code| code.into_owned()));
            assert_eq!(
                code.as_deref(),
                Some(INSUFFICIENT_PRIVILEGE),
                "{role}: {statement}: {done:?}"
            );
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn every_table_and_function_has_exactly_its_privileges() {
    let world = World::new().await;
    // As a later release would.
    let mut owner = PgConnection::connect(&world.database_url_of(OWNER))
        .await
        .expect("the role may connect");
    owner
        .execute(
            "create table of_the_next_release (n bigint generated always as identity);
             create function of_the_next_release() returns integer language sql as 'select 1'",
        )
        .await
        .expect("the owner creates");
    let all = "select c.relname, r.rolname,
                      array(select p from unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references',
                                                       'trigger']) p
                            where has_table_privilege(r.oid, c.oid, p)),
                      pg_get_userbyid(c.relowner)
               from pg_class c cross join pg_roles r
               where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'm', 'p')
                 and r.rolname in ('shopbell_app', 'shopbell_reader', 'pg_monitor')";
    let tables: Vec<(String, String, Vec<String>, String)> = sqlx::query_as(all)
        .fetch_all(&mut owner)
        .await
        .expect("tables");
    assert!(tables.len() > 30, "{tables:?}");
    for (table, role, privileges, table_owner) in tables {
        let expected: &[&str] = match role.as_str() {
            APP if table != "_sqlx_migrations" => &["select", "insert", "update", "delete"],
            APP | READER => &["select"],
            // It has no grant, so these are the privileges of everyone.
            _ => &[],
        };
        assert_eq!(privileges, expected, "{role} in {table}");
        assert_eq!(table_owner, OWNER, "{table}");
    }
    let all = "select p.oid::regprocedure::text, p.prosecdef, pg_get_userbyid(p.proowner),
                      array(select r.rolname from pg_roles r where has_function_privilege(r.oid, p.oid, 'execute')
                            and r.rolname in ('shopbell_app', 'shopbell_reader', 'pg_monitor') order by 1)
               from pg_proc p where p.pronamespace = 'public'::regnamespace";
    let functions: Vec<(String, bool, String, Vec<String>)> = sqlx::query_as(all)
        .fetch_all(&mut owner)
        .await
        .expect("functions");
    assert!(functions.len() > 10, "{functions:?}");
    for (function, as_owner, function_owner, callers) in functions {
        assert_eq!(callers, [APP, READER], "{function}");
        assert_eq!(function_owner, OWNER, "{function}");
        assert!(!as_owner, "{function} has the privileges of its owner");
    }
    let sequences =
        "select bool_and(has_sequence_privilege('shopbell_app', oid, 'usage')) from pg_class
                     where relnamespace = 'public'::regnamespace and relkind = 'S'";
    let usable: bool = sqlx::query_scalar(sequences)
        .fetch_one(&mut owner)
        .await
        .expect("sequences");
    assert!(usable);
    let of_everyone = "select count(*) from unnest(array['connect', 'create', 'temporary']) p
                       where has_database_privilege('public', current_database(), p)";
    assert_eq!(world.number(of_everyone).await, 0, "privileges of everyone");
    world.finish().await;
}

#[tokio::test]
async fn a_database_of_one_user_is_divided_into_roles_with_its_rows() {
    let world = World::new().await;
    let url = world.another_database();
    let (_, database) = url.rsplit_once('/').expect("a URL with a database");
    // As a first deployment without roles: one user that owns everything.
    let single = create_with_owner(&world, &url, "").await;
    let settings = [("DATABASE_URL", single.as_str())];
    world
        .shopbell_with(&settings, &["migrate"])
        .await
        .succeeded();
    let replica = world.replica().with("DATABASE_URL", &single).start().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=3).await;
    assert!(replica.terminate().await.success());

    // As a dump does. Other sessions would wait behind a statement that waits for it.
    let mut dump = PgConnection::connect(&url)
        .await
        .expect("the administrator");
    let locked = dump.execute("begin; lock table feeds in access share mode");
    locked.await.expect("the dump locks");
    let refused = divide_into_roles(&url, database).await;
    let error = refused.expect_err("the statements give up");
    assert!(error.to_string().contains("lock timeout"), "{error}");
    dump.execute("rollback").await.expect("the dump ends");
    let divided = divide_into_roles(&url, database).await;
    divided.expect("the administrator divides");
    let app = world.as_role(&url, APP);
    let replica = world.replica().with("DATABASE_URL", &app).start().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=3).await;
    publisher.publish_all(Event::orders(MERCHANT, 1)).await;
    merchant.take_seqs(4..=4).await;
    let owner = world.as_role(&url, OWNER);
    let settings = [("DATABASE_URL", owner.as_str())];
    world
        .shopbell_with(&settings, &["migrate"])
        .await
        .succeeded();
    assert!(replica.terminate().await.success());
    let drop = format!("drop owned by \"{database}\"; drop role \"{database}\"");
    let dropped = run_as(&url, drop).await;
    dropped.expect("the former user owns nothing");
    world.finish().await;
}

#[tokio::test]
async fn an_owner_with_createrole_can_run_the_file_twice() {
    let world = World::new().await;
    let url = world.another_database();
    let (_, database) = url.rsplit_once('/').expect("a URL with a database");
    // As the administrator of managed Postgres.
    let administrator = create_with_owner(&world, &url, "createrole").await;
    // A superuser creates the roles of the other stories, so these have their own names.
    let privileges = PRIVILEGES.replace("shopbell_", &format!("{database}_"));
    let password = format!("alter role {database}_owner password 's3cr3t'");
    let owner = world.as_role(&administrator, &format!("{database}_owner"));
    for statements in [privileges.clone() + &password, privileges] {
        run_as(&administrator, statements)
            .await
            .expect("the owner of the database runs the file");
        let settings = [("DATABASE_URL", &*owner)];
        let migrated = world.shopbell_with(&settings, &["migrate"]).await;
        migrated.succeeded();
    }
    let mut superuser = PgConnection::connect(&url).await.expect("the superuser");
    let privileges = format!(
        "select has_table_privilege('{database}_app', 'feeds', 'insert'),
                has_table_privilege('{database}_app', '_sqlx_migrations', 'delete'),
                has_table_privilege('{database}_reader', 'feeds', 'select')"
    );
    let privileges: (bool, bool, bool) = sqlx::query_as(AssertSqlSafe(privileges))
        .fetch_one(&mut superuser)
        .await
        .expect("privileges");
    assert_eq!(privileges, (true, false, true));
    let mut drop = format!("alter database {database} owner to current_user;");
    for role in ["_owner", "_app", "_reader", ""] {
        drop += &format!("drop owned by {database}{role} cascade; drop role {database}{role};");
    }
    run_as(&url, drop).await.expect("the roles own nothing");
    world.finish().await;
}

#[tokio::test]
async fn each_user_of_rabbitmq_can_do_its_work() {
    let world = World::new().await;
    let url = |user: &str| world.amqp_url_of(&format!("shopbell-{user}"));
    let (service, publisher, operator) = (url("service"), url("publisher"), url("operator"));
    let verifying = |url: &str| {
        [
            ("AMQP_URL", url.to_owned()),
            ("SHOPBELL_AMQP_PREFIX", "shopbell".to_owned()),
            ("SHOPBELL_AMQP_DECLARE", "false".to_owned()),
        ]
    };
    let run = async |url: &str, declare: bool, arguments: &[&str]| {
        let mut settings = verifying(url);
        settings[2].1 = declare.to_string();
        let settings = settings.each_ref().map(|(name, value)| (*name, &**value));
        world.shopbell_with(&settings, arguments).await
    };
    let _alone = ALONE.lock().await;
    for refused in [&service, &publisher] {
        let done = run(refused, true, &["declare"]).await.failed_with(1);
        assert!(done.stderr.contains("ACCESS_REFUSED"), "{done:?}");
    }
    run(&operator, true, &["declare"]).await.succeeded();
    run(&service, false, &["declare"]).await.succeeded();
    for queue in ["ingest", "dead-letter", "unroutable"] {
        let purge = format!("purge shopbell.{queue}");
        act(&operator, &purge).await.expect("the operator purges");
    }

    // With two gateways, hints are published too.
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let mut setup = world.replica();
        for (name, value) in verifying(&service) {
            setup = setup.with(name, value);
        }
        replicas.push(setup.start().await);
    }
    let mut merchant = world.merchant(MERCHANT).connect(replicas[1].public()).await;
    let upstream = Publisher::connect(&publisher, "shopbell.events").await;
    upstream.publish_all(Event::orders(MERCHANT, 3)).await;
    merchant.take_seqs(1..=3).await;
    let arguments = ["publish", "--recipient", MERCHANT];
    run(&publisher, false, &arguments).await.succeeded();
    merchant.take_seqs(4..=4).await;
    // A dead letter is published too, and the operator drops it.
    let bad = [
        "publish",
        "--recipient",
        MERCHANT,
        "--type",
        "order.created",
        "--data",
        "{}",
        "--unchecked",
    ];
    run(&publisher, false, &bad).await.succeeded();
    let waits = "select count(*) from dead_letters where published_at is not null";
    eventually("a dead letter is published", PATIENCE, async || {
        let published = world.number(waits).await;
        holds(published == 1, published)
    })
    .await;
    let settings = verifying(&operator);
    let settings = settings.each_ref().map(|(name, value)| (*name, &**value));
    let doctor = world
        .shopbell_with(&settings, &["doctor"])
        .await
        .succeeded();
    assert!(
        !doctor.stdout.contains("no permission"),
        "{}",
        doctor.stdout
    );
    let dropped = ["dead-letters", "drop", "--all"];
    run(&operator, false, &dropped).await.succeeded();

    for replica in replicas {
        assert!(replica.terminate().await.success());
    }
    world.finish().await;
}

#[tokio::test]
async fn each_user_of_rabbitmq_is_refused_more_than_its_work() {
    let world = World::new().await;
    let url = |user: &str| world.amqp_url_of(&format!("shopbell-{user}"));
    let (service, publisher, operator) = (url("service"), url("publisher"), url("operator"));
    let _alone = ALONE.lock().await;
    let settings = [
        ("AMQP_URL", &*operator),
        ("SHOPBELL_AMQP_PREFIX", "shopbell"),
    ];
    world
        .shopbell_with(&settings, &["declare"])
        .await
        .succeeded();
    let all = ACTS.iter().copied();
    let by_operator = all.filter(|act| !act.contains("other") && !act.contains("amq."));
    for (user, url, allowed) in [
        ("publisher", &publisher, vec!["publish shopbell.events"]),
        ("service", &service, ACTS_OF_THE_SERVICE.to_vec()),
        ("operator", &operator, by_operator.collect()),
    ] {
        for is_wanted in ACTS {
            let done = act(url, is_wanted).await;
            let is_allowed = allowed.contains(&is_wanted);
            assert_eq!(done.is_ok(), is_allowed, "{user}: {is_wanted}: {done:?}");
            if let Err(error) = done {
                let is_refusal = error.contains("ACCESS_REFUSED");
                assert!(is_refusal, "{user}: {is_wanted}: {error}");
            }
        }
    }
    world.finish().await;
}

/// Everything that a user may try, in this order.
const ACTS: [&str; 15] = [
    "publish shopbell.events",
    "publish shopbell.dead-letter",
    "publish shopbell.fanout",
    "publish shopbell.unroutable",
    "publish shopbell.receipts",
    "publish amq.topic",
    "publish amq.default",
    "get shopbell.unroutable",
    "consume shopbell.dead-letter",
    "declare shopbell.spare",
    "declare other",
    "declare-exchange shopbell.spare",
    "bind shopbell.spare",
    "delete shopbell.spare",
    "purge shopbell.unroutable",
];
/// The service also consumes the queues of ingest, and declares its own queue of hints.
const ACTS_OF_THE_SERVICE: [&str; 6] = [
    "publish shopbell.events",
    "publish shopbell.dead-letter",
    "publish shopbell.fanout",
    "get shopbell.unroutable",
    "consume shopbell.dead-letter",
    "purge shopbell.unroutable",
];

/// Tries one thing over a connection of its own, which a refusal ends.
async fn act(amqp_url: &str, act: &str) -> Result<(), String> {
    let (verb, name) = act.split_once(' ').expect("a verb and a name");
    let connection = Connection::connect(amqp_url, ConnectionProperties::default())
        .await
        .expect("the user may connect");
    let channel = connection.create_channel().await.expect("a channel");
    let done = match verb {
        "publish" => publish(&channel, name).await,
        _ => act_on(&channel, verb, name).await,
    };
    done.map_err(|error| error.to_string())
}

async fn act_on(channel: &Channel, verb: &str, name: &str) -> Result<(), lapin::Error> {
    let none = FieldTable::default();
    match verb {
        "get" => {
            let got = channel.basic_get(name.into(), BasicGetOptions::default());
            got.await.map(drop)
        }
        "consume" => {
            let options = BasicConsumeOptions::default();
            let consumed = channel.basic_consume(name.into(), "".into(), options, none);
            consumed.await.map(drop)
        }
        "declare" => {
            let options = QueueDeclareOptions::default();
            let declared = channel.queue_declare(name.into(), options, none);
            declared.await.map(drop)
        }
        "declare-exchange" => {
            let (kind, options) = (ExchangeKind::Fanout, ExchangeDeclareOptions::default());
            channel
                .exchange_declare(name.into(), kind, options, none)
                .await
        }
        "bind" => {
            let (events, options) = ("shopbell.events".into(), QueueBindOptions::default());
            channel
                .queue_bind(name.into(), events, "none".into(), options, none)
                .await
        }
        "delete" => {
            let deleted = channel.queue_delete(name.into(), QueueDeleteOptions::default());
            deleted.await.map(drop)
        }
        "purge" => {
            let purged = channel.queue_purge(name.into(), QueuePurgeOptions::default());
            purged.await.map(drop)
        }
        other => panic!("nobody tries to {other}"),
    }
}

/// Publishes, and waits for the confirm.
async fn publish(channel: &Channel, exchange: &str) -> Result<(), lapin::Error> {
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    // The protocol's name of the default exchange is empty.
    let (exchange, key) = match exchange {
        "amq.default" => ("", "shopbell.ingest"),
        exchange => (exchange, "none"),
    };
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let confirm = channel
        .basic_publish(exchange.into(), key.into(), options, b"{}", properties)
        .await?;
    confirm.await.map(drop)
}

/// Creates the database of `url` with an owner of the same name, which is in no other test. Returns the
/// URL of this owner.
async fn create_with_owner(world: &World, url: &str, attributes: &str) -> String {
    let (_, database) = url.rsplit_once('/').expect("a URL with a database");
    for statement in [
        format!("create role \"{database}\" login {attributes} password 's3cr3t'"),
        format!("create database \"{database}\" owner \"{database}\""),
    ] {
        let created = run_as(&world.admin_database_url(), statement).await;
        created.expect("the administrator creates");
    }
    let (_, server) = url.rsplit_once('@').expect("a URL with a user");
    format!("postgres://{database}:s3cr3t@{server}")
}

/// Runs the statements of docs/security.md for a database that has one user.
async fn divide_into_roles(url: &str, user: &str) -> Result<(), sqlx::Error> {
    let page = include_str!("../../docs/security.md");
    let (_, section) = page
        .split_once("### An existing database\n")
        .expect("the page has the section");
    let statements = section.split("```sql\n").nth(1).expect("statements");
    let statements = statements.split("```").next().expect("an end");
    let statements = statements.replace("\"OLD\"", &format!("\"{user}\""));
    let statements = statements.replace("database shopbell", &format!("database \"{user}\""));
    for statements in [PRIVILEGES.to_owned(), statements, PRIVILEGES.to_owned()] {
        run_as(url, statements).await?;
    }
    Ok(())
}

/// Runs statements in a session of their own.
async fn run_as(url: &str, statements: String) -> Result<(), sqlx::Error> {
    let mut session = PgConnection::connect(url).await?;
    let done = session.execute(sqlx::raw_sql(AssertSqlSafe(statements)));
    done.await.map(drop)
}

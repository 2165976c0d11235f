//! The roles of Postgres can do their work and nothing more. All other stories run with the same
//! roles.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::{APP, Event, OWNER, PRIVILEGES, READER, World};

const MERCHANT: &str = "merchant-42";
/// SQLSTATE: the role has no such privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

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

//! A migrated database, made once by `shopbell migrate`. Each test's database is a clone of it.
//!
//! Its roles come from `privileges/postgres.sql`: `shopbell_owner` migrates, and the stories serve as
//! `shopbell_app`.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::process::Environment;
use super::{command, url};

/// Held while the template is searched or made, so that parallel test processes make only one.
const TEMPLATE_LOCK: i64 = 0x5348_4f50_4245_4c4c;

/// The role that owns the tables.
pub const OWNER: &str = "shopbell_owner";
/// The role of the service.
pub const APP: &str = "shopbell_app";
/// The role of people and programs that only read.
pub const READER: &str = "shopbell_reader";
/// The roles and their privileges in one database.
pub const PRIVILEGES: &str = include_str!("../../../privileges/postgres.sql");

/// For the tables and views that a story adds as the superuser.
const PRIVILEGES_OF_STORIES: &str =
    "alter default privileges grant select, insert, update, delete on tables to shopbell_app;
     alter default privileges grant select on tables to shopbell_reader";

/// Creates `database`, migrated and empty. `environment` is everything else that `shopbell migrate`
/// needs.
pub async fn create_database(server_url: &str, database: &str, environment: &Environment) {
    let mut connection = connect(server_url).await;
    let template = template_name();
    // Unlocked when the connection ends.
    sqlx::query("select pg_advisory_lock($1)")
        .bind(TEMPLATE_LOCK)
        .execute(&mut connection)
        .await
        .expect("a lock");
    if !exists(&mut connection, &template).await {
        make_template(&mut connection, server_url, &template, environment).await;
    }
    execute(
        &mut connection,
        format!("create database \"{database}\" template \"{template}\""),
    )
    .await;
    // A clone has the tables and their privileges, but not the privileges of its database.
    set_privileges(server_url, database, PRIVILEGES_OF_STORIES).await;
    connection.close().await.ok();
}

/// Runs the file of privileges and `more` in `database`, as a superuser. The caller holds the lock, because
/// roles belong to the whole server.
async fn set_privileges(server_url: &str, database: &str, more: &str) {
    let mut connection = connect(&url::with_database(server_url, database)).await;
    execute(&mut connection, format!("{PRIVILEGES}{more}")).await;
    connection.close().await.ok();
}

/// Gives the roles the password of the superuser.
async fn set_passwords(connection: &mut PgConnection, server_url: &str) {
    let Some((_, password)) = url::user_and_any_password(server_url) else {
        return;
    };
    for role in [OWNER, APP, READER] {
        execute(
            connection,
            format!("alter role {role} password '{password}'"),
        )
        .await;
    }
}

/// Drops `database`, also if clients are connected to it.
pub async fn drop_database(server_url: &str, database: &str) {
    let mut connection = connect(server_url).await;
    execute(
        &mut connection,
        format!("drop database if exists \"{database}\" with (force)"),
    )
    .await;
    connection.close().await.ok();
}

/// Under another name until it is complete, so that an interrupted run leaves no partial template.
async fn make_template(
    connection: &mut PgConnection,
    server_url: &str,
    template: &str,
    environment: &Environment,
) {
    let unfinished = format!("{template}_unfinished");
    execute(
        connection,
        format!("drop database if exists \"{unfinished}\" with (force)"),
    )
    .await;
    execute(connection, format!("create database \"{unfinished}\"")).await;
    set_privileges(server_url, &unfinished, "").await;
    set_passwords(connection, server_url).await;
    let mut environment = environment.clone();
    environment.insert(
        "DATABASE_URL".to_owned(),
        url::with_user(&url::with_database(server_url, &unfinished), OWNER),
    );
    command::run(&environment, &["migrate"]).await.succeeded();
    set_privileges(server_url, &unfinished, "").await;
    execute(
        connection,
        format!("alter database \"{unfinished}\" rename to \"{template}\""),
    )
    .await;
}

/// The template's name contains a hash of the migrations: their names and content.
fn template_name() -> String {
    let mut hasher = DefaultHasher::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("the checkout has migrations")
        .map(|file| file.expect("a folder can be read").path())
        .collect();
    files.sort();
    PRIVILEGES.hash(&mut hasher);
    for file in files {
        (
            file.file_name(),
            fs::read(&file).expect("a migration can be read"),
        )
            .hash(&mut hasher);
    }
    format!("shopbell_template_{:016x}", hasher.finish())
}

async fn connect(server_url: &str) -> PgConnection {
    PgConnection::connect(server_url)
        .await
        .expect("Postgres can be reached at DATABASE_URL")
}

async fn exists(connection: &mut PgConnection, database: &str) -> bool {
    let query = sqlx::query_scalar("select exists (select from pg_database where datname = $1)");
    query
        .bind(database)
        .fetch_one(connection)
        .await
        .expect("Postgres lists its databases")
}

/// Runs a statement whose names come from this module.
async fn execute(connection: &mut PgConnection, sql: String) {
    let shown = sql.clone();
    if let Err(error) = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await {
        panic!("{shown}: {error}");
    }
}

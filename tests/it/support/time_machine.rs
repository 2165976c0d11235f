//! Postgres returns to an earlier moment: a copy of the world's database takes its place.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::{World, url};

/// An earlier state of a world's database.
pub struct Copy {
    name: String,
    url: String,
}

impl Copy {
    /// Runs a statement in the copy, as a replica does that is faster than all others.
    pub async fn execute(&self, statement: &'static str) {
        let mut connection = PgConnection::connect(&self.url)
            .await
            .expect("the copy can be reached");
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .expect("the copy accepts the statement");
        connection.close().await.ok();
    }
}

impl World {
    /// Copies the present database. Its connections end, and are opened again.
    pub async fn copy_database(&self) -> Copy {
        let copy_url = self.another_database();
        let name = copy_url
            .rsplit('/')
            .next()
            .and_then(|name| name.split('?').next())
            .expect("a URL has a path");
        let copy = Copy {
            name: name.to_owned(),
            url: copy_url.clone(),
        };
        let mut server = PgConnection::connect(&self.server_url)
            .await
            .expect("Postgres can be reached");
        self.close_database(&mut server).await;
        run(
            &mut server,
            format!(
                "create database \"{}\" template \"{}\"",
                copy.name, self.database
            ),
        )
        .await;
        run(
            &mut server,
            format!(
                "alter database \"{}\" allow_connections true",
                self.database
            ),
        )
        .await;
        server.close().await.ok();
        copy
    }

    /// Puts the copy in the place of the database, at the same URL.
    pub async fn restore(&self, copy: Copy) {
        let gone = self.another_database();
        let gone = gone
            .rsplit('/')
            .next()
            .and_then(|name| name.split('?').next())
            .expect("a URL has a path");
        let mut server = PgConnection::connect(&self.server_url)
            .await
            .expect("Postgres can be reached");
        self.close_database(&mut server).await;
        run(
            &mut server,
            format!("alter database \"{}\" rename to \"{gone}\"", self.database),
        )
        .await;
        run(
            &mut server,
            format!(
                "alter database \"{}\" rename to \"{}\"",
                copy.name, self.database
            ),
        )
        .await;
        server.close().await.ok();
        // The superuser that drops databases at the end can still connect.
        let mut server = PgConnection::connect(&url::with_database(&self.server_url, "postgres"))
            .await
            .expect("Postgres");
        run(
            &mut server,
            format!("alter database \"{gone}\" allow_connections true"),
        )
        .await;
        server.close().await.ok();
    }

    /// Ends all connections, and refuses new ones.
    async fn close_database(&self, server: &mut PgConnection) {
        run(
            server,
            format!(
                "alter database \"{}\" allow_connections false",
                self.database
            ),
        )
        .await;
        let others = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = $1";
        sqlx::query(others)
            .bind(&self.database)
            .execute(server)
            .await
            .expect("connections can be ended");
    }
}

async fn run(server: &mut PgConnection, statement: String) {
    let shown = statement.clone();
    if let Err(error) = server
        .execute(sqlx::raw_sql(AssertSqlSafe(statement)))
        .await
    {
        panic!("{shown}: {error}");
    }
}

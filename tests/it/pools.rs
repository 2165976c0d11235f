//! Connections to Postgres: a server that is silent or demoted does not keep them.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Event, PATIENCE, Replica, World, eventually, holds, http};

const MERCHANT: &str = "merchant-42";
/// As many as the history pool has.
const HISTORY_CONNECTIONS: usize = 3;
/// A reply within this time is immediate: it is far below the timeout of a silent statement (12 s).
const AT_ONCE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn aborted_requests_to_a_silent_database_give_their_connections_back() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    world.expect_stored(MERCHANT, 5).await;

    // While the table is locked, as many requests as there are connections open all of them.
    let lock = world.lock_notifications().await;
    let first = begin_history(&world, &replica).await;
    history_connections_in_use(&replica, HISTORY_CONNECTIONS).await;
    drop(lock);
    history_connections_in_use(&replica, 0).await;
    drop(first);

    network.forget();
    let aborted = begin_history(&world, &replica).await;
    history_connections_in_use(&replica, HISTORY_CONNECTIONS).await;
    drop(aborted);
    // Their answers never arrive, so no later request may use them.
    history_connections_in_use(&replica, 0).await;
    eventually("history is read on new connections", AT_ONCE, async || {
        let reply = history(&world, &replica).await;
        holds(reply.status == 200, format!("{reply:?}"))
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn connections_to_a_server_that_became_read_only_are_left() {
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    merchant.take_seqs(1..=5).await;

    // A fail-over: the sessions of the replica are on a server that takes no writes …
    world.change_database(READ_ONLY).await;
    network.cut();
    network.mend();
    eventually("/readyz reports it", PATIENCE, async || {
        let reply = replica.get("/readyz").await;
        let reported = reply.status == 503 && reply.text().contains(r#""database":"read_only""#);
        holds(reported, format!("{} {}", reply.status, reply.text()))
    })
    .await;
    replica.metric_is("shopbell_database_up", "", 0).await;
    let retries = replica
        .metric_where("shopbell_retries_total", r#"part="append""#)
        .await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    eventually("an append is refused", PATIENCE, async || {
        let now = replica
            .metric_where("shopbell_retries_total", r#"part="append""#)
            .await;
        holds(now > retries, now)
    })
    .await;

    // … and new ones are on the new primary.
    world.change_database(READ_WRITE).await;
    merchant.take_seqs(6..=10).await;
    merchant.ack(MERCHANT, 10).await;
    world.expect_cursor(MERCHANT, "", 10).await;
    replica.ready().await;
    world.finish().await;
}

#[tokio::test]
async fn statements_that_a_migration_made_stale_are_prepared_again() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    // Often enough that every connection has the statement.
    for device in 0..20 {
        let merchant = world
            .merchant(MERCHANT)
            .after(MERCHANT, 0)
            .device(&format!("till-{device}"));
        merchant
            .connect(replica.public())
            .await
            .take_seqs(1..=5)
            .await;
    }
    let migration = r#"drop view undelivered; alter table notifications alter column event_type type text collate "POSIX""#;
    world.change_database(migration).await;
    let merchant = world.merchant(MERCHANT).after(MERCHANT, 0).device("till");
    merchant
        .connect(replica.public())
        .await
        .take_seqs(1..=5)
        .await;
    world.finish().await;
}

const READ_ONLY: &str = "do $$ begin
    execute format('alter database %I set default_transaction_read_only = on', current_database());
end $$";
const READ_WRITE: &str = "do $$ begin
    execute format('alter database %I reset default_transaction_read_only', current_database());
end $$";

async fn history(world: &World, replica: &Replica) -> http::Reply {
    let authorization = format!("Bearer {}", world.token(MERCHANT).sign());
    http::get_with(replica.public(), PATH, &[("Authorization", &authorization)])
        .await
        .expect("an answer")
}

const PATH: &str = "/v1/feeds/merchant-42/notifications";

/// Requests the history on as many sockets as there are connections, and reads no response. If they
/// are dropped, the requests are aborted.
async fn begin_history(world: &World, replica: &Replica) -> Vec<TcpStream> {
    let token = world.token(MERCHANT).sign();
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n",
        replica.public()
    );
    let mut sockets = Vec::new();
    for _ in 0..HISTORY_CONNECTIONS {
        let mut socket = TcpStream::connect(replica.public())
            .await
            .expect("the replica listens");
        socket
            .write_all(request.as_bytes())
            .await
            .expect("the socket accepts the request");
        sockets.push(socket);
    }
    sockets
}

async fn history_connections_in_use(replica: &Replica, wanted: usize) {
    let metric = "shopbell_pool_connections";
    eventually(
        &format!("{wanted} connections of history are in use"),
        PATIENCE,
        async || {
            let used = replica
                .metric_where(metric, r#"pool="history",state="used""#)
                .await;
            holds(usize::try_from(used) == Ok(wanted), used)
        },
    )
    .await;
}

/// After an outage, all connections of a replica open at once. So each may need longer than a caller waits.
#[tokio::test]
async fn connections_that_open_slowly_are_not_given_up() {
    /// A new connection needs seven round trips, and a caller waits for two seconds.
    const HALF_A_ROUND_TRIP: Duration = Duration::from_millis(200);
    let world = World::new().await;
    let (network, replica) = world.replica().start_behind_database_proxy().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    world.expect_stored(MERCHANT, 5).await;

    network.delay(HALF_A_ROUND_TRIP);
    world
        .change_database(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where application_name = 'shopbell' and datname = current_database()",
        )
        .await;
    publisher.publish_all(Event::orders(MERCHANT, 5)).await;
    world.expect_stored(MERCHANT, 10).await;
    network.mend();
    replica.ready().await;
    world.finish().await;
}

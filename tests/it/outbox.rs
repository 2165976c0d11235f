//! The outbox of a shop: a transaction and its events succeed together, in order, byte for byte.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::support::{PATIENCE, Shop, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn an_event_is_published_if_and_only_if_its_transaction_commits() {
    let (world, shop) = open().await;
    let relay = shop.relay(&world, &[]).start().await;
    let mut undone = shop.pool.begin().await.expect("a transaction");
    publish(&mut undone, MERCHANT, "\"undone\"").await;
    let mut pending = shop.pool.begin().await.expect("a transaction");
    publish(&mut pending, MERCHANT, "\"pending\"").await;
    undone.rollback().await.expect("a rollback");
    shop.publish(MERCHANT, "\"first\"").await;
    world.expect_stored(MERCHANT, 1).await;

    // Its number is lower than that of the row that is published already.
    pending.commit().await.expect("a commit");
    world.expect_stored(MERCHANT, 2).await;
    shop.expect_empty(PATIENCE).await;
    assert_eq!(data(&world, MERCHANT).await, ["\"first\"", "\"pending\""]);
    let published = relay.metric("shopbell_relay_published_total").await;
    assert_eq!(published, Ok(2.0));
    assert!(relay.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn an_event_arrives_whole_and_its_data_byte_for_byte() {
    let (world, shop) = open().await;
    let _relay = shop.relay(&world, &[]).start().await;
    let exact = "{\"b\": 1 , \"a\":1e400,\"a\":\"\\u0000\\ud800 é\"}";
    let query = "select shopbell_outbox.shopbell_publish($1, 'custom.thing', data => $2, id => 'o-1', source => '/checkout',
        subject => 'order 1', \"time\" => '2026-01-02 03:04:05.123456+01', expirytime => '9999-01-01 00:00:00+00',
        extensions => '{\"collapsekey\": \"k\", \"broadcast\": false}')";
    let id: String = sqlx::query_scalar(query)
        .bind(MERCHANT)
        .bind(exact)
        .fetch_one(&shop.pool)
        .await
        .expect("the event is accepted");
    assert_eq!(id, "o-1");
    // The same event again counts once. The data may also be json, jsonb or missing.
    for call in [
        "('merchant-42', 'custom.thing', '1', id => 'o-1', source => '/checkout')",
        "('merchant-42', 'custom.thing', '{\"a\" :1}'::json)",
        "('merchant-42', 'custom.thing', jsonb_build_object('b', 1, 'a', 2))",
        "('merchant-42', 'custom.thing')",
    ] {
        call_publish(&shop.pool, call)
            .await
            .expect("the event is accepted");
    }
    world.expect_stored(MERCHANT, 4).await;
    shop.expect_empty(PATIENCE).await;
    let stored: Vec<(String, Option<String>, Option<String>)> = rows(
        &world,
        "select concat_ws(' ', event_id, source, event_type, time = '2026-01-02 02:04:05.123456+00',
                expires_at = '9999-01-01 00:00:00+00'), collapse_key, data::text
         from notifications where feed = 'merchant-42' order by seq",
    )
    .await;
    let first = (
        "o-1 /checkout custom.thing t t".to_owned(),
        Some("k".into()),
        Some(exact.into()),
    );
    assert_eq!(stored[0], first);
    let data: Vec<_> = stored[1..]
        .iter()
        .map(|(_, _, data)| data.as_deref())
        .collect();
    assert_eq!(
        data,
        [Some("{\"a\" :1}"), Some("{\"a\": 2, \"b\": 1}"), None]
    );
    world.finish().await;
}

#[tokio::test]
async fn a_value_that_no_shopbell_accepts_aborts_its_transaction() {
    let (world, shop) = open().await;
    let long = |bytes: usize| format!("repeat('x', {bytes})");
    let merchant = "'merchant-42'";
    for (call, problem) in [
        (format!("({merchant}, 't', '{{')"), "json"),
        ("('merchant 42', 't')".to_owned(), "recipient"),
        ("(null, 't')".to_owned(), "recipient"),
        (format!("({}, 't')", long(129)), "recipient"),
        ("('shopbell-canary/x', 't')".to_owned(), "shopbell-canary/"),
        (format!("({merchant}, {})", long(256)), "type"),
        (format!("({merchant}, E'a\\u0085')"), "type"),
        (format!("({merchant}, null)"), "type"),
        (format!("({merchant}, 't', id => {})", long(513)), "id"),
        (format!("({merchant}, 't', id => '')"), "id"),
        (
            format!("({merchant}, 't', source => {})", long(1_025)),
            "source",
        ),
        (format!("({merchant}, 't', source => null)"), "source"),
        (format!("({merchant}, 't', \"time\" => 'infinity')"), "time"),
        (
            format!("({merchant}, 't', expirytime => '-infinity')"),
            "time",
        ),
        (
            format!("({merchant}, 't', extensions => '[]')"),
            "extensions",
        ),
        (
            format!("({merchant}, 't', extensions => jsonb_build_object('a', repeat('x', 16384)))"),
            "extensions",
        ),
        (
            format!("({merchant}, 't', extensions => '{{\"id\": 1}}')"),
            "extensions",
        ),
        (
            format!("({merchant}, 't', extensions => '{{\"a\": []}}')"),
            "extensions",
        ),
        (
            format!("({merchant}, 't', to_jsonb(repeat('x', 16777215)))"),
            "data",
        ),
    ] {
        let error = call_publish(&shop.pool, &call).await.expect_err(&call);
        assert!(error.contains(problem), "{call}: {error}");
    }
    assert_eq!(shop.rows("events").await, Ok(0));
    // The greatest values are accepted, by ingest too.
    let greatest = format!(
        "({}, {}, id => {}, source => {}, subject => {}, \"time\" => '0001-01-02 00:00:00+00',
          expirytime => '9999-12-30 00:00:00+00', extensions => jsonb_build_object('collapsekey', {}))",
        long(128), long(255), long(512), long(1_024), long(1_024), long(256)
    );
    call_publish(&shop.pool, &greatest)
        .await
        .expect("it is accepted");
    let replica = world.serve().await;
    let relay = shop.relay(&world, &[]).start().await;
    world.expect_stored(&"x".repeat(128), 1).await;
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    drop(relay);
    world.finish().await;
}

#[tokio::test]
async fn events_arrive_in_the_order_of_transactions_that_wait_for_each_other() {
    const WRITERS: usize = 6;
    const ROUNDS: i64 = 40;
    let (world, shop) = open().await;
    shop.run("insert into orders select 'merchant-' || m, 0 from generate_series(1, 3) m")
        .await;
    let relay = shop.relay(&world, &[]).start().await;
    let writers = (0..WRITERS).map(|_| {
        let pool = shop.pool.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let merchant = format!("merchant-{}", 1 + round % 3);
                let mut order = pool.begin().await.expect("a transaction");
                // A write before the lock, so that transactions do not begin in the order of their commits.
                sqlx::query("insert into orders values ($1, 0)")
                    .bind(format!("other-{}", fastrand::u64(..)))
                    .execute(&mut *order)
                    .await
                    .expect("a write");
                let number: i64 = sqlx::query_scalar(
                    "update orders set number = number + 1 where merchant = $1 returning number",
                )
                .bind(&merchant)
                .fetch_one(&mut *order)
                .await
                .expect("a write");
                for part in 0..2 {
                    publish(&mut order, &merchant, &format!("{}", 2 * number + part)).await;
                }
                match round % 5 {
                    0 => order.rollback().await.expect("a rollback"),
                    _ => order.commit().await.expect("a commit"),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer does not panic");
    }
    shop.expect_empty(PATIENCE).await;
    for merchant in ["merchant-1", "merchant-2", "merchant-3"] {
        let count: i64 = sqlx::query_scalar("select number from orders where merchant = $1")
            .bind(merchant)
            .fetch_one(&shop.pool)
            .await
            .expect("the orders are counted");
        let wanted: Vec<String> = (2..2 * count + 2)
            .map(|number| number.to_string())
            .collect();
        world.expect_stored(merchant, wanted.len() as u64).await;
        assert_eq!(data(&world, merchant).await, wanted, "{merchant}");
    }
    assert!(relay.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn a_recipient_with_many_rows_does_not_delay_the_others() {
    let (world, shop) = open().await;
    shop.publish_many(1, 3_000).await;
    shop.publish(MERCHANT, "1").await;
    let batch = [("SHOPBELL_OUTBOX_BATCH", "10000")];
    let relay = shop.relay(&world, &batch).start().await;
    world.expect_stored(MERCHANT, 1).await;
    let left = shop.rows("events").await.expect("the outbox can be read");
    assert!(left > 1_000, "{left} rows of the other recipient are left");
    shop.publish("another", "1").await;
    world.expect_stored("another", 1).await;
    let left = shop.rows("events").await.expect("the outbox can be read");
    assert!(left > 0, "the relay had published all before");
    shop.expect_empty(PATIENCE).await;
    world.expect_stored("merchant-1", 3_000).await;
    assert!(relay.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn a_sleeping_relay_is_woken_and_a_working_one_needs_no_notification() {
    let (world, shop) = open().await;
    let _relay = shop.relay(&world, &[]).start().await;
    let asleep = async |wanted: bool| {
        eventually("the relay sleeps or works", PATIENCE, async || {
            let asleep: bool = sqlx::query_scalar("select asleep from shopbell_outbox.relay")
                .fetch_one(&shop.admin)
                .await
                .map_err(|error| error.to_string())?;
            holds(asleep == wanted, asleep)
        })
        .await;
    };
    asleep(true).await;
    shop.publish(MERCHANT, "1").await;
    asleep(false).await;
    world.expect_stored(MERCHANT, 1).await;
    asleep(true).await;
    // Without notifications, its poll finds the row.
    shop.run("update shopbell_outbox.relay set asleep = false")
        .await;
    shop.publish(MERCHANT, "2").await;
    world.expect_stored(MERCHANT, 2).await;
    world.finish().await;
}

#[tokio::test]
async fn the_roles_of_the_outbox_can_do_their_work_and_nothing_more() {
    let (world, shop) = open().await;
    shop.install(&world).await;
    for (url, statement) in [
        (
            shop.relay_url(),
            "insert into shopbell_outbox.events (recipient, type, event_id, source, time) values ('m', 't', 'i', 's', now())",
        ),
        (
            shop.relay_url(),
            "update shopbell_outbox.events set recipient = 'm'",
        ),
        (
            shop.relay_url(),
            "select shopbell_outbox.shopbell_publish('m', 't')",
        ),
        (shop.relay_url(), "delete from shopbell_outbox.set_aside"),
        (shop.relay_url(), "select * from orders"),
        (shop.shop_url(), "select * from shopbell_outbox.events"),
        (shop.shop_url(), "delete from shopbell_outbox.events"),
        (
            shop.shop_url(),
            "update shopbell_outbox.relay set asleep = false",
        ),
        (shop.shop_url(), "select shopbell_outbox.try_again('{1}')"),
    ] {
        let mut connection = PgConnection::connect(url).await.expect("a connection");
        let refused = sqlx::query(statement)
            .execute(&mut connection)
            .await
            .expect_err(statement);
        let code = refused.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {refused}");
    }
    world.finish().await;
}

#[tokio::test]
async fn the_outbox_may_be_installed_later_and_again() {
    let world = World::new().await;
    let shop = Shop::without_outbox(&world).await;
    let admin_url = shop.relay_url().to_owned();
    let relay = shop.relay(&world, &[("SHOPBELL_OUTBOX_DATABASE_URL", &admin_url)]);
    // The role exists only after the first installation on this server.
    Shop::open(&world).await;
    relay.launch();
    let text = relay.reports(503, "unready").await;
    eventually("the detail names the remedy", PATIENCE, async || {
        let text = relay.get("/readyz").await?.text();
        holds(text.contains("--print-sql"), text)
    })
    .await;
    assert!(text.contains(r#""relay":"away""#), "{text}");
    let _replica = world.serve().await;
    shop.install(&world).await;
    relay.reports(200, r#""relay":"active""#).await;
    relay.kill();
    shop.publish(MERCHANT, "1").await;
    shop.install(&world).await;
    assert_eq!(shop.rows("events").await, Ok(1));
    relay.launch();
    world.expect_stored(MERCHANT, 1).await;
    world.finish().await;
}

/// A world with a replica, and a shop.
async fn open() -> (World, Shop) {
    let world = World::new().await;
    world.serve().await;
    let shop = Shop::open(&world).await;
    (world, shop)
}

async fn publish(connection: &mut PgConnection, recipient: &str, data: &str) {
    sqlx::query("select shopbell_outbox.shopbell_publish($1, 'custom.thing', $2)")
        .bind(recipient)
        .bind(data)
        .execute(connection)
        .await
        .expect("the event is accepted");
}

async fn call_publish(pool: &PgPool, arguments: &str) -> Result<String, String> {
    let query = format!("select shopbell_outbox.shopbell_publish{arguments}");
    let query = sqlx::query_scalar(AssertSqlSafe(query));
    query
        .fetch_one(pool)
        .await
        .map_err(|error| error.to_string())
}

/// The data of a feed, in order.
pub async fn data(world: &World, feed: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(&world.admin_database_url())
        .await
        .expect("a connection");
    sqlx::query_scalar("select data::text from notifications where feed = $1 order by seq")
        .bind(feed)
        .fetch_all(&mut connection)
        .await
        .expect("the database answers")
}

async fn rows<T>(world: &World, query: &'static str) -> Vec<T>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    let mut connection = PgConnection::connect(&world.admin_database_url())
        .await
        .expect("a connection");
    tokio::time::timeout(
        Duration::from_secs(10),
        sqlx::query_as(query).fetch_all(&mut connection),
    )
    .await
    .expect("the database answers in time")
    .expect("the database answers")
}

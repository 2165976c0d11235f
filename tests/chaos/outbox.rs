//! The outbox of a shop while the relays, Postgres and RabbitMQ are killed: each committed order is
//! stored once, in the order of its merchant, and no other.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sqlx::postgres::PgPool;

use crate::it::support::{Relay, Shop, World, eventually, holds};
use crate::services::Services;

/// Merchants.
const MERCHANTS: i64 = 100;
/// Orders that a transaction writes for one merchant.
const TOGETHER: i64 = 10;
/// Connections that write orders.
const WRITERS: usize = 4;
/// Pause of a writer after a failure.
const PAUSE: Duration = Duration::from_millis(300);
/// Bound for the whole story, also with 100,000 orders on a loaded machine of two cores.
const BOUND: Duration = Duration::from_secs(1_800);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_relays_databases_and_brokers_lose_and_repeat_no_order() {
    let orders = std::env::var("SHOPBELL_OUTBOX_ORDERS")
        .ok()
        .map_or(10_000, |orders| {
            orders.parse().expect("SHOPBELL_OUTBOX_ORDERS is a number")
        });
    let services = Services::up().await;
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    let pool = PgPool::connect_lazy(&world.admin_database_url()).expect("a URL");
    let replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let relays = [shop.relay(&world, &[]), shop.relay(&world, &[])];
    relays.iter().for_each(|relay| relay.launch());
    shop.run(&format!(
        "insert into orders select 'merchant-' || m, 0 from generate_series(1, {MERCHANTS}) m"
    ))
    .await;

    let begun = Instant::now();
    let writers = (0..WRITERS).map(|_| tokio::spawn(write(shop.pool.clone(), orders)));
    let (written, [of_relays, of_rabbitmq, of_postgres]) = tokio::join!(
        join_all(writers),
        strike_until(orders, &services, &relays, &pool)
    );
    for writer in written {
        writer.expect("a writer does not panic");
    }
    shop.expect_empty(BOUND).await;
    let took = begun.elapsed();

    let written: Vec<(String, i64)> = sqlx::query_as("select merchant, number from orders")
        .fetch_all(&shop.admin)
        .await
        .expect("the orders can be read");
    let total: i64 = written.iter().map(|(_, number)| number).sum();
    eventually("all orders are stored", BOUND, async || {
        let stored = stored(&pool).await;
        holds(stored >= total, stored)
    })
    .await;
    expect_in_order(&pool, &written).await;
    let repeated = replica.metric("shopbell_events_duplicate_total").await;
    eprintln!(
        "{total} orders in {} s; killed: relays {of_relays}, RabbitMQ {of_rabbitmq}, Postgres {of_postgres}; {repeated} events came twice",
        took.as_secs()
    );
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    assert_eq!(shop.rows("set_aside").await, Ok(0));
    for relay in &relays {
        relay.reports(200, r#""status":"ready""#).await;
        assert!(relay.terminate().await.success());
    }
    world.finish().await;
}

/// Kills relays, RabbitMQ and Postgres in turn until so many orders are stored. Returns the number of kills of each.
async fn strike_until(
    orders: i64,
    services: &Services,
    relays: &[Relay; 2],
    pool: &PgPool,
) -> [u32; 3] {
    let mut kills = [0; 3];
    for strike in 1.. {
        // Between the kills, a quarter to a half of a thousand orders gets through.
        let next = stored(pool).await + fastrand::i64(250..500).min(orders / 20);
        if next >= orders {
            break;
        }
        eventually("orders are stored", BOUND, async || {
            let stored = stored(pool).await;
            holds(stored >= next, stored)
        })
        .await;
        match strike % 12 {
            4 => {
                services.act("kill", "rabbitmq").await;
                services.act("start", "rabbitmq").await;
                kills[1] += 1;
            }
            8 => {
                services.act("kill", "postgres").await;
                services.act("start", "postgres").await;
                kills[2] += 1;
            }
            _ => {
                let relay = &relays[strike % 2];
                relay.kill();
                relay.launch();
                kills[0] += 1;
            }
        }
    }
    kills
}

/// Expects each order of each merchant once, in the order of its number.
async fn expect_in_order(pool: &PgPool, written: &[(String, i64)]) {
    for (merchant, number) in written {
        let data: Vec<String> =
            sqlx::query_scalar("select data from notifications where feed = $1 order by seq")
                .bind(merchant)
                .fetch_all(pool)
                .await
                .expect("the feed can be read");
        let wanted: Vec<String> = (1..=*number).map(|number| number.to_string()).collect();
        assert_eq!(data, wanted, "{merchant}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_keeps_rows_in_the_outbox_and_a_row_that_is_too_large_leaves_it() {
    const MERCHANT: &str = "merchant-42";
    let services = Services::up().await;
    // It holds until RabbitMQ stops.
    let set_size = "application:set_env(rabbit, max_message_size, 100000).";
    services.rabbitmqctl(["eval", set_size]).await;
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    let _replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let relay = shop.relay(&world, &[]);
    shop.publish_many(30, 1).await;
    shop.publish(MERCHANT, &format!("\"{}\"", "x".repeat(100_000)))
        .await;
    shop.publish(MERCHANT, "1").await;
    relay.launch();
    world.expect_stored(MERCHANT, 1).await;
    shop.expect_empty(BOUND).await;
    let reason: String = sqlx::query_scalar("select reason from shopbell_outbox.set_aside")
        .fetch_one(&shop.admin)
        .await
        .expect("one row was set aside");
    assert!(reason.contains("PRECONDITION"), "{reason}");

    services.set_memory_bound("0").await;
    shop.publish(MERCHANT, "2").await;
    relay.reports(200, r#""broker":"blocked""#).await;
    assert_eq!(shop.rows("events").await, Ok(1));
    services.set_memory_bound("0.5").await;
    world.expect_stored(MERCHANT, 2).await;
    relay.reports(200, r#""status":"ready""#).await;
    assert!(relay.terminate().await.success());
    world.finish().await;
}

/// Writes orders until the shop has this number. A transaction locks its merchant, and publishes the
/// numbers of its orders. If its end is unknown, the shop's own table decides.
async fn write(pool: PgPool, orders: i64) {
    let transaction = "with locked as (
            update orders set number = number + $2 where merchant = 'merchant-' || $1 returning merchant, number)
        select (select sum(number)::bigint from orders),
               count(shopbell_outbox.shopbell_publish(merchant, 'custom.thing', n::text))
        from locked, generate_series(locked.number - $2 + 1, locked.number) n";
    loop {
        let query = sqlx::query_as::<_, (i64, i64)>(transaction)
            .bind(fastrand::i64(1..=MERCHANTS))
            .bind(TOGETHER);
        match query.fetch_one(&pool).await {
            Ok((before, _)) if before >= orders => return,
            Ok(_) => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The orders that are stored as notifications; -1 while Postgres is away.
async fn stored(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select coalesce(sum(last_seq), 0)::bigint from feeds")
        .fetch_one(pool)
        .await
        .unwrap_or(-1)
}

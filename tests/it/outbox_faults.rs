//! The relay, Postgres and RabbitMQ fail in every step. Each row is published, in the order of its
//! recipient.

use std::time::Duration;

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

use crate::outbox::data;
use crate::support::{PATIENCE, Proxy, Shop, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Bound for thousands of rows with faults, on a machine of two cores.
const BOUND: Duration = Duration::from_secs(120);

#[tokio::test]
async fn kills_and_broken_connections_lose_repeat_and_reorder_nothing() {
    const MERCHANTS: i64 = 20;
    const ROUNDS: i64 = 250;
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let network = Proxy::before_service(world.publisher_amqp_url()).await;
    let amqp_url = network.url(world.publisher_amqp_url());
    let relay = shop.relay(
        &world,
        &[("AMQP_URL", &amqp_url), ("SHOPBELL_OUTBOX_BATCH", "50")],
    );
    relay.launch();
    for part in 0..5 {
        let values = sqlx::query(
            "select count(shopbell_outbox.shopbell_publish('merchant-' || m, 'custom.thing', n::text))
             from generate_series($2 * $3 + 1, ($2 + 1) * $3) n, generate_series(1, $1) m",
        );
        values
            .bind(MERCHANTS)
            .bind(part)
            .bind(ROUNDS / 5)
            .execute(&shop.pool)
            .await
            .expect("the events are accepted");
        let before = world.stored_in_all().await;
        world.stored_reaches(before + 100, BOUND).await;
        match part {
            0 | 3 => {
                relay.kill();
                relay.launch();
            }
            1 => {
                network.cut();
                network.mend();
            }
            2 => {
                shop.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'shopbell-relay' and datname = current_database()")
                    .await;
            }
            _ => network.forget(),
        }
    }
    shop.expect_empty(BOUND).await;
    let wanted: Vec<String> = (1..=ROUNDS).map(|number| number.to_string()).collect();
    for merchant in (1..=MERCHANTS).map(|number| format!("merchant-{number}")) {
        world.expect_stored(&merchant, ROUNDS as u64).await;
        assert_eq!(data(&world, &merchant).await, wanted, "{merchant}");
    }
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    assert!(relay.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn a_row_is_removed_only_after_its_confirm() {
    let world = World::new().await;
    let _replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let network = Proxy::before_service(world.publisher_amqp_url()).await;
    let amqp_url = network.url(world.publisher_amqp_url());
    let relay = shop.relay(&world, &[("AMQP_URL", &amqp_url)]).start().await;
    shop.publish(MERCHANT, "1").await;
    world.expect_stored(MERCHANT, 1).await;
    shop.expect_empty(PATIENCE).await;
    // The event arrives, and its confirm does not.
    network.stall_downstream();
    shop.publish(MERCHANT, "2").await;
    world.expect_stored(MERCHANT, 2).await;
    assert_eq!(shop.rows("events").await, Ok(1));
    relay.kill();
    network.mend();
    relay.launch();
    shop.expect_empty(PATIENCE).await;
    world.expect_stored(MERCHANT, 2).await;
    assert!(relay.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn a_row_that_rabbitmq_nacks_is_not_overtaken() {
    const ROWS: usize = 60;
    let world = World::new().await;
    let shop = Shop::open(&world).await;
    let channel = full_queue(&world).await;
    let queue = world.name("ingest");
    let insert = "select count(shopbell_outbox.shopbell_publish('merchant-42', 'custom.thing', n::text)) from generate_series(1, $1) n";
    sqlx::query(insert)
        .bind(ROWS as i64)
        .execute(&shop.pool)
        .await
        .expect("the events are accepted");
    let relay = shop.relay(&world, &[]).start().await;
    let mut first = Vec::new();
    eventually("all rows arrive", BOUND, async || {
        while let Some(message) = channel
            .basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true })
            .await
            .map_err(|error| error.to_string())?
        {
            let event: serde_json::Value = serde_json::from_slice(&message.delivery.data)
                .map_err(|error| error.to_string())?;
            let number = event["data"].as_u64().ok_or("no number")?;
            if !first.contains(&number) {
                first.push(number);
            }
        }
        holds(
            first.len() == ROWS,
            format!("{}\n{}", first.len(), relay.log()),
        )
    })
    .await;
    let in_order: Vec<u64> = (1..=ROWS as u64).collect();
    assert_eq!(first, in_order);
    let nacked = relay.metric("shopbell_relay_failures_total").await;
    assert!(nacked > Ok(0.0), "RabbitMQ nacked nothing: {nacked:?}");
    shop.expect_empty(PATIENCE).await;
    assert!(relay.terminate().await.success());
}

/// The exchange of publishers, with a queue that nacks as soon as it holds a few messages.
async fn full_queue(world: &World) -> Channel {
    let connection = Connection::connect(world.broker_url(), ConnectionProperties::default());
    let connection = connection.await.expect("RabbitMQ can be reached");
    let channel = connection.create_channel().await.expect("a channel");
    let (exchange, queue) = (world.name("events"), world.name("ingest"));
    channel
        .exchange_declare(
            exchange.as_str().into(),
            ExchangeKind::Topic,
            ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await
        .expect("an exchange");
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(3));
    arguments.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    channel
        .queue_declare(
            queue.as_str().into(),
            QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            },
            arguments,
        )
        .await
        .expect("a queue");
    channel
        .queue_bind(
            queue.as_str().into(),
            exchange.as_str().into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("a binding");
    channel
}

#[tokio::test]
async fn a_second_relay_takes_over() {
    let world = World::new().await;
    let _replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let first = shop.relay(&world, &[]).start().await;
    let second = shop.relay(&world, &[]);
    second.launch();
    second.reports(200, r#""relay":"standby""#).await;
    shop.publish(MERCHANT, "1").await;
    world.expect_stored(MERCHANT, 1).await;
    assert_eq!(
        second.metric("shopbell_relay_published_total").await,
        Ok(0.0)
    );

    first.kill();
    second.reports(200, r#""relay":"active""#).await;
    shop.publish(MERCHANT, "2").await;
    world.expect_stored(MERCHANT, 2).await;
    first.launch();
    first.reports(200, r#""relay":"standby""#).await;
    // One that hangs keeps its connection, so nobody takes over, and it goes on when it wakes.
    second.signal("STOP");
    shop.publish(MERCHANT, "3").await;
    second.signal("CONT");
    world.expect_stored(MERCHANT, 3).await;
    assert!(second.terminate().await.success());
    first.reports(200, r#""relay":"active""#).await;
    shop.publish(MERCHANT, "4").await;
    world.expect_stored(MERCHANT, 4).await;
    assert!(first.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn a_row_that_can_never_be_published_is_set_aside() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::open(&world).await;
    // Rows that `shopbell_publish` refuses.
    shop.run(
        "insert into shopbell_outbox.events (recipient, type, event_id, source, time, data)
         values ('merchant-42', 'custom.thing', 'large', '/shop', now(), to_json(repeat('x', 16777216))),
                ('merchant-42', repeat('t', 256), 'long', '/shop', now(), '1')",
    )
    .await;
    shop.publish(MERCHANT, "1").await;
    shop.publish("another", "1").await;
    let relay = shop.relay(&world, &[]).start().await;
    world.expect_stored(MERCHANT, 1).await;
    world.expect_stored("another", 1).await;
    shop.expect_empty(PATIENCE).await;
    let reasons: Vec<(String, String)> =
        sqlx::query_as("select event_id, reason from shopbell_outbox.set_aside order by id")
            .fetch_all(&shop.admin)
            .await
            .expect("the rows that were set aside");
    let [(large, too_large), (long, too_long)] = &reasons[..] else {
        panic!("{reasons:?}");
    };
    assert!(
        large == "large" && too_large.contains("16777218 bytes"),
        "{too_large}"
    );
    assert!(
        long == "long" && too_long.contains("AMQP allows 255"),
        "{too_long}"
    );
    relay.metric_reaches("shopbell_outbox_set_aside", 2.0).await;
    // An operator mends one.
    shop.run(
        "update shopbell_outbox.set_aside set type = 'custom.thing' where event_id = 'long';
         select shopbell_outbox.try_again(array(select id from shopbell_outbox.set_aside where event_id = 'long'))",
    )
    .await;
    world.expect_stored(MERCHANT, 2).await;
    assert_eq!(shop.rows("set_aside").await, Ok(1));
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    assert!(relay.terminate().await.success());
    world.finish().await;
}

#[tokio::test]
async fn the_lag_is_measured_while_rabbitmq_is_away() {
    let world = World::new().await;
    let _replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let network = Proxy::before_service(world.publisher_amqp_url()).await;
    let amqp_url = network.url(world.publisher_amqp_url());
    let relay = shop.relay(&world, &[("AMQP_URL", &amqp_url)]).start().await;
    relay.metric_reaches("shopbell_relay_active", 1.0).await;
    network.cut();
    shop.publish_many(3, 4).await;
    shop.run("update shopbell_outbox.events set created_at = created_at - interval '1 hour' where id = (select min(id) from shopbell_outbox.events)")
        .await;
    relay.metric_reaches("shopbell_outbox_rows", 12.0).await;
    relay
        .metric_reaches("shopbell_outbox_oldest_age_seconds", 3_600.0)
        .await;
    relay.reports(200, r#""broker":"away""#).await;
    network.mend();
    shop.expect_empty(PATIENCE).await;
    relay.reports(200, r#""broker":"ok""#).await;
    eventually("nothing waits", PATIENCE, async || {
        let rows = relay.metric("shopbell_outbox_rows").await?;
        let age = relay.metric("shopbell_outbox_oldest_age_seconds").await?;
        holds(rows == 0.0 && age == 0.0, format!("{rows} rows, {age} s"))
    })
    .await;
    world.stored_reaches(12, PATIENCE).await;
    assert!(relay.terminate().await.success());
    world.finish().await;
}

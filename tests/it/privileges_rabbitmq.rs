//! The users of RabbitMQ can do their work and nothing more. All other stories run with the same
//! users.

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

use crate::support::{Event, PATIENCE, Publisher, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

/// Held by the stories of the users of RabbitMQ, which share a virtual host.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

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
async fn a_publisher_needs_no_more_than_the_way_of_its_events() {
    let world = World::new().await;
    world.shopbell(&["declare"]).await.succeeded();
    let broker = world.broker().await;
    // RabbitMQ 4.3 refuses to verify it for a user that may not read it.
    broker.delete_exchange(&world.name("receipts")).await;
    let settings = [
        ("AMQP_URL", world.publisher_amqp_url()),
        ("SHOPBELL_AMQP_DECLARE", "false"),
    ];
    let publish = ["publish", "--recipient", MERCHANT];
    world.shopbell_with(&settings, &publish).await.succeeded();
    broker.delete_exchange(&world.name("events")).await;
    let refused = world
        .shopbell_with(&settings, &publish)
        .await
        .failed_with(1);
    let names = ["NOT_FOUND", &world.name("events")];
    assert!(
        names.iter().all(|name| refused.stderr.contains(name)),
        "{refused:?}"
    );

    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=1).await;
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
        (
            "publisher",
            &publisher,
            vec!["publish shopbell.events", "publish shopbell.entry"],
        ),
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
const ACTS: [&str; 16] = [
    "publish shopbell.events",
    "publish shopbell.entry",
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
const ACTS_OF_THE_SERVICE: [&str; 7] = [
    "publish shopbell.events",
    "publish shopbell.dead-letter",
    "publish shopbell.fanout",
    "publish shopbell.receipts",
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

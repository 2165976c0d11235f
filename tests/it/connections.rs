//! Shopbell closes each of its connections to RabbitMQ after use, also if RabbitMQ does not
//! respond.

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::{Event, PATIENCE, Tap, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_graceful_stop_closes_every_connection_to_rabbitmq() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let url = tap.url(world.amqp_url());
    let replica = world
        .replica()
        .with("AMQP_URL", &url)
        .with("SHOPBELL_CANARY_SECONDS", 1)
        .start()
        .await;
    let other = world
        .replica()
        .with("AMQP_URL", &url)
        .with("SHOPBELL_CANARY_SECONDS", 0)
        .start()
        .await;
    // All parts that connect on demand are connected now.
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 1))
        .await;
    merchant.take_seqs(1..=1).await;
    merchant.handle(MERCHANT, &[1]).await;
    replica.metric_reaches("shopbell_broker_up", 1).await;
    replica
        .metric_reaches("shopbell_canary_runs_total", 1)
        .await;
    merchant.leave().await;

    assert!(replica.terminate().await.success());
    assert!(other.terminate().await.success());
    eventually("every connection ends", PATIENCE, async || {
        holds(tap.alive() == 0, tap.alive())
    })
    .await;
    assert_eq!(tap.torn(), 0, "of {} connections", tap.opened());
    world.finish().await;
}

#[tokio::test]
async fn commands_close_every_connection_to_rabbitmq() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let settings = [("AMQP_URL", tap.url(world.amqp_url()))];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    for command in [
        &["declare"][..],
        &["publish", "--recipient", MERCHANT, "--count", "3"],
        &["dead-letters", "list"],
        &["doctor", "--output", "json"],
    ] {
        let before = tap.opened();
        world.shopbell_with(&settings, command).await;
        assert!(tap.opened() > before, "{command:?} connects");
        eventually("every connection ends", PATIENCE, async || {
            holds(tap.alive() == 0, tap.alive())
        })
        .await;
        assert_eq!(tap.torn(), 0, "{command:?}");
    }
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=3).await;
    world.finish().await;
}

#[tokio::test]
async fn unanswered_handshakes_leave_no_thread_and_no_socket() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    let replica = world
        .replica()
        .with("AMQP_URL", tap.url(world.amqp_url()))
        .start()
        .await;

    tap.silence();
    // Several parts connect again and again, and each attempt ends after some seconds.
    const ATTEMPTS: usize = 8;
    eventually(
        "unanswered connections are given up",
        2 * PATIENCE,
        async || {
            let (all, given_up) = tap.unanswered();
            holds(given_up >= ATTEMPTS, format!("{given_up} of {all}"))
        },
    )
    .await;
    eventually(
        "only open connections have a thread",
        PATIENCE,
        async || {
            let (threads, alive) = (replica.threads("lapin-io-loop"), tap.alive());
            holds(
                threads <= alive,
                format!("{threads} threads of {alive} connections"),
            )
        },
    )
    .await;
    replica.terminate().await;
    world.finish().await;
}

#[tokio::test]
async fn an_ipv6_address_in_the_url_is_connected_to() {
    let world = World::new().await;
    let listener = TcpListener::bind("[::1]:0")
        .await
        .expect("this machine has IPv6 on its loopback");
    let url = format!(
        "amqp://shop:s3cr3t@{}/%2f",
        listener.local_addr().expect("a listener has an address")
    );
    let accept = async {
        let (mut client, _) = listener.accept().await.expect("a client connects");
        let mut greeting = [0; 8];
        client
            .read_exact(&mut greeting)
            .await
            .expect("a client speaks first");
        greeting
    };
    let settings = [("AMQP_URL", url.as_str())];
    let (done, greeting) = tokio::join!(
        world.shopbell_with(&settings, &["declare"]),
        timeout(PATIENCE, accept)
    );
    assert_eq!(
        &greeting.expect("the address of the URL is connected to"),
        b"AMQP\0\0\x09\x01"
    );
    done.failed_with(1);
    world.finish().await;
}

#[tokio::test]
async fn a_publish_in_an_alarm_fails_in_time() {
    let world = World::new().await;
    let tap = Tap::before(world.amqp_url()).await;
    tap.alarm();
    let url = tap.url(world.amqp_url());
    let done = world
        .shopbell_with(&[("AMQP_URL", &url)], &["publish", "--recipient", MERCHANT])
        .await
        .failed_with(1);
    assert!(done.stderr.contains("alarm"), "{done:?}");
    assert_eq!(tap.blocked(), 1);
    world.finish().await;
}

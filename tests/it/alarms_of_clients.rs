//! Alerts about clients. Each test causes a fault, as in `alarms`.

use tokio::net::TcpStream;

use crate::support::{Event, Monitor, World};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn clients_that_do_not_acknowledge() {
    let world = World::new().await;
    let replica = world.replica().with("SHOPBELL_WINDOW", 4).start().await;
    let publisher = world.publisher().await;
    let mut merchants = Vec::new();
    for number in 0..4 {
        let name = format!("merchant-{number}");
        let mut merchant = world.merchant(&name).connect(replica.public()).await;
        merchant.expect_caught_up(&name).await;
        merchants.push((name, merchant));
    }
    let monitor = [
        Monitor::of(&world, [&replica]).await,
        Monitor::of(&world, [&replica]).await,
    ];
    for (name, merchant) in &mut merchants {
        publisher.publish_all(Event::orders(name, 6)).await;
        merchant.expect_seqs(1..=4).await;
    }
    replica.metric_reaches("shopbell_sessions_behind", 4).await;
    // The series continue like this for a while.
    world
        .execute("update notifications set created_at = now() - interval '3 minutes'")
        .await;
    replica
        .metric_reaches("shopbell_oldest_undelivered_age_seconds", 180)
        .await;
    assert_eq!(
        replica.metric("shopbell_undelivered_notifications").await,
        24
    );
    assert_eq!(replica.metric("shopbell_late_feeds").await, 4);
    let [slow, late] = monitor;
    slow.expect_alert("ShopbellSlowClients", "ticket").await;
    late.expect_alert("ShopbellOrdersLate", "page").await;

    for (name, merchant) in &mut merchants {
        merchant.ack(name, 4).await;
        merchant.expect_seqs(5..=6).await;
        merchant.ack(name, 6).await;
    }
    replica.metric_is("shopbell_sessions_behind", "", 0).await;
    replica
        .metric_is("shopbell_undelivered_notifications", "", 0)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn merchants_whose_tokens_are_refused() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let stranger = world
        .merchant(MERCHANT)
        .token(world.token(MERCHANT).sign_with_a_foreign_secret());
    for _ in 0..25 {
        stranger.refused(replica.public()).await.expect_problem(401);
    }
    assert_eq!(
        replica
            .metric_where("shopbell_handshakes_refused_total", "token")
            .await,
        25
    );
    monitor
        .expect_alert("ShopbellHandshakesRefused", "page")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_replica_that_is_crowded_by_half_sent_requests() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let mut half_sent = Vec::new();
    while replica
        .metric_where("shopbell_connections_dropped_total", "crowded")
        .await
        <= 150
    {
        for _ in 0..100 {
            half_sent.push(
                TcpStream::connect(replica.public())
                    .await
                    .expect("the replica listens"),
            );
        }
    }
    monitor
        .expect_alert("ShopbellConnectionsCrowded", "ticket")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_replica_that_is_nearly_full() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS", 2)
        .start()
        .await;
    let monitor = Monitor::of(&world, [&replica]).await;
    let _one = world.merchant("merchant-1").connect(replica.public()).await;
    let _other = world.merchant("merchant-2").connect(replica.public()).await;
    world
        .merchant("merchant-3")
        .refused(replica.public())
        .await
        .expect_problem(429);
    assert_eq!(
        replica
            .metric_where("shopbell_handshakes_refused_total", "too_many")
            .await,
        1
    );
    monitor
        .expect_alert("ShopbellSessionsNearLimit", "ticket")
        .await;
    world.finish().await;
}

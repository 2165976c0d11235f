//! A replica that leaves announces it, closes its sessions step by step, and loses nothing.

use std::collections::BTreeSet;

use crate::support::{Closed, Event, PATIENCE, World, eventually};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_leaving_replica_sends_goaway_closes_with_1012_and_keeps_every_ack() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_DRAIN_SECONDS", 1)
        .start()
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 20))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=13).await;
    merchant.ping().await;

    replica.ask_to_leave();
    let goaway = merchant.next_goaway().await;
    let closed = merchant.closed().await;
    assert_eq!(
        (closed.code, closed.word.as_deref()),
        (1012, Some("going_away"))
    );
    assert_eq!(closed.retry_after_ms, Some(goaway.retry_after_ms));
    assert!(replica.ended().await.success());

    replica.restart().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(14..=20).await;
    world.finish().await;
}

#[tokio::test]
async fn a_leaving_replica_spreads_its_closes_is_not_ready_and_takes_nobody_in() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_DRAIN_SECONDS", 4)
        .start()
        .await;
    let mut merchants = Vec::new();
    for number in 0..24 {
        merchants.push(
            world
                .merchant(&format!("merchant-{number}"))
                .connect(replica.public())
                .await,
        );
    }

    replica.ask_to_leave();
    let refusal = eventually("newcomers are refused", PATIENCE, async || {
        let newcomer = world.merchant(MERCHANT);
        match newcomer.try_connect(replica.public()).await {
            Ok(_) => Err("let in".to_owned()),
            Err(_) => Ok(newcomer.refused(replica.public()).await),
        }
    })
    .await;
    refusal.expect_problem(503);
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    assert_eq!(replica.get("/readyz").await.status, 503);
    assert_eq!(replica.get("/livez").await.status, 200, "it still turns");
    let left = replica.metric("shopbell_sessions").await;
    assert!(left > 0, "all were closed at once");

    let mut waits = BTreeSet::new();
    for mut merchant in merchants {
        waits.insert(merchant.next_goaway().await.retry_after_ms);
        assert_eq!(merchant.closed().await.code, 1012);
    }
    assert!(
        waits.len() > 12,
        "clients are asked to reconnect at the same moments: {waits:?}"
    );
    assert!(replica.ended().await.success());
    world.finish().await;
}

#[tokio::test]
async fn events_arrive_once_and_in_order_while_replicas_come_and_go() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let orders = Event::orders(MERCHANT, 2_000);
    let come_and_go = async {
        for stored in [400, 1_200] {
            world.stored_reaches(stored, PATIENCE).await;
            assert!(replica.terminate().await.success());
            replica.restart().await;
        }
    };
    tokio::join!(publisher.publish_all(&orders), come_and_go);

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=2_000).await;
    for (notification, order) in arrived.iter().zip(&orders) {
        assert_eq!(
            notification.id,
            order.event_id(),
            "at seq {}",
            notification.seq
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn an_interrupt_stops_a_replica_like_a_termination() {
    let world = World::new().await;
    let replica = world.serve().await;
    let merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    replica.interrupt();
    assert!(matches!(merchant.closed().await, Closed { code: 1012, .. }));
    assert!(replica.ended().await.success());
    world.finish().await;
}

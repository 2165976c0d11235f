//! Marks while a part fails, and marks of many at once: every session receives the same.

use std::collections::BTreeMap;

use crate::support::{Event, Frame, Merchant, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_replica_without_hints_finds_marks_in_the_database() {
    let world = World::new().await;
    let near = world.serve().await;
    let (proxy, far) = world.replica().start_behind_broker_proxy().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 2))
        .await;
    let mut here = world
        .merchant(MERCHANT)
        .device("here")
        .connect(near.public())
        .await;
    let mut there = world
        .merchant(MERCHANT)
        .device("there")
        .connect(far.public())
        .await;
    for device in [&mut here, &mut there] {
        device.take_seqs(1..=2).await;
    }
    proxy.stall();
    here.handle(MERCHANT, &[2]).await;
    assert_eq!(
        there.next_state().await.seqs,
        Some(vec![2]),
        "the sweep finds the mark"
    );
    there.handle(MERCHANT, &[1]).await;
    let state = there.next_state().await;
    assert_eq!(
        (state.seqs, state.version, state.unhandled),
        (Some(vec![1]), Some(2), 0),
        "no hint is needed on its own replica"
    );
    assert_eq!(here.next_state().await.version, Some(1));
    assert_eq!(here.next_state().await.seqs, Some(vec![1]));
    proxy.mend();
    world.finish().await;
}

#[tokio::test]
async fn marks_sent_while_postgres_is_away_are_stored_later() {
    let world = World::new().await;
    let (proxy, replica) = world.replica().start_behind_database_proxy().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 2))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=2).await;

    proxy.cut();
    merchant.handle(MERCHANT, &[1]).await;
    eventually("storing the mark is retried", PATIENCE, async || {
        let retries = replica.metric_where("shopbell_retries_total", r#"part="answers""#);
        let retries = retries.await;
        holds(retries > 0, retries)
    })
    .await;
    proxy.mend();
    assert_eq!(merchant.next_state().await.seqs, Some(vec![1]));
    proxy.cut();
    merchant.handle(MERCHANT, &[2]).await;
    let refused = merchant.next_error().await;
    assert_eq!(
        (refused.code.as_str(), refused.feed.as_deref()),
        ("not_taken", Some(MERCHANT)),
        "Postgres was away too long"
    );
    proxy.mend();
    merchant.handle(MERCHANT, &[2]).await;
    assert_eq!(merchant.next_state().await.seqs, Some(vec![2]));
    world.finish().await;
}

#[tokio::test]
async fn a_stored_mark_reaches_all_sessions_after_its_replica_was_killed() {
    let world = World::new().await;
    let (first, second) = (world.serve().await, world.serve().await);
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 30))
        .await;
    let mut watcher = world
        .merchant(MERCHANT)
        .device("watcher")
        .connect(second.public())
        .await;
    watcher.take_seqs(1..=30).await;
    world.expect_cursor(MERCHANT, "watcher", 30).await;
    // A new device starts at its subscriber's place. Here, that is the place of the watcher.
    let mut busy = world
        .merchant(MERCHANT)
        .device("busy")
        .after(MERCHANT, 0)
        .connect(first.public())
        .await;
    busy.take_seqs(1..=30).await;
    for seq in 1..=30 {
        busy.handle(MERCHANT, &[seq]).await;
    }
    busy.next_state().await;
    first.kill();
    // The watcher receives each stored mark by a hint or by the sweep, so its state equals the
    // database.
    eventually(
        "the watcher has received every stored mark",
        PATIENCE,
        async || {
            watcher.read(MERCHANT, &[]).await;
            let (mut stored, mut replied) = (None, false);
            while !replied {
                let state = watcher.next_state().await;
                replied = state.version.is_none();
                stored = Some(state.unhandled);
            }
            let (_, unhandled) = world.unmarked(MERCHANT).await;
            holds(
                stored == Some(unhandled) && watcher.version(MERCHANT) == 30 - unhandled,
                unhandled,
            )
        },
    )
    .await;
    world.finish().await;
}

#[tokio::test]
async fn concurrent_marks_look_the_same_to_every_session() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 60)).await;
    world.expect_stored(MERCHANT, 60).await;
    let mut people = Vec::new();
    for number in 0..4 {
        let who = format!("person-{number}");
        let token = world.token(&who).feeds([MERCHANT]).sign();
        let handshake = world.merchant(&who).token(token).after(MERCHANT, 60);
        people.push(handshake.connect(replicas[number % 2].public()).await);
    }
    // All of them handle every order, each in another order. One of them also marks all as read.
    for step in 0..60_u64 {
        for (number, person) in (0..).zip(&mut people) {
            person
                .handle(MERCHANT, &[1 + (step * 7 + number * 13) % 60])
                .await;
        }
        if step % 20 == 0 {
            people[0].read_through(MERCHANT, 20 + step).await;
            publisher.publish_all(Event::orders(MERCHANT, 5)).await;
        }
    }
    let mut received: Vec<BTreeMap<u64, String>> = Vec::new();
    for person in &mut people {
        received.push(handlers(person, 60).await);
    }
    assert!(
        received.windows(2).all(|pair| pair[0] == pair[1]),
        "{received:?}"
    );
    // Its replica may be the slower one: if the reply to its next mark arrives, its earlier mark is
    // stored.
    people[0].read(MERCHANT, &[]).await;
    while people[0]
        .next_state()
        .await
        .seqs
        .is_none_or(|seqs| !seqs.is_empty())
    {}
    world.expect_stored(MERCHANT, 75).await;
    assert_eq!(world.unmarked(MERCHANT).await, (15, 15));
    world.finish().await;
}

/// Reads frames until `count` notifications are handled.
async fn handlers(person: &mut Merchant, count: usize) -> BTreeMap<u64, String> {
    let mut handlers = BTreeMap::new();
    while handlers.len() < count {
        if let Frame::State(state) = person.next_frame().await.expect("the session goes on")
            && let (Some(by), Some(_)) = (&state.handled_by, state.version)
        {
            for seq in state.seqs.into_iter().flatten() {
                assert_eq!(
                    handlers.insert(seq, by.clone()),
                    None,
                    "{seq} became handled twice"
                );
            }
        }
    }
    handlers
}

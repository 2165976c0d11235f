//! A mark (read or handled) applies to all devices, and is stored exactly once.

use std::time::{Duration, Instant};

use crate::support::{Event, World};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn handling_an_order_reaches_every_device_on_every_replica() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    let mut phone = world
        .merchant(MERCHANT)
        .device("phone")
        .connect(replicas[0].public())
        .await;
    let mut till = world
        .merchant(MERCHANT)
        .device("till")
        .connect(replicas[1].public())
        .await;
    for device in [&mut phone, &mut till] {
        device.take_seqs(1..=3).await;
    }

    let asked = Instant::now();
    phone.handle(MERCHANT, &[2]).await;
    for device in [&mut phone, &mut till] {
        let state = device.next_state().await;
        assert_eq!(
            (state.seqs, state.through, state.version),
            (Some(vec![2]), None, Some(1))
        );
        assert_eq!(
            (state.handled_by.as_deref(), state.read_at),
            (Some(MERCHANT), None)
        );
        assert!(state.handled_at.is_some());
        assert_eq!(
            (state.unread, state.unhandled, state.last),
            (3, 2, 3),
            "handled is not read"
        );
    }
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );

    till.read(MERCHANT, &[1, 2]).await;
    let state = phone.next_state().await;
    assert_eq!(
        (state.seqs, state.unread, state.unhandled, state.version),
        (Some(vec![1, 2]), 1, 2, Some(2))
    );
    assert!(state.read_at.is_some() && state.handled_at.is_none());
    assert_eq!(world.unmarked(MERCHANT).await, (1, 2));
    world.finish().await;
}

#[tokio::test]
async fn the_first_handle_wins_and_every_session_receives_it() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 2))
        .await;
    world.expect_stored(MERCHANT, 2).await;
    let of = |who: &str| {
        world
            .merchant(who)
            .token(world.token(who).feeds([MERCHANT]).sign())
    };
    let (anna, bert) = (of("anna"), of("bert"));
    let mut anna = anna.connect(replica.public()).await;
    let mut bert = bert.connect(replica.public()).await;
    anna.handle(MERCHANT, &[1]).await;
    assert_eq!(bert.next_state().await.handled_by.as_deref(), Some("anna"));

    bert.handle(MERCHANT, &[1, 2]).await;
    let mut states = [bert.next_state().await, bert.next_state().await];
    states.sort_by_key(|state| state.seqs.clone());
    assert_eq!(
        (states[0].seqs.as_deref(), states[0].handled_by.as_deref()),
        (Some(&[1][..]), Some("anna"))
    );
    assert_eq!(
        states[0].version, None,
        "nothing changed, so only the sender gets a reply"
    );
    assert_eq!(
        (states[1].seqs.as_deref(), states[1].handled_by.as_deref()),
        (Some(&[2][..]), Some("bert"))
    );

    assert_eq!(anna.next_state().await.version, Some(1));
    let state = anna.next_state().await;
    assert_eq!(
        (state.version, state.seqs, state.unhandled),
        (Some(2), Some(vec![2]), 0)
    );
    world.finish().await;
}

#[tokio::test]
async fn a_device_receives_the_marks_made_while_it_was_away() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 5))
        .await;
    let (phone, till) = (
        world.merchant(MERCHANT).device("phone"),
        world.merchant(MERCHANT).device("till"),
    );
    let mut at_the_till = till.connect(replica.public()).await;
    let mut on_the_phone = phone.connect(replica.public()).await;
    for device in [&mut at_the_till, &mut on_the_phone] {
        device.take_seqs(1..=5).await;
    }
    at_the_till.handle(MERCHANT, &[1]).await;
    assert_eq!(on_the_phone.next_state().await.version, Some(1));
    on_the_phone.vanish();
    for seq in 2..=4 {
        at_the_till.handle(MERCHANT, &[seq]).await;
        at_the_till.next_state().await;
    }
    at_the_till.read_through(MERCHANT, 4).await;
    while at_the_till.version(MERCHANT) < 5 {
        at_the_till.next_state().await;
    }

    let mut on_the_phone = phone.state(MERCHANT, 1).connect(replica.public()).await;
    for (version, seq) in [(2, 2), (3, 3), (4, 4)] {
        let state = on_the_phone.next_state().await;
        assert_eq!(
            (state.version, state.seqs),
            (Some(version), Some(vec![seq]))
        );
    }
    let state = on_the_phone.next_state().await;
    assert_eq!(
        (state.version, state.through, state.unread, state.unhandled),
        (Some(5), Some(4), 1, 1)
    );
    let feed = on_the_phone
        .welcome()
        .feeds
        .iter()
        .find(|feed| feed.feed == MERCHANT)
        .expect("its feed");
    assert_eq!((feed.unread, feed.unhandled, feed.version), (1, 1, 5));
    world.finish().await;
}

#[tokio::test]
async fn read_all_works_in_steps_while_orders_arrive() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 2_500)).await;
    world.expect_stored(MERCHANT, 2_500).await;
    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 2_500)
        .connect(replica.public())
        .await;
    merchant.read(MERCHANT, &[700]).await;
    assert_eq!(merchant.next_state().await.unread, 2_499);

    merchant.read_through(MERCHANT, 2_400).await;
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    let mut throughs = Vec::new();
    while throughs.last() != Some(&2_400) {
        let state = merchant.next_state().await;
        let through = state.through.expect("all up to a number");
        assert_eq!(
            state.unread,
            state.last - through,
            "the counts include only notifications stored before"
        );
        throughs.push(through);
    }
    assert_eq!(
        throughs,
        [1_000, 2_000, 2_400],
        "ingest can write to the feed between the steps"
    );
    world.expect_stored(MERCHANT, 2_520).await;

    merchant.read_through(MERCHANT, 2_400).await;
    let state = merchant.next_state().await;
    assert_eq!(
        (state.version, state.through, state.unread),
        (None, Some(2_400), 120),
        "it was handled before"
    );
    for version in [Some(5), None] {
        merchant.read_through(MERCHANT, 9_999).await;
        let state = merchant.next_state().await;
        assert_eq!(
            (state.through, state.unread, state.version),
            (Some(2_520), 0, version),
            "up to the last notification"
        );
        assert!(state.read_at.is_some());
    }
    merchant.read(MERCHANT, &[]).await;
    let state = merchant.next_state().await;
    assert_eq!(
        (state.seqs, state.unread, state.unhandled, state.version),
        (Some(vec![]), 0, 2_520, None),
        "the counts"
    );
    world.finish().await;
}

#[tokio::test]
async fn invalid_marks_are_refused_with_a_reason_and_the_session_continues() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    publisher.publish(&Event::new("notice", "all", "1")).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    for _ in 0..2 {
        merchant.next_notification().await;
    }
    let shared: Vec<_> = merchant
        .welcome()
        .feeds
        .iter()
        .map(|feed| (feed.feed.clone(), feed.shared))
        .collect();
    assert_eq!(shared, [("all".into(), true), (MERCHANT.into(), false)]);

    merchant.handle("all", &[1]).await;
    let refused = merchant.next_error().await;
    assert_eq!(
        (refused.code.as_str(), refused.feed.as_deref()),
        ("read_only", Some("all"))
    );
    merchant.read("merchant-43", &[1]).await;
    assert_eq!(merchant.next_error().await.code, "unknown_feed");
    merchant.handle(MERCHANT, &[1, 7, 9]).await;
    assert_eq!(
        merchant.next_state().await.seqs,
        Some(vec![1]),
        "the existing one is handled"
    );
    let refused = merchant.next_error().await;
    assert_eq!(
        (refused.code.as_str(), refused.feed.as_deref()),
        ("unknown_seq", Some(MERCHANT))
    );
    assert!(
        refused.message.ends_with("no notification 7, 9"),
        "{}",
        refused.message
    );
    merchant.read(MERCHANT, &[1; 257]).await;
    assert_eq!(merchant.next_error().await.code, "too_many_seqs");

    merchant.read_through(MERCHANT, 0).await;
    let state = merchant.next_state().await;
    assert!(
        state.through == Some(0) && state.read_at.is_some(),
        "each request has a reply: {state:?}"
    );
    let newcomer = world.token("newcomer").feeds(["merchant-44"]).sign();
    let mut newcomer = world
        .merchant("newcomer")
        .token(newcomer)
        .connect(replica.public())
        .await;
    newcomer.read_through("merchant-44", 77).await;
    let state = newcomer.next_state().await;
    assert!(
        state.through == Some(0) && state.read_at.is_some(),
        "an empty feed has a reply too: {state:?}"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_token_with_the_right_marks_the_broadcast_feed() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::new("notice", "all", "1")).await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.next_notification().await;
    let token = world.token("owner").feeds(["all"]).broadcast().sign();
    let mut owner = world
        .merchant("owner")
        .token(token)
        .connect(replica.public())
        .await;
    owner.read("all", &[1]).await;
    assert_eq!(
        owner.next_state().await.unread,
        0,
        "a token with the right may mark it"
    );
    assert_eq!(
        merchant.next_state().await.feed,
        "all",
        "all sessions receive it"
    );
    owner.show(&world.token("owner").feeds([MERCHANT])).await;
    assert_eq!(
        owner.next_error().await.code,
        "token_refused",
        "a right is not kept by a token that no longer gives it"
    );
    world.finish().await;
}

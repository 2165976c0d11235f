//! Acks are written for many numbers together, and at once if a client leaves.

use std::time::Duration;

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
const OTHER: &str = "merchant-43";
/// Every write of acks takes a tenth of a second here, so the writer rests for its longest pause.
const NOTE_EVERY_WRITE: &str = "
    create table writes (at timestamptz);
    create function note_write() returns trigger language plpgsql as $$
    begin
        insert into writes values (clock_timestamp());
        perform pg_sleep(0.1);
        return null;
    end $$;
    create trigger note_write after update on cursors for each statement execute function note_write()";
/// The row of a feed follows the acks of its subscribers so much later.
const RAISE_AFTER: Duration = Duration::from_secs(20);
const HIGHEST: &str = "select sum(acked_seq)::bigint from feeds";
const NOT_RAISED: &str = "select count(*) from feeds where feed like 'quiet-%' and acked_seq = 0";
const SECONDS_SINCE_THE_ACKS: &str =
    "select extract(epoch from now() - max(updated_at))::bigint from cursors
    where feed like 'quiet-%'";
const WRITES: &str = "select count(*) from writes";
const SHORTEST_PAUSE_MS: &str = "select coalesce(1000 * extract(epoch from min(pause)), 0)::bigint
    from (select at - lag(at) over (order by at) as pause from writes) pauses";

#[tokio::test]
async fn acks_of_a_busy_client_are_written_together() {
    let world = World::new().await;
    let replica = world.serve().await;
    world.change_database(NOTE_EVERY_WRITE).await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let mut acked = 0;
    while world.number(WRITES).await < 3 {
        acked += 1;
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(acked..=acked).await;
    }
    let pause = world.number(SHORTEST_PAUSE_MS).await;
    assert!(
        pause >= 1_000,
        "{acked} acks, written again after {pause} ms"
    );
    world.expect_cursor(MERCHANT, "", acked).await;
    world.finish().await;
}

#[tokio::test]
async fn a_locked_cursor_does_not_stop_the_acks_of_other_feeds() {
    let world = World::new().await;
    let replica = world.serve().await;
    for merchant in [MERCHANT, OTHER] {
        world
            .publisher()
            .await
            .publish_all(Event::orders(merchant, 3))
            .await;
        world.expect_stored(merchant, 3).await;
    }
    let mut first = world.merchant(MERCHANT).connect(replica.public()).await;
    let mut other = world.merchant(OTHER).connect(replica.public()).await;

    let locked = world
        .lock("select from cursors where feed = 'merchant-42' for update")
        .await;
    first.take_seqs(1..=3).await;
    eventually("the ack of the locked cursor fails", PATIENCE, async || {
        let retries = replica
            .metric_where("shopbell_retries_total", r#"part="acks""#)
            .await;
        holds(retries > 0, retries)
    })
    .await;
    for seq in 1..=3 {
        other.take_seqs(seq..=seq).await;
        world.expect_cursor(OTHER, "", seq).await;
    }
    first.leave().await;
    let first = world.merchant(MERCHANT).connect(replica.public()).await;
    let feed = first
        .welcome()
        .feeds
        .iter()
        .find(|state| state.feed == MERCHANT)
        .expect("the feed is in the welcome");
    assert_eq!(
        feed.cursor, 3,
        "a new session uses the ack that is not written yet"
    );
    world.expect_cursor(MERCHANT, "", 0).await;
    drop(locked);
    world.expect_cursor(MERCHANT, "", 3).await;
    world.finish().await;
}

#[tokio::test]
async fn a_locked_feed_stops_no_ack_and_its_row_follows_later() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    for merchant in [MERCHANT, OTHER] {
        publisher.publish_all(Event::orders(merchant, 3)).await;
        world.expect_stored(merchant, 3).await;
    }
    let mut first = world.merchant(MERCHANT).connect(replica.public()).await;
    let mut other = world.merchant(OTHER).connect(replica.public()).await;

    let locked = world.lock_feed_of_merchant_42().await;
    first.take_seqs(1..=3).await;
    world.expect_cursor(MERCHANT, "", 3).await;
    other.take_seqs(1..=2).await;
    world.expect_cursor(OTHER, "", 2).await;
    assert_eq!(
        world.number(HIGHEST).await,
        0,
        "an ack changes its cursor only"
    );
    assert_eq!(world.number("select count(*) from undelivered").await, 1);
    eventually(
        "the row of the other feed follows",
        RAISE_AFTER + PATIENCE,
        async || {
            let highest = world.number(HIGHEST).await;
            holds(highest == 2, highest)
        },
    )
    .await;
    drop(locked);
    eventually(
        "the row of the locked feed follows",
        RAISE_AFTER + PATIENCE,
        async || {
            let highest = world.number(HIGHEST).await;
            holds(highest == 3 + 2, highest)
        },
    )
    .await;
    let retries = replica
        .metric_where("shopbell_retries_total", r#"part="acks""#)
        .await;
    assert_eq!(retries, 0);
    world.finish().await;
}

/// The writer has work all the time, and rests for its longest pause between two rounds.
#[tokio::test]
async fn the_rows_of_many_feeds_follow_together() {
    let world = World::new().await;
    let replica = world.serve().await;
    world.change_database(NOTE_EVERY_WRITE).await;
    let publisher = world.publisher().await;
    let feeds: Vec<_> = (0..300).map(|number| format!("quiet-{number}")).collect();
    let mut merchants = Vec::new();
    for feed in &feeds {
        merchants.push(world.merchant(feed).connect(replica.public()).await);
    }
    let mut busy = world.merchant(MERCHANT).connect(replica.public()).await;
    let orders = feeds.iter().map(|feed| Event::order(feed));
    publisher.publish_all(orders).await;
    for merchant in &mut merchants {
        merchant.take_seqs(1..=1).await;
    }
    let mut acked = 0;
    while world.number(NOT_RAISED).await > 0 {
        acked += 1;
        publisher.publish(&Event::order(MERCHANT)).await;
        busy.take_seqs(acked..=acked).await;
    }
    let seconds = world.number(SECONDS_SINCE_THE_ACKS).await;
    assert!(seconds < 30, "the rows followed after {seconds} s");
    world.finish().await;
}

#[tokio::test]
async fn the_ack_of_a_client_that_leaves_is_written_at_once() {
    let world = World::new().await;
    let replica = world.serve().await;
    world.change_database(NOTE_EVERY_WRITE).await;
    let publisher = world.publisher().await;
    let mut visits = 0;
    eventually(
        "an ack is written while the writer would rest",
        PATIENCE,
        async || {
            visits += 1;
            publisher.publish(&Event::order(MERCHANT)).await;
            let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
            merchant.take_seqs(visits..=visits).await;
            merchant.leave().await;
            world.expect_cursor(MERCHANT, "", visits).await;
            let pause = world.number(SHORTEST_PAUSE_MS).await;
            holds(
                (1..1_000).contains(&pause),
                format!("{pause} ms are the shortest pause in {visits} visits"),
            )
        },
    )
    .await;
    world.finish().await;
}

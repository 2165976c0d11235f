//! Acks are written for many numbers together, and at once for a client that leaves.

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Every write of acks is noted, and takes a tenth of a second: so the writer rests for as long as it ever does, a second.
const NOTE_EVERY_WRITE: &str = "
    create table writes (at timestamptz);
    create function note_write() returns trigger language plpgsql as $$
    begin
        insert into writes values (clock_timestamp());
        perform pg_sleep(0.1);
        return null;
    end $$;
    create trigger note_write after update on cursors for each statement execute function note_write()";
const WRITES: &str = "select count(*) from writes";
const SHORTEST_PAUSE_MS: &str = "select coalesce(1000 * extract(epoch from min(pause)), 0)::bigint
    from (select at - lag(at) over (order by at) as pause from writes) pauses";

#[tokio::test]
async fn acks_of_a_busy_client_are_written_together() {
    let world = World::new().await;
    let replica = world.serve().await;
    world.meddle(NOTE_EVERY_WRITE).await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let mut acked = 0;
    while world.number(WRITES).await < 3 {
        acked += 1;
        publisher.publish(&Event::order(MERCHANT)).await;
        merchant.take_seqs(acked..=acked).await;
    }
    let pause = world.number(SHORTEST_PAUSE_MS).await;
    assert!(pause >= 1_000, "{acked} acks, written again after {pause} ms");
    world.expect_cursor(MERCHANT, "", acked).await;
    world.finish().await;
}

#[tokio::test]
async fn the_ack_of_a_client_that_leaves_is_written_at_once() {
    let world = World::new().await;
    let replica = world.serve().await;
    world.meddle(NOTE_EVERY_WRITE).await;
    let publisher = world.publisher().await;
    let mut visits = 0;
    eventually("an ack is written while the writer would rest", PATIENCE, async || {
        visits += 1;
        publisher.publish(&Event::order(MERCHANT)).await;
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant.take_seqs(visits..=visits).await;
        merchant.leave().await;
        world.expect_cursor(MERCHANT, "", visits).await;
        let pause = world.number(SHORTEST_PAUSE_MS).await;
        holds((1..1_000).contains(&pause), format!("{pause} ms are the shortest pause in {visits} visits"))
    })
    .await;
    world.finish().await;
}

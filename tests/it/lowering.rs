//! Cursors above the last number of their feed are lowered in each new epoch, in steps.

use crate::support::{PATIENCE, World, eventually, holds};

/// The feeds of these cursors have no row, so no feed separates them.
const ORPHANS: &str = "
    create table lowered (rows bigint);
    create function note_lowered() returns trigger language plpgsql as $$
    begin
        insert into lowered select count(*) from changed;
        return null;
    end $$;
    create trigger note_lowered after update on cursors referencing new table as changed
        for each statement execute function note_lowered();
    insert into cursors (feed, subscriber, acked_seq) select 'orphan-' || n / 7, 'm-' || n, 1 from generate_series(1, 3000) n;
    insert into evicted_cursors (feed, subscriber, device, acked_seq)
        select 'orphan-' || n, 'm', 'd', 1 from generate_series(1, 2500) n;
    select renew_epoch(null, 'a restore')";
const NOT_LOWERED: &str = "select (select count(*) from cursors where acked_seq > 0)
    + (select count(*) from evicted_cursors where acked_seq > 0)";

#[tokio::test]
async fn many_cursors_without_a_feed_are_lowered_in_steps() {
    let world = World::new().await;
    let _replica = world.serve().await;
    world.change_database(ORPHANS).await;
    eventually("all cursors are lowered", PATIENCE, async || {
        let left = world.number(NOT_LOWERED).await;
        holds(left == 0, left)
    })
    .await;
    assert_eq!(
        world.number("select sum(rows)::bigint from lowered").await,
        3_000
    );
    let most = world.number("select max(rows) from lowered").await;
    assert!(most <= 1_000, "one statement lowered {most} cursors");
    world.finish().await;
}

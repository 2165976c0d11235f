//! Housekeeping deletes expired rows. A replica runs it when it starts.

use crate::support::{Event, PATIENCE, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_failing_step_of_housekeeping_stops_no_other() {
    let world = World::new().await;
    let _first = world.serve().await;
    let publisher = world.publisher().await;
    for import in ["old", "new"] {
        publisher
            .publish(&Event::import_started(MERCHANT, import, 2))
            .await;
        publisher
            .publish(&Event::import_item(MERCHANT, import, 1, false))
            .await;
    }
    world.expect_stored(MERCHANT, 4).await;
    world
        .change_database(
            "update imports set updated_at = now() - interval '31 days' where import_id = 'old';
             alter table traces rename column stored_at to broken",
        )
        .await;

    let other = world.serve().await;
    eventually(
        "the items of the old import are gone",
        PATIENCE,
        async || {
            let left = world
                .number("select count(*) from import_items where import_id = 'old'")
                .await;
            holds(left == 0, left)
        },
    )
    .await;
    let kept = world
        .number("select count(*) from import_items where import_id = 'new'")
        .await;
    assert_eq!(kept, 1);
    assert!(other.log().contains("a step of housekeeping failed"));
    world
        .change_database("alter table traces rename column broken to stored_at")
        .await;
    world.finish_unverified().await;
}

#[tokio::test]
async fn every_old_import_loses_its_items_and_the_others_keep_them() {
    let world = World::new().await;
    // More imports than one step visits, and one with more rows than one step deletes.
    world
        .change_database(
            "insert into imports (feed, import_id, updated_at)
                 select 'm', 'i-' || n, now() - make_interval(days => case when n % 10 = 0 then 0 else 31 end)
                 from generate_series(1, 1001) n;
             insert into import_items (feed, import_id, run, chunk, seen, failed)
                 select 'm', 'i-' || n, 1, c, 0::bit(512), 0::bit(512)
                 from generate_series(1, 1001) n, generate_series(1, case when n = 7 then 2500 else 1 end) c",
        )
        .await;
    let _replica = world.serve().await;
    eventually("the items of old imports are gone", PATIENCE, async || {
        let left = world.number("select count(*) from import_items").await;
        holds(left == 100, left)
    })
    .await;
    let old = world
        .number(
            "select count(*) from import_items i join imports m on m.feed = i.feed and m.import_id = i.import_id
             where m.updated_at < now() - interval '30 days'",
        )
        .await;
    assert_eq!(old, 0);
    world
        .change_database("delete from import_items; delete from imports")
        .await;
    world.finish_unverified().await;
}

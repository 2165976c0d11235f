//! A row that Postgres cannot read affects only its own feed.

use crate::support::{Event, Merchant, Monitor, World};

const DAMAGED: &str = "merchant-damaged";
const OTHERS: [&str; 6] = [
    "merchant-1",
    "merchant-2",
    "merchant-3",
    "merchant-4",
    "merchant-5",
    "merchant-6",
];

/// Deletes the stored value of the largest data, but not its row, as a lost page does.
const DAMAGE: &str = "create extension pg_surgery;
do $$
declare
    toast regclass;
begin
    select reltoastrelid::regclass into toast from pg_class where oid = 'notifications'::regclass;
    execute format('select heap_force_kill(%L::regclass, array(select ctid from %s))', toast, toast);
end $$";

#[tokio::test]
async fn a_damaged_row_closes_its_own_sessions_and_no_others() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    for merchant in OTHERS {
        publisher.publish_all(Event::orders(merchant, 5)).await;
        world.expect_stored(merchant, 5).await;
    }
    publisher.publish_all(Event::orders(DAMAGED, 3)).await;
    // Random, so that Postgres cannot compress it into the row.
    let noise: String = (0..20_000).map(|_| fastrand::alphanumeric()).collect();
    publisher
        .publish(&Event::new("custom.thing", DAMAGED, &format!("{noise:?}")))
        .await;
    publisher.publish_all(Event::orders(DAMAGED, 1)).await;
    world.expect_stored(DAMAGED, 5).await;
    world.change_database(DAMAGE).await;

    // The devices are known, so connecting them reads no notification.
    for merchant in OTHERS.into_iter().chain([DAMAGED]) {
        world
            .merchant(merchant)
            .connect(replica.public())
            .await
            .vanish();
    }

    let monitor = Monitor::of(&world, [&replica]).await;

    // Twice: the first read finds the damage among other feeds, the second excludes it from the
    // start.
    for round in 1..=2 {
        // While the lock is held, the requests collect, so that they share a query.
        let lock = world.lock_notifications().await;
        let mut damaged = world
            .merchant(DAMAGED)
            .after(DAMAGED, 0)
            .connect(replica.public())
            .await;
        let mut others: Vec<Merchant> = Vec::new();
        for merchant in OTHERS {
            others.push(
                world
                    .merchant(merchant)
                    .after(merchant, 0)
                    .connect(replica.public())
                    .await,
            );
        }
        drop(lock);
        for other in &mut others {
            other.take_seqs(1..=5).await;
        }
        damaged.take_seqs(1..=3).await;
        assert_eq!(damaged.closed().await.code, 1011);
        replica
            .metric_reaches("shopbell_damaged_reads_total", round)
            .await;
    }
    replica.logs("ERROR", "feed", |feed| feed == DAMAGED).await;
    assert_eq!(
        replica
            .metric_where("shopbell_retries_total", r#"part="pages""#)
            .await,
        0
    );
    monitor.expect_alert("ShopbellRowsDamaged", "page").await;
    world.finish().await;
}

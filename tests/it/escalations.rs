//! Many deadlines pass at once, and a replica that escalates is killed meanwhile.

use crate::support::{Event, PATIENCE, World, eventually, holds};

/// Orders with a deadline, in all feeds together.
const ORDERS: u64 = 2_000;
const FEEDS: u64 = 100;

#[tokio::test]
async fn no_escalation_is_missed_or_late_while_a_replica_is_killed() {
    let world = World::new().await;
    let replicas = [
        world.serve().await,
        world.serve().await,
        world.serve().await,
    ];
    let order =
        |number: u64| Event::order(&format!("m-{}", number % FEEDS)).attribute("handlewithin", "5");
    let publisher = world.publisher().await;
    publisher.publish_all((0..ORDERS).map(order)).await;
    let overdue = "select count(*) from receipts where overdue_at is not null";
    eventually("the first orders are overdue", PATIENCE, async || {
        let overdue = world.number(overdue).await;
        holds(overdue > 0, overdue)
    })
    .await;
    // Any of them may work on rows.
    replicas[0].kill();
    eventually("all receipts are published", PATIENCE, async || {
        let open = world
            .number("select count(*) from receipts where published & 64 = 0")
            .await;
        holds(open == 0, open)
    })
    .await;
    assert_eq!(world.number(overdue).await, ORDERS);
    let milliseconds = "select (percentile_cont(0.99) within group (order by extract(epoch from overdue_at - handle_by)) * 1000)::bigint
                        from receipts";
    let p99 = world.number(milliseconds).await;
    assert!(p99 < 2_000, "{p99} ms");
    // Each feed reports its escalations as marks, once each.
    let marked =
        "select coalesce(sum(cardinality(seqs)), 0)::bigint from marks where kind = 'overdue'";
    assert_eq!(world.number(marked).await, ORDERS);
    println!("{ORDERS} escalations: p99 {p99} ms");
    world.finish_unverified().await;
}

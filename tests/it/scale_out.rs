//! More than one machine: separate roles, several gateways, partitions of the ingest queue.

mod crowd;
mod many;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::net::TcpStream;

use self::crowd::Crowd;
use crate::support::{Event, PATIENCE, Parcel, Replica, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
const PARTITIONS: &str = "SHOPBELL_INGEST_PARTITIONS";
const SECRET: &str = "SHOPBELL_JWT_HS256_SECRET";
/// Several of them in every partition.
const CROWD: usize = 40;

#[tokio::test]
async fn ingest_has_no_public_port_and_no_secret_and_a_gateway_stores_nothing() {
    let world = World::new().await;
    let ingest = world.replica().role("ingest").without(SECRET).start().await;
    let gateway = world.replica().role("gateway").start().await;
    assert!(
        TcpStream::connect(ingest.public()).await.is_err(),
        "an ingest replica listens for clients"
    );
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(gateway.public()).await;
    publisher.publish_all(Event::orders(MERCHANT, 100)).await;
    merchant.take_seqs(1..=100).await;
    assert!(
        gateway.metric("shopbell_hints_received_total").await > 0,
        "the gateway received a hint"
    );

    assert!(ingest.terminate().await.success());
    publisher.publish_all(Event::orders(MERCHANT, 10)).await;
    let (broker, queue) = (world.broker().await, world.name("ingest"));
    eventually(
        "ten orders wait for an ingest replica",
        PATIENCE,
        async || {
            let depth = broker.depth(&queue).await;
            holds(depth == Some(10), format!("{depth:?}"))
        },
    )
    .await;
    // A role checks only its own dependencies.
    gateway.ready().await;
    assert_eq!(gateway.metric("shopbell_events_received_total").await, 0);

    ingest.restart().await;
    merchant.take_seqs(101..=110).await;
    world.finish().await;
}

#[tokio::test]
async fn a_gateway_needs_the_secret() {
    let world = World::new().await;
    let refused = world
        .shopbell_with(&[(SECRET, "")], &["serve", "--role", "gateway"])
        .await
        .failed_with(2);
    assert!(refused.stderr.contains(SECRET), "{}", refused.stderr);
    world.finish().await;
}

#[tokio::test]
async fn merchants_of_a_gateway_that_was_killed_lose_nothing_at_the_other() {
    let world = World::new().await;
    world.replica().role("ingest").start().await;
    let gateways = [
        world.replica().role("gateway").start().await,
        world.replica().role("gateway").start().await,
    ];
    let crowd = Crowd::new(20, 100);
    let killing = async {
        world.stored_reaches(800, PATIENCE).await;
        gateways[0].kill();
    };
    tokio::join!(
        crowd.publish(&world),
        killing,
        crowd.expect_all(&world, &gateways)
    );
    world.finish().await;
}

#[tokio::test]
async fn merchants_of_a_killed_ingesting_replica_lose_nothing_at_the_others() {
    let world = World::new().await;
    let replicas = [
        world.serve().await,
        world.serve().await,
        world.serve().await,
    ];
    let crowd = Crowd::new(20, 100);
    let killing = async {
        world.stored_reaches(600, PATIENCE).await;
        for replica in &replicas {
            if replica.metric("shopbell_events_received_total").await > 0 {
                return replica.kill();
            }
        }
        panic!("none of the three has ingested the stored events");
    };
    tokio::join!(
        crowd.publish(&world),
        killing,
        crowd.expect_all(&world, &replicas)
    );
    world.finish().await;
}

#[tokio::test]
async fn a_feed_keeps_its_order_in_its_partition_when_a_replica_is_killed() {
    let world = World::new().await;
    declare(&world, 4).await;
    let crowd = Crowd::new(CROWD, 50);
    let parcels = crowd.parcels();
    let (early, late) = parcels.split_at(400);
    let publisher = world.publisher().await;
    publisher.publish_all(early).await;
    let used = depths(&world)
        .await
        .into_iter()
        .filter(|depth| *depth > 0)
        .count();
    assert_eq!(used, 4, "partitions with some of the events");

    let replicas = [partitioned(&world).await, partitioned(&world).await];
    let killing = async {
        world.stored_reaches(800, PATIENCE).await;
        replicas[0].kill();
    };
    tokio::join!(
        publisher.publish_all(late),
        killing,
        crowd.expect_all(&world, &replicas)
    );
    world.finish().await;
}

#[tokio::test]
async fn events_without_the_header_arrive_in_order_through_one_partition() {
    let world = World::new().await;
    declare(&world, 4).await;
    let crowd = Crowd::new(10, 50);
    let publisher = world.publisher().await;
    publisher
        .publish_all(crowd.parcels().into_iter().map(Parcel::without_headers))
        .await;
    let mut depths = depths(&world).await;
    depths.sort_unstable();
    assert_eq!(depths, [0, 0, 0, 500]);

    let replicas = [partitioned(&world).await];
    crowd.expect_all(&world, &replicas).await;
    world.finish().await;
}

/// Publishers continue, and one replica is killed while another one takes partitions from it.
#[tokio::test]
async fn a_replica_that_starts_later_gets_its_share_and_overtakes_nothing() {
    const MANY: u8 = 16;
    const RECEIVED: &str = "shopbell_events_received_total";
    let world = World::new().await;
    declare(&world, MANY).await;
    let start = || {
        let replica = world.replica().role("ingest").with(PARTITIONS, MANY);
        async { replica.start().await }
    };
    let first = start().await;
    let (mut crowd, shared) = (Crowd::new(CROWD, 0), AtomicBool::new(false));
    let publishing = async {
        let publisher = world.publisher().await;
        while !shared.load(Ordering::Relaxed) {
            publisher.publish_all(crowd.next_round()).await;
        }
        publisher.publish_all(crowd.next_round()).await;
    };
    let sharing = async {
        first.metric_reaches(RECEIVED, 200).await;
        let second = start().await;
        if hands_over(&world).await {
            second.metric_reaches(RECEIVED, 200).await;
            let so_far = first.metric(RECEIVED).await;
            first.metric_reaches(RECEIVED, so_far + 200).await;
        }
        let third = start().await;
        first.kill();
        if hands_over(&world).await {
            third.metric_reaches(RECEIVED, 200).await;
        }
        shared.store(true, Ordering::Relaxed);
        [second, third]
    };
    let ((), _replicas) = tokio::join!(publishing, sharing);
    let gateway = world.replica().role("gateway").start().await;
    crowd.expect_all(&world, &[gateway]).await;
    world.finish().await;
}

/// The procedure of docs/scaling.md, step by step, with a backlog in the old partition and a
/// publisher that does not stop.
#[tokio::test]
async fn partitions_are_raised_under_load_and_no_event_is_lost_or_overtaken() {
    const ROUNDS_AHEAD: u64 = 60;
    let world = World::new().await;
    let old = [
        world.replica().role("ingest").start().await,
        world.replica().role("ingest").start().await,
    ];
    old.iter().for_each(Replica::kill);
    let (mut crowd, mut rounds_after) = (Crowd::new(CROWD, 0), 0..ROUNDS_AHEAD);
    let (begun, raised) = (AtomicU64::new(0), AtomicBool::new(false));

    let publishing = async {
        let publisher = world.publisher().await;
        while !raised.load(Ordering::Relaxed) || rounds_after.next().is_some() {
            let round = begun.fetch_add(1, Ordering::Relaxed) + 1;
            eventually("the backlog stays within its bound", PATIENCE, async || {
                let stored = world.last_seq().await;
                holds(
                    round <= stored + ROUNDS_AHEAD,
                    format!("round {round}, {stored} stored"),
                )
            })
            .await;
            publisher.publish_all(crowd.next_round()).await;
        }
    };
    let raising = async {
        eventually("a backlog waits", PATIENCE, async || {
            let begun = begun.load(Ordering::Relaxed);
            holds(begun > ROUNDS_AHEAD, begun)
        })
        .await;
        for replica in &old {
            replica.restart().await;
        }
        // (a)
        declare(&world, 4).await;
        // (b) From now on, an event of a new round comes through the old partition behind all older
        // events.
        let older = begun.load(Ordering::Relaxed);
        eventually(
            "an event published after (a) is stored",
            PATIENCE,
            async || {
                let newest = world.last_seq().await;
                holds(
                    newest > older,
                    format!("the newest is of round {newest}, {older} had begun"),
                )
            },
        )
        .await;
        // (c)
        let replicas = [
            partitioned_ingest(&world).await,
            partitioned_ingest(&world).await,
        ];
        for replica in &old {
            assert!(replica.terminate().await.success());
        }
        raised.store(true, Ordering::Relaxed);
        replicas
    };
    let ((), replicas) = tokio::join!(publishing, raising);

    crowd
        .expect_all(&world, &[world.replica().role("gateway").start().await])
        .await;
    let received = join_all(
        replicas
            .iter()
            .map(|replica| replica.metric("shopbell_events_received_total")),
    )
    .await;
    assert!(
        received.iter().sum::<u64>() > 0,
        "the new replicas ingested"
    );
    world.finish().await;
}

#[tokio::test]
async fn the_publish_command_uses_the_partition_of_the_recipient() {
    let world = World::new().await;
    declare(&world, 4).await;
    for number in 0..12 {
        world
            .shopbell(&["publish", "--recipient", &format!("merchant-{number}")])
            .await
            .succeeded();
    }
    let used = depths(&world)
        .await
        .into_iter()
        .filter(|depth| *depth > 0)
        .count();
    assert!(used > 1, "twelve recipients have one partition");
    let replica = partitioned(&world).await;
    replica
        .metric_reaches("shopbell_events_stored_total", 12)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_replica_with_too_few_partitions_reports_it_and_bypasses_none() {
    let world = World::new().await;
    let old = world.serve().await;
    declare(&world, 4).await;
    old.restart().await;
    old.logs("ERROR", "known", |number| number == "1").await;
    let crowd = Crowd::new(CROWD, 5);
    crowd.publish(&world).await;
    eventually(
        "every event is stored or waits, and none of them twice",
        PATIENCE,
        async || {
            let [_, waiting @ ..] = depths(&world).await;
            let (stored, waiting) = (
                world.stored_in_all().await,
                u64::from(waiting.iter().sum::<u32>()),
            );
            holds(
                stored + waiting == 200 && waiting > 0,
                format!("{stored} stored, {waiting} waiting"),
            )
        },
    )
    .await;
    let refused = world.shopbell(&["declare"]).await.failed_with(1);
    assert!(refused.stderr.contains(PARTITIONS), "{}", refused.stderr);

    crowd.expect_all(&world, &[partitioned(&world).await]).await;
    world.finish().await;
}

#[tokio::test]
async fn partitions_that_an_operator_did_not_declare_are_reported_by_name() {
    let world = World::new().await;
    let verify = [("SHOPBELL_AMQP_DECLARE", "false"), (PARTITIONS, "4")];
    declare(&world, 1).await;
    let refused = world
        .shopbell_with(&verify, &["declare"])
        .await
        .failed_with(1);
    assert!(
        refused.stderr.contains(&world.name("partitions")),
        "{}",
        refused.stderr
    );

    let declared = declare(&world, 4).await;
    assert!(
        declared.contains(&("queue".to_owned(), world.name("ingest.4"))),
        "{declared:?}"
    );
    let verified = world.shopbell_with(&verify, &["declare"]).await.succeeded();
    let line = format!("queue {} (only verified)\n", world.name("ingest.4"));
    assert!(
        verified.stdout.contains(&line) && verified.stderr.contains("nothing was declared"),
        "{verified:?}"
    );
    world.finish().await;
}

/// Runs `shopbell declare`, and returns the kind and name of each declared object.
async fn declare(world: &World, partitions: u8) -> Vec<(String, String)> {
    #[derive(Deserialize)]
    struct Declared {
        kind: String,
        name: String,
    }
    let settings = [(PARTITIONS, &*partitions.to_string())];
    let done = world
        .shopbell_with(&settings, &["declare", "--output", "json"])
        .await
        .succeeded();
    done.json_lines::<Declared>()
        .into_iter()
        .map(|Declared { kind, name }| (kind, name))
        .collect()
}

async fn partitioned(world: &World) -> Replica {
    world.replica().with(PARTITIONS, 4).start().await
}

async fn partitioned_ingest(world: &World) -> Replica {
    world
        .replica()
        .role("ingest")
        .with(PARTITIONS, 4)
        .start()
        .await
}

/// Whether RabbitMQ hands a partition over to the replica with the highest claim.
async fn hands_over(world: &World) -> bool {
    let done = world.shopbell(&["doctor", "--role", "ingest"]).await;
    let version = done
        .stdout
        .split_once("rabbitmq.version: ")
        .and_then(|(_, version)| version.split('.').next()?.parse::<u32>().ok());
    version.expect("doctor prints RabbitMQ's version") >= 4
}

/// The number of waiting events in each of four partitions.
async fn depths(world: &World) -> [u32; 4] {
    let (broker, mut depths) = (world.broker().await, [0; 4]);
    for (depth, queue) in depths
        .iter_mut()
        .zip(["ingest", "ingest.2", "ingest.3", "ingest.4"])
    {
        *depth = broker
            .depth(&world.name(queue))
            .await
            .expect("the partition is there");
    }
    depths
}

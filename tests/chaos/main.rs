//! Parts of Shopbell and its services fail under load. No event is lost, repeated or early.
//!
//! The campaign mixes load and faults at random, from a seed that `SHOPBELL_CHAOS_SEED` sets. The other
//! stories have a fixed course. RabbitMQ and
//! Postgres are private to the run, because it restarts them. `scripts/services` provides them.
#![expect(
    clippy::expect_used,
    reason = "a test fails by panicking with a reason"
)]
#![expect(
    unreachable_pub,
    reason = "a test binary exports nothing: `pub` in `support` means: for the stories"
)]

mod campaign;
mod cluster;
mod crowd;
mod dashboards;
mod edges;
mod files;
mod nginx;
mod outbox;
mod programs;
mod rabbitmq_cluster;
mod rolling;
mod services;
mod setbacks;
mod small_disk;
#[path = "../it"]
mod it {
    #[expect(
        dead_code,
        unused_imports,
        reason = "shared with the stories of `tests/it`, which use the rest"
    )]
    pub mod support;
}

use std::time::Duration;

use crowd::{Crowd, EVENTS};
use futures_util::future::join_all;
use it::support::{Event, Proxy, Replica, World};
use services::Services;

/// Bound for a whole story on a machine of two cores, with a part that is killed.
const BOUND: Duration = Duration::from_secs(240);

/// Time from the end of an alarm until replicas are ready.
const AFTER_ALARM: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_replicas_with_partitions_lose_and_repeat_nothing_in_order() {
    let services = Services::up().await;
    let mut survivor = 0;
    // One replica, so that the other takes over. Then both, so that they share again.
    let kill = async |_: &World, replicas: &[Replica]| {
        let killed: Vec<_> = replicas
            .iter()
            .enumerate()
            .filter(|(place, _)| *place != survivor % 3)
            .collect();
        killed.iter().for_each(|(_, replica)| replica.kill());
        join_all(killed.iter().map(|(_, replica)| replica.restart())).await;
        survivor += 1;
    };
    run(&services, SHARING, 6, kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_of_rabbitmq_does_not_delay_queued_events() {
    const MERCHANT: &str = "merchant-42";
    let services = Services::up().await;
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    // A single replica publishes no hints, and would not notice the alarm.
    let gateway = world
        .replica()
        .role("gateway")
        .with("SHOPBELL_CANARY_SECONDS", 1)
        .start()
        .await;
    let replica = world.replica().start().await;
    gateway
        .metric_reaches("shopbell_canary_publish_to_ack_seconds_count", 1)
        .await;
    replica.kill();
    let threads = gateway.metric("process_threads").await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 600)).await;
    let mut elsewhere = world
        .merchant(MERCHANT)
        .device("second")
        .connect(gateway.public())
        .await;

    services.set_memory_bound("0").await;
    replica.launch();
    replica.reports_broker("blocked").await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=600).await;
    elsewhere.take_seqs(1..=600).await;
    assert!(
        replica.metric("shopbell_hints_refused_total").await > 0,
        "RabbitMQ was in an alarm"
    );
    let readiness = replica.get("/readyz").await;
    assert!(
        readiness.status == 200 && readiness.text().contains("degraded"),
        "{}",
        readiness.text()
    );

    // A blocked connection cannot be closed, and has a thread of its own. The canary must not open
    // one for each run.
    gateway
        .metric_reaches("shopbell_canary_failures_total", 4)
        .await;
    let more = gateway
        .metric("process_threads")
        .await
        .saturating_sub(threads);
    assert!(more <= 3, "{more} threads more than before the alarm");
    services.set_memory_bound("0.5").await;
    replica.ready_within(AFTER_ALARM).await;
    gateway.ready_within(AFTER_ALARM).await;
    publisher.publish_all(Event::orders(MERCHANT, 20)).await;
    merchant.take_seqs(601..=620).await;
    elsewhere.take_seqs(601..=620).await;
    world.finish().await;
}

/// The deployment of Shopbell.
#[derive(Clone, Copy)]
struct Cast<'a> {
    replicas: usize,
    partitions: u8,
    /// The proxy between the replicas and Postgres.
    network: Option<&'a Proxy>,
}

const ALONE: Cast<'_> = Cast {
    replicas: 1,
    partitions: 1,
    network: None,
};
const SHARING: Cast<'_> = Cast {
    replicas: 2,
    partitions: 4,
    network: None,
};

/// Publishes all events while all merchants read and ack. Meanwhile it calls `strike` as often as
/// `strikes`.
async fn run(
    services: &Services,
    cast: Cast<'_>,
    strikes: usize,
    mut strike: impl AsyncFnMut(&World, &[Replica]),
) {
    let seed = std::env::var("SHOPBELL_CHAOS_SEED").ok().map_or_else(
        || fastrand::u64(..),
        |seed| seed.parse().expect("SHOPBELL_CHAOS_SEED is a number"),
    );
    eprintln!("SHOPBELL_CHAOS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    let database_url = cast
        .network
        .map_or(world.database_url().to_owned(), |network| {
            network.url(world.database_url())
        });
    let start_one = |_| {
        let replica = world
            .replica()
            .with("SHOPBELL_HEARTBEAT_SECONDS", 5)
            .with("DATABASE_URL", &database_url);
        replica
            .with("SHOPBELL_INGEST_PARTITIONS", cast.partitions)
            .start()
    };
    let replicas = join_all((0..cast.replicas).map(start_one)).await;
    let (crowd, events) = Crowd::connect(&world, &replicas, &mut random);
    let mut publisher = world.publisher().await;

    let mut moments: Vec<_> = (0..strikes).map(|_| random.u64(0..EVENTS)).collect();
    moments.sort_unstable();
    let striking = async {
        for moment in moments {
            world.stored_reaches(moment, BOUND).await;
            strike(&world, &replicas).await;
        }
    };
    tokio::join!(publisher.publish_until_confirmed(&events), striking);
    crowd.satisfied(&world, BOUND).await;
    world.finish().await;
}

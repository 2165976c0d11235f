//! Partial failures: an alarm with bad events in the queue, a Postgres that turns silent or has no
//! space, a secret that changes. No order is lost, repeated or reordered.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::it::support::{
    Event, Frame, Handshake, PATIENCE, Parcel, Proxy, Replica, Token, World, eventually, holds,
    http,
};
use crate::programs::is_root;
use crate::services::Services;
use crate::{AFTER_ALARM, ALONE, Cast, run};

const MERCHANT: &str = "merchant-42";
/// Time before an aborted history request is closed.
const ABORT_AFTER: Duration = Duration::from_millis(200);
/// History requests that are aborted at a time: more than the connections of the pool.
const ABORTED: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_with_bad_events_in_the_queue_holds_up_no_order() {
    const ORDERS: usize = 405;
    const BAD: usize = 45;
    let services = Services::up().await;
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    let replica = world.serve().await;
    replica.kill();
    let orders = Event::orders(MERCHANT, ORDERS);
    let mut parcels = Vec::new();
    for orders in orders.chunks(ORDERS / BAD) {
        parcels.extend(orders.iter().map(Parcel::from));
        parcels.push(Parcel::structured("order.created", "{"));
    }
    world.publisher().await.publish_all(parcels).await;

    services.set_memory_bound("0").await;
    replica.launch();
    replica.reports_broker("blocked").await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=ORDERS as u64).await;
    assert!(
        arrived
            .iter()
            .map(|notification| notification.id.as_str())
            .eq(orders.iter().map(Event::event_id))
    );
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", BAD as u64)
        .await;

    services.set_memory_bound("0.5").await;
    replica.ready_within(AFTER_ALARM).await;
    let (broker, queue) = (world.broker().await, world.name("dead-letter"));
    eventually("the broker has every dead letter", PATIENCE, async || {
        let depth = broker.depth(&queue).await;
        holds(depth == Some(BAD as u32), format!("{depth:?}"))
    })
    .await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_primary_with_aborted_requests_loses_nothing_and_recovers() {
    let services = Services::up().await;
    let network = Proxy::before_service(&services.database_url).await;
    let strike = async |world: &World, replicas: &[Replica]| {
        let authorization = format!("Bearer {}", world.token(MERCHANT).sign());
        let history = async |replica: &Replica| {
            let path = format!("/v1/feeds/{MERCHANT}/notifications");
            http::get_with(
                replica.public(),
                &path,
                &[("Authorization", &authorization)],
            )
            .await
        };
        network.stall();
        let aborted = (0..ABORTED).map(|_| timeout(ABORT_AFTER, history(&replicas[0])));
        join_all(aborted).await;
        // The open connections never answer again. New ones work.
        network.forget();
        network.mend();
        eventually("history is answered again", PATIENCE, async || {
            let answered = history(&replicas[0])
                .await
                .map_err(|error| error.to_string())?;
            holds(answered.status == 200, answered.status)
        })
        .await;
    };
    let cast = Cast {
        network: Some(&network),
        ..ALONE
    };
    run(&services, cast, 2, strike).await;
}

/// It needs root, as the scenario `small-disk`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_names_the_full_disk_of_postgres_until_there_is_space() {
    /// Space for a new cluster and the log of this story.
    const MEGABYTES: u32 = 256;
    /// After this time, a delivery that is not stored degrades the replica.
    const STUCK_AFTER: Duration = Duration::from_secs(30);
    const ORDERS: u64 = 20;
    /// Random text of this length needs new pages of its table.
    const NOTE_BYTES: usize = 6_000;
    if !is_root() {
        eprintln!("not run, because only root can mount a small disk");
        return;
    }
    let services = Services::up().await;
    let mut postgres = Cluster::primary_on_disk_of(MEGABYTES).await;
    let world = World::at(postgres.url(), services.amqp_url.clone()).await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    merchant.take_seqs(1..=1).await;

    postgres.fill_disk();
    let orders: Vec<_> = (0..ORDERS)
        .map(|_| {
            let note: String = std::iter::repeat_with(fastrand::alphanumeric)
                .take(NOTE_BYTES)
                .collect();
            Event::new("note.left", MERCHANT, &format!(r#"{{"note":"{note}"}}"#))
        })
        .collect();
    publisher.publish_all(&orders).await;
    eventually("/readyz names it", STUCK_AFTER + PATIENCE, async || {
        let reply = replica.get("/readyz").await;
        let text = reply.text();
        let named =
            text.contains("ingest has held a delivery") && text.contains("No space left on device");
        let degraded =
            text.contains(r#""status":"degraded""#) && text.contains(r#""database":"ok""#);
        holds(reply.status == 200 && named && degraded, text)
    })
    .await;
    // Sessions are served from Postgres all the same.
    merchant.ping().await;

    postgres.free_disk();
    postgres.start().await;
    let arrived = merchant.take_seqs(2..=ORDERS + 1).await;
    let ids = arrived.iter().map(|notification| notification.id.as_str());
    assert!(ids.eq(orders.iter().map(Event::event_id)));
    eventually("/readyz reports no detail", PATIENCE, async || {
        let text = replica.get("/readyz").await.text();
        holds(
            text.contains(r#""status":"ready""#) && !text.contains("detail"),
            text,
        )
    })
    .await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_rotated_under_load_sends_no_merchant_away() {
    const MERCHANTS: usize = 30;
    const OLD: &str = "the-old-secret-of-at-least-thirty-two-bytes";
    const NEW: &str = "the-new-secret-of-at-least-thirty-two-bytes";
    let services = Services::up().await;
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    let (current, previous) = (
        world.file("current", OLD.as_bytes()),
        world.file("previous", OLD.as_bytes()),
    );
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let replica = world.replica().without("SHOPBELL_JWT_HS256_SECRET");
        let replica = replica.with("SHOPBELL_JWT_HS256_SECRET_FILE", &current);
        replicas.push(
            replica
                .with("SHOPBELL_JWT_HS256_SECRET_PREVIOUS_FILE", &previous)
                .start()
                .await,
        );
    }
    let issuer = watch::Sender::new(OLD);
    let names: Vec<_> = (0..MERCHANTS)
        .map(|number| format!("merchant-{number}"))
        .collect();
    let followers = names.iter().enumerate().map(|(number, name)| {
        tokio::spawn(follow(
            name.clone(),
            issuer.subscribe(),
            replicas.clone().into_iter().cycle().skip(number),
        ))
    });
    let followers: Vec<_> = followers.collect();

    let accepted = async |secret: &str| {
        for replica in &replicas {
            let handshake = Handshake::new(MERCHANT, &Token::new(secret, MERCHANT));
            eventually("the replica has read the file", PATIENCE, async || {
                handshake.try_connect(replica.public()).await.map(drop)
            })
            .await;
        }
    };
    let mut published = BTreeMap::<_, Vec<_>>::new();
    let mut publisher = world.publisher().await;
    let mut publish = async |count: usize| {
        let recipients: Vec<_> = names.iter().cycle().take(count * MERCHANTS).collect();
        let events: Vec<_> = recipients
            .iter()
            .map(|recipient| Event::order(recipient))
            .collect();
        publisher.publish_until_confirmed(&events).await;
        for (recipient, event) in recipients.into_iter().zip(events) {
            published
                .entry(recipient.clone())
                .or_default()
                .push(event.event_id().to_owned());
        }
    };
    publish(20).await;
    // Every replica knows the new secret before a token is signed with it.
    std::fs::write(&previous, NEW).expect("the file can be written");
    accepted(NEW).await;
    issuer.send_replace(NEW);
    publish(20).await;
    replicas[0].restart().await;
    std::fs::write(&current, NEW).expect("the file can be written");
    std::fs::write(&previous, OLD).expect("the file can be written");
    publish(20).await;
    accepted(OLD).await;
    accepted(NEW).await;
    join_all(replicas.iter().map(Replica::restart)).await;
    publish(PER_MERCHANT - 60).await;

    for follower in followers {
        let (name, arrived) = follower
            .await
            .expect("no merchant's session is closed for good");
        assert_eq!(arrived, published[&name], "{name}");
    }
    world.finish().await;
}

/// Orders of each merchant while the secret is rotated.
const PER_MERCHANT: usize = 80;

/// Reads and acknowledges the whole share, with a new token for every session. Returns the ids in
/// order.
async fn follow(
    name: String,
    issuer: watch::Receiver<&'static str>,
    mut replicas: impl Iterator<Item = Replica>,
) -> (String, Vec<String>) {
    let mut arrived = BTreeMap::new();
    while arrived.len() < PER_MERCHANT {
        let (secret, replica) = (*issuer.borrow(), replicas.next().expect("they go round"));
        let handshake = Handshake::new(&name, &Token::new(secret, &name));
        match handshake.try_connect(replica.public()).await {
            Ok(mut merchant) => {
                while arrived.len() < PER_MERCHANT {
                    match merchant.next_frame().await {
                        Ok(Frame::Notification(notification)) => {
                            let id = arrived
                                .entry(notification.seq)
                                .or_insert_with(|| notification.id.clone());
                            assert_eq!(
                                *id, notification.id,
                                "{name}: {} was another event before",
                                notification.seq
                            );
                            merchant.ack(&name, notification.seq).await;
                        }
                        Ok(_) => {}
                        Err(closed) => {
                            assert!(closed.code < 4500, "{name} was closed for good: {closed:?}");
                            break;
                        }
                    }
                }
            }
            Err(instead) => assert!(
                !instead.contains("status: 401"),
                "{name} is refused: {instead}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (name, arrived.into_values().collect())
}

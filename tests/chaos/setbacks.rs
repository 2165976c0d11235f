//! Postgres is set back in time under load: a lagging standby is promoted, or an old copy of the
//! volume takes over. New orders get numbers that other orders had before, and no merchant misses
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::it::support::{Closed, Event, Frame, Handshake, Merchant, Proxy, Replica, World};
use crate::services::Services;

/// Merchants.
const MERCHANTS: usize = 40;
/// Orders of each merchant in each part of the story.
const ORDERS: usize = 60;
/// The last event of a feed. A merchant that receives it closes.
const LAST_EVENT: &str = "shop.closed";
/// Pause of a client before it connects again.
const RECONNECT: Duration = Duration::from_millis(300);
/// Bound for the merchants to receive everything, on a loaded machine of two cores.
const BOUND: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_standby_that_is_promoted_under_load_costs_no_order() {
    let services = Services::up().await;
    let mut primary = Cluster::primary().await;
    let replication = Proxy::before(&primary.authority()).await;
    let standby = primary.standby_of(&replication.address().to_string()).await;
    let shop = Shop::open(&services, &primary).await;

    shop.publish(0).await;
    replication.stall();
    shop.publish(1).await;
    shop.all_acknowledged(2 * ORDERS).await;
    primary.kill();
    replication.cut();
    shop.network.cut();
    standby.promote().await;
    shop.network.lead_to(&standby.authority());
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_of_the_volume_that_is_overtaken_costs_no_order() {
    let services = Services::up().await;
    let mut primary = Cluster::primary().await;
    let shop = Shop::open(&services, &primary).await;

    shop.publish(0).await;
    shop.all_acknowledged(ORDERS).await;
    let copy = primary.copy().await;
    shop.publish(1).await;
    shop.all_acknowledged(2 * ORDERS).await;
    shop.network.cut();
    primary.kill();
    let copy = copy.started().await;
    shop.network.lead_to(&copy.authority());
    shop.finish().await;
}

/// Two replicas, their merchants, and all orders in publishing order.
struct Shop {
    world: World,
    network: Proxy,
    merchants: JoinSet<Diary>,
    /// The parts of the story: the mixed orders of all merchants.
    parts: Vec<Vec<Event>>,
    /// The ids of each merchant's events.
    published: BTreeMap<String, BTreeSet<String>>,
}

impl Shop {
    /// Everything connects to Postgres through one proxy, so that another server can take its
    /// place.
    async fn open(services: &Services, primary: &Cluster) -> Self {
        let network = Proxy::before(&primary.authority()).await;
        let world = World::at(network.url(&primary.url()), services.amqp_url.clone()).await;
        let replicas = [start_one(&world).await, start_one(&world).await];
        let mut merchants = JoinSet::new();
        for number in 0..MERCHANTS {
            let replicas = replicas.clone().into_iter().cycle().skip(number);
            merchants.spawn(follow(
                world.merchant(&name(number)),
                name(number),
                replicas,
            ));
        }
        let mut published = BTreeMap::<_, BTreeSet<_>>::new();
        let part = |_| {
            let mut recipients: Vec<_> = (0..MERCHANTS * ORDERS)
                .map(|number| name(number % MERCHANTS))
                .collect();
            Rng::new().shuffle(&mut recipients);
            let order = |recipient: String| {
                let event = Event::order(&recipient);
                published
                    .entry(recipient)
                    .or_default()
                    .insert(event.event_id().to_owned());
                event
            };
            recipients.into_iter().map(order).collect()
        };
        let parts = (0..3).map(part).collect();
        Self {
            world,
            network,
            merchants,
            parts,
            published,
        }
    }

    /// Publishes one part as fast as RabbitMQ confirms.
    async fn publish(&self, part: usize) {
        self.world
            .publisher()
            .await
            .publish_all(&self.parts[part])
            .await;
    }

    /// Waits until every merchant's cursor is at this number.
    async fn all_acknowledged(&self, orders: usize) {
        for number in 0..MERCHANTS {
            self.world
                .expect_cursor(&name(number), "", orders as u64)
                .await;
        }
    }

    /// An older Postgres comes back. New orders take the free numbers before any replica reads the
    /// epoch. Then the publisher publishes everything again, as docs/backup.md requires.
    async fn finish(mut self) {
        self.network.mend();
        let mut publisher = self.world.publisher().await;
        publisher.publish_until_confirmed(&self.parts[2]).await;
        publisher.publish_until_confirmed(&self.parts[0]).await;
        publisher.publish_until_confirmed(&self.parts[1]).await;
        let last: Vec<_> = (0..MERCHANTS)
            .map(|number| Event::new(LAST_EVENT, &name(number), "{}"))
            .collect();
        publisher.publish_until_confirmed(&last).await;

        let all = async {
            while let Some(diary) = self.merchants.join_next().await {
                let Diary { merchant, places } = diary.expect("a merchant's diary is in order");
                let arrived: BTreeSet<_> = places.into_values().collect();
                let missing: Vec<_> = self.published[&merchant].difference(&arrived).collect();
                assert!(
                    missing.is_empty(),
                    "{merchant} never got {} orders: {missing:?}",
                    missing.len()
                );
            }
        };
        timeout(BOUND, all)
            .await
            .expect("every merchant gets its last event in time");
        self.world.finish().await;
    }
}

async fn start_one(world: &World) -> Replica {
    world
        .replica()
        .with("SHOPBELL_HEARTBEAT_SECONDS", 5)
        .start()
        .await
}

fn name(number: usize) -> String {
    format!("merchant-{number}")
}

/// All events of a merchant.
struct Diary {
    merchant: String,
    /// The id of the event at each place: an epoch and a number.
    places: BTreeMap<(String, u64), String>,
}

/// Reads and acknowledges, over as many sessions as needed, until the last event arrives.
async fn follow(
    handshake: Handshake,
    merchant: String,
    mut replicas: impl Iterator<Item = Replica>,
) -> Diary {
    let mut diary = Diary {
        merchant,
        places: BTreeMap::new(),
    };
    loop {
        let replica = replicas.next().expect("they go round");
        if let Ok(mut session) = handshake.try_connect(replica.public()).await {
            match read_on(&mut session, &mut diary).await {
                Ok(()) => return diary,
                Err(closed) => {
                    let again = [1001, 1006, 1011, 1012, 1013].contains(&closed.code)
                        || (4000..4500).contains(&closed.code);
                    assert!(again, "{} was closed for good: {closed:?}", diary.merchant);
                }
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Records an event. A place holds one event for ever, and an event has one place in each epoch.
async fn read_on(session: &mut Merchant, diary: &mut Diary) -> Result<(), Closed> {
    let Diary { merchant, places } = diary;
    let feed = session
        .welcome()
        .feeds
        .iter()
        .find(|feed| feed.feed == *merchant)
        .expect("the own feed is read");
    let epoch = feed.epoch.clone();
    loop {
        let Frame::Notification(notification) = session.next_frame().await? else {
            continue;
        };
        let before = places.insert((epoch.clone(), notification.seq), notification.id.clone());
        let same = before.is_none_or(|before| before == notification.id);
        assert!(
            same,
            "{merchant}: number {} of epoch {epoch} was another event before",
            notification.seq
        );
        session.ack(merchant, notification.seq).await;
        if notification.event == LAST_EVENT {
            // The server has stored the ack before it replies.
            session.ping().await;
            return Ok(());
        }
    }
}

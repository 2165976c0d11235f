//! Merchants that reconnect whenever they can, and record each received event.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::it::support::{Closed, Event, Frame, Handshake, Merchant, Replica, World};

/// Merchants.
const MERCHANTS: u64 = 200;
/// Events for each merchant.
const EVENTS_PER_MERCHANT: u64 = 100;
/// All events.
pub const EVENTS: u64 = MERCHANTS * EVENTS_PER_MERCHANT;
/// Longest pause before a client without a session tries again. Each has a pace of its own.
const RECONNECT_MS: std::ops::Range<u64> = 300..1_000;

/// All merchants, each on a task of its own, and their events.
pub struct Crowd {
    merchants: Vec<JoinHandle<BTreeMap<u64, String>>>,
    /// The ids of each merchant's events, in publishing order.
    published: Vec<Vec<String>>,
}

impl Crowd {
    /// Starts every merchant, spread over the replicas. Returns the events to publish, mixed at
    /// random.
    pub fn connect(world: &World, replicas: &[Replica], random: &mut Rng) -> (Self, Vec<Event>) {
        let mut recipients: Vec<_> = (0..EVENTS).map(|number| number % MERCHANTS).collect();
        random.shuffle(&mut recipients);
        let mut published = vec![Vec::new(); MERCHANTS as usize];
        let order = |recipient: &u64| {
            let event = Event::order(&name(*recipient));
            published[*recipient as usize].push(event.event_id().to_owned());
            event
        };
        let events = recipients.iter().map(order).collect();
        let follow_one = |number| {
            let replicas = Vec::from(replicas)
                .into_iter()
                .cycle()
                .skip(number as usize);
            tokio::spawn(follow(
                world.merchant(&name(number)),
                number,
                replicas,
                random.fork(),
            ))
        };
        (
            Self {
                merchants: (0..MERCHANTS).map(follow_one).collect(),
                published,
            },
            events,
        )
    }

    /// Waits until every merchant has its whole share, each event once, and nothing more is stored.
    pub async fn satisfied(self, world: &World, bound: Duration) {
        let all = async {
            for (merchant, published) in self.merchants.into_iter().zip(self.published) {
                let arrived = merchant.await.expect("a merchant's counters are in order");
                let arrived: Vec<_> = arrived.into_values().collect();
                assert_eq!(arrived, published);
            }
        };
        timeout(bound, all)
            .await
            .expect("every merchant gets its whole share in time");
        for number in 0..MERCHANTS {
            world
                .expect_stored(&name(number), EVENTS_PER_MERCHANT)
                .await;
        }
    }
}

fn name(number: u64) -> String {
    format!("merchant-{number}")
}

/// Reads and acknowledges, over as many sessions as needed, until the whole share is acknowledged.
/// Returns the id of each number. A repeated number must have the same id.
async fn follow(
    handshake: Handshake,
    number: u64,
    mut replicas: impl Iterator<Item = Replica>,
    mut random: Rng,
) -> BTreeMap<u64, String> {
    let (feed, mut acked, mut ids) = (name(number), 0, BTreeMap::new());
    let mut pace = interval(Duration::from_millis(random.u64(RECONNECT_MS)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while acked < EVENTS_PER_MERCHANT {
        pace.tick().await;
        let replica = replicas.next().expect("they go round");
        let Ok(mut merchant) = handshake.try_connect(replica.public()).await else {
            continue;
        };
        let state = merchant
            .welcome()
            .feeds
            .iter()
            .find(|state| state.feed == feed)
            .expect("the own feed is read");
        assert!(
            state.cursor <= acked,
            "{feed}: {acked} acknowledged, but the replay starts after {}",
            state.cursor
        );
        if let Err(closed) = read_on(&mut merchant, &feed, &mut acked, &mut ids, &mut random).await
        {
            let reconnect = [1001, 1006, 1011, 1012, 1013].contains(&closed.code)
                || (4000..4500).contains(&closed.code);
            assert!(reconnect, "{feed} was closed for good: {closed:?}");
        }
    }
    ids
}

/// Reads until the whole share has arrived, with an ack now and then.
async fn read_on(
    merchant: &mut Merchant,
    feed: &str,
    acked: &mut u64,
    ids: &mut BTreeMap<u64, String>,
    random: &mut Rng,
) -> Result<(), Closed> {
    while merchant.through(feed) < EVENTS_PER_MERCHANT {
        if let Frame::Notification(notification) = merchant.next_frame().await? {
            let id = ids
                .entry(notification.seq)
                .or_insert_with(|| notification.id.clone());
            assert_eq!(
                *id, notification.id,
                "{feed}: {} was another event before",
                notification.seq
            );
            if random.u8(..4) == 0 {
                merchant.ack(feed, notification.seq).await;
                *acked = notification.seq.max(*acked);
            }
        }
    }
    merchant.ack(feed, EVENTS_PER_MERCHANT).await;
    *acked = EVENTS_PER_MERCHANT;
    Ok(())
}

//! Merchants who stay connected as well as they can, and keep their own books.

use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::it::support::{Closed, Event, Frame, Handshake, Merchant, World};

/// How many merchants there are.
const MERCHANTS: u64 = 200;
/// How many events each of them gets.
const EVENTS_PER_MERCHANT: u64 = 100;
/// How many events there are.
pub const EVENTS: u64 = MERCHANTS * EVENTS_PER_MERCHANT;
/// How often a client that has no session tries to connect, each at a pace of its own.
const RECONNECT_MS: std::ops::Range<u64> = 300..1_000;

/// All merchants, each on a task of its own.
pub struct Crowd {
    merchants: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Every merchant begins to connect.
    pub fn connect(world: &World, address: SocketAddr, random: &mut Rng) -> Self {
        let follow_one = |number| tokio::spawn(follow(world.merchant(&name(number)), number, address, random.fork()));
        Self { merchants: (0..MERCHANTS).map(follow_one).collect() }
    }

    /// What is to be published: every merchant's share, in an order of nobody's choosing.
    pub fn events(&self, random: &mut Rng) -> Vec<Event> {
        let mut recipients: Vec<_> = (0..EVENTS).map(|number| name(number % MERCHANTS)).collect();
        random.shuffle(&mut recipients);
        recipients.iter().map(|recipient| Event::order(recipient)).collect()
    }

    /// Waits until every merchant has had its whole share; nothing more is stored than that.
    pub async fn satisfied(self, world: &World, bound: Duration) {
        let all = async {
            for merchant in self.merchants {
                merchant.await.expect("a merchant's books are in order");
            }
        };
        timeout(bound, all).await.expect("every merchant gets its whole share in time");
        for number in 0..MERCHANTS {
            world.expect_stored(&name(number), EVENTS_PER_MERCHANT).await;
        }
    }
}

fn name(number: u64) -> String {
    format!("merchant-{number}")
}

/// Reads and acknowledges, over as many sessions as it takes, until the whole share is acknowledged.
async fn follow(handshake: Handshake, number: u64, address: SocketAddr, mut random: Rng) {
    let (feed, mut acked) = (name(number), 0);
    let mut pace = interval(Duration::from_millis(random.u64(RECONNECT_MS)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while acked < EVENTS_PER_MERCHANT {
        pace.tick().await;
        let Ok(mut merchant) = handshake.try_connect(address).await else { continue };
        let state = merchant.welcome().feeds.iter().find(|state| state.feed == feed).expect("the own feed is read");
        assert!(state.cursor <= acked, "{feed}: {acked} acknowledged, but the replay starts after {}", state.cursor);
        if let Err(closed) = read_on(&mut merchant, &feed, &mut acked, &mut random).await {
            let reconnect =
                [1001, 1006, 1011, 1012, 1013].contains(&closed.code) || (4000..4500).contains(&closed.code);
            assert!(reconnect, "{feed} is told not to come back: {closed:?}");
        }
    }
}

/// Reads until the whole share is there, and acknowledges now and then.
async fn read_on(merchant: &mut Merchant, feed: &str, acked: &mut u64, random: &mut Rng) -> Result<(), Closed> {
    while merchant.through(feed) < EVENTS_PER_MERCHANT {
        if let Frame::Notification(notification) = merchant.next_frame().await?
            && random.u8(..4) == 0
        {
            merchant.ack(feed, notification.seq).await;
            *acked = notification.seq.max(*acked);
        }
    }
    merchant.ack(feed, EVENTS_PER_MERCHANT).await;
    *acked = EVENTS_PER_MERCHANT;
    Ok(())
}

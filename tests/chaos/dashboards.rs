//! Dashboards that stay open: they come back when they are told to, acknowledge all that they get, and keep a diary.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::it::support::{Closed, Frame, Handshake, Merchant, Notification, World};

/// The last event of a feed: who has it closes.
pub const LAST_EVENT: &str = "shop.closed";
/// An ack that a replica had this long to store is not forgotten when it leaves.
const ACK_BOUND: Duration = Duration::from_secs(1);
/// How long a dashboard waits that was not let in.
const RETRY: Duration = Duration::from_secs(1);

/// All dashboards of some merchants, each on a task of its own, which ends with this.
pub struct Dashboards(JoinSet<Diary>);

/// What one dashboard lived through.
#[derive(Debug, Default)]
pub struct Diary {
    /// The merchant's feed.
    pub feed: String,
    /// The ids of the events, from the first number on.
    pub ids: Vec<String>,
    /// When each of them was acknowledged last.
    acked: Vec<Instant>,
    /// How many came again in a later session, because the ack came too late.
    pub repeated: u64,
    /// Each time that a replica sent it away.
    pub moves: Vec<Move>,
    /// How many sessions it had.
    pub sessions: usize,
    /// What came instead of a welcome.
    pub refusals: Vec<String>,
}

/// From one replica to another.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// When the close came.
    pub closed: Instant,
    /// After which time it was told to come back.
    pub retry_after: Duration,
    /// When it was welcomed again.
    pub back: Instant,
}

impl Dashboards {
    /// Every merchant begins to open as many dashboards at `address`, each a device with a cursor of its own.
    pub fn open(world: &World, address: SocketAddr, merchants: &[String], devices: usize) -> Self {
        let mut open = JoinSet::new();
        for merchant in merchants {
            let handshake = world.merchant(merchant);
            for device in 1..=devices {
                let handshake = handshake.clone().device(&format!("device-{device}"));
                open.spawn(follow(handshake, address, merchant.clone()));
            }
        }
        Self(open)
    }

    /// Waits until each has its feed's last event and has left; gives the diaries. Panics at once where one is not in order.
    pub async fn closed(mut self, bound: Duration) -> Vec<Diary> {
        let mut diaries = Vec::new();
        let all = async {
            while let Some(diary) = self.0.join_next().await {
                diaries.push(diary.expect("a dashboard's diary is in order"));
            }
        };
        let in_time = timeout(bound, all).await;
        assert!(
            in_time.is_ok(),
            "{} dashboards are open after {bound:?}, and did not get the last event",
            self.0.len()
        );
        diaries
    }
}

impl Diary {
    /// A notification came, and is about to be acknowledged.
    fn take(&mut self, notification: &Notification) {
        let feed = &self.feed;
        let place = notification.seq as usize - 1;
        match self.ids.get(place) {
            None => {
                assert_eq!(
                    place,
                    self.ids.len(),
                    "{feed}: a number is missing before {notification:?}"
                );
                self.ids.push(notification.id.clone());
                self.acked.push(Instant::now());
            }
            Some(id) => {
                assert_eq!(
                    *id, notification.id,
                    "{feed}: {} was another event before",
                    notification.seq
                );
                let closed = self
                    .moves
                    .last()
                    .expect("no session repeats anything")
                    .closed;
                let had = closed.saturating_duration_since(self.acked[place]);
                assert!(
                    had < ACK_BOUND,
                    "{feed}: acknowledged {had:?} before the close: {notification:?}"
                );
                self.acked[place] = Instant::now();
                self.repeated += 1;
            }
        }
    }
}

/// Reads and acknowledges, over as many sessions as it takes, until the last event is there.
async fn follow(handshake: Handshake, address: SocketAddr, feed: String) -> Diary {
    let mut diary = Diary {
        feed,
        ..Diary::default()
    };
    let mut left: Option<(Instant, Duration)> = None;
    loop {
        let mut merchant = match handshake.try_connect(address).await {
            Ok(merchant) => merchant,
            Err(instead) => {
                diary.refusals.push(instead);
                sleep(RETRY).await;
                continue;
            }
        };
        diary.sessions += 1;
        if let Some((closed, retry_after)) = left {
            diary.moves.push(Move {
                closed,
                retry_after,
                back: Instant::now(),
            });
        }
        match read_on(&mut merchant, &mut diary).await {
            Ok(()) => {
                merchant.leave().await;
                return diary;
            }
            Err(retry_after) => {
                left = Some((Instant::now(), retry_after));
                sleep(retry_after).await;
            }
        }
    }
}

/// Reads to the last event, or until it is sent away: gives the time after which to come back.
async fn read_on(merchant: &mut Merchant, diary: &mut Diary) -> Result<(), Duration> {
    let feed = diary.feed.clone();
    let mut goaway = None;
    loop {
        match merchant.next_frame().await {
            Ok(Frame::Notification(notification)) => {
                diary.take(&notification);
                merchant.ack(&feed, notification.seq).await;
                if notification.event == LAST_EVENT {
                    return Ok(());
                }
            }
            Ok(Frame::Goaway(said)) => goaway = Some(said.retry_after_ms),
            Ok(Frame::Skipped(skipped)) => panic!("{feed}: nothing is to be skipped: {skipped:?}"),
            Ok(_) => {}
            Err(closed) => {
                let going_away = Closed {
                    code: 1012,
                    word: Some("going_away".to_owned()),
                    retry_after_ms: goaway,
                };
                assert!(
                    goaway.is_some() && closed == going_away,
                    "{feed}: after goaway {goaway:?} came {closed:?}"
                );
                return Err(Duration::from_millis(goaway.unwrap_or_default()));
            }
        }
    }
}

//! Dashboards that stay open: they reconnect as the server asks, acknowledge everything, and keep a
//! diary.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::it::support::{Closed, Frame, Handshake, Merchant, Notification, World};

/// The last event of a feed. A dashboard that receives it closes.
pub const LAST_EVENT: &str = "shop.closed";
/// If a replica had this long to store an ack, it must not be lost.
const ACK_BOUND: Duration = Duration::from_secs(1);
/// Pause of a dashboard after a failed attempt.
const RETRY: Duration = Duration::from_secs(1);

/// All dashboards of some merchants, each on a task of its own. They end if this is dropped.
pub struct Dashboards(JoinSet<Diary>);

/// The diary of one dashboard.
#[derive(Debug, Default)]
pub struct Diary {
    /// The merchant's feed.
    pub feed: String,
    /// The ids of the events, from the first number on.
    pub ids: Vec<String>,
    /// The time of the last ack of each event.
    acked: Vec<Instant>,
    /// Events that arrived again in a later session, because the ack came too late.
    pub repeated: u64,
    /// Each close by a replica.
    pub moves: Vec<Move>,
    /// Sessions.
    pub sessions: usize,
    /// Results of attempts without a welcome.
    pub refusals: Vec<String>,
}

/// A move from one replica to another.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// The time of the close.
    pub closed: Instant,
    /// The pause that the close asked for.
    pub retry_after: Duration,
    /// The time of the next welcome.
    pub back: Instant,
}

impl Dashboards {
    /// Opens this many dashboards for each merchant at `address`, each as a device with its own
    /// cursor.
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

    /// Waits until each dashboard has the last event of its feed and has closed. Returns the
    /// diaries. Panics at once if one is out of order.
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
    /// Records a notification before its ack.
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

/// Reads and acknowledges, over as many sessions as needed, until the last event arrives.
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

/// Reads until the last event or a close. Returns the pause that the close asks for.
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
            Ok(Frame::Goaway(goodbye)) => goaway = Some(goodbye.retry_after_ms),
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

//! The merchants of a run and their devices, drawn from the seed.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::{Value, json};

use super::history::secret;

/// The feed that everyone reads.
pub const BROADCAST_FEED: &str = "all";
/// The start of the names of the clients of a reconnect herd.
pub const HERD: &str = "herd-";
/// Merchants.
const MERCHANTS: usize = 200;
/// Subscribers that read the feeds of several merchants.
const CHAINS: usize = 4;
/// Feeds of each of them.
const CHAIN_FEEDS: usize = 3;

/// All merchants and devices.
pub struct Population {
    pub merchants: Vec<Merchant>,
    pub devices: Vec<Device>,
}

pub struct Merchant {
    pub feed: String,
    /// In the data of each of its events.
    pub secret: String,
    /// The sum of the shares up to this merchant, between 0 and 1.
    share_end: f64,
}

/// One device of one subscriber, with one session at a time.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name in the history.
    pub name: String,
    pub subscriber: String,
    /// The parameter `device` of the handshake; `None` for the device without a name.
    pub device: Option<String>,
    /// The feeds that the token names. The broadcast feed is readable too.
    pub feeds: Vec<String>,
    pub temper: Temper,
}

/// The behaviour of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// Stays connected.
    Steady,
    /// Reads slowly.
    Slow,
    /// Acknowledges so rarely that its window fills.
    Hoarding,
    /// Leaves and returns.
    Flapping,
    /// Has one short session, and returns when the load has ended.
    Away,
    /// Never connects.
    Offline,
}

impl Population {
    /// The shares follow Zipf's law: the first merchant has as many events as the second and third
    /// together, nearly.
    pub fn draw(random: &mut Rng) -> Self {
        let total: f64 = (1..=MERCHANTS).map(|rank| 1.0 / rank as f64).sum();
        let mut share_end = 0.0;
        let merchants: Vec<_> = (1..=MERCHANTS)
            .map(|rank| {
                share_end += 1.0 / rank as f64 / total;
                Merchant {
                    feed: format!("merchant-{rank}"),
                    secret: secret(random),
                    share_end,
                }
            })
            .collect();
        let mut devices = Vec::new();
        for (rank, merchant) in merchants.iter().enumerate() {
            let temper = Temper::draw(rank, random);
            let names: &[Option<&str>] = match random.u8(..10) {
                _ if temper == Temper::Offline => &[None],
                0 => &[None, Some("till"), Some("kitchen")],
                1 | 2 => &[Some("till"), Some("office")],
                _ => &[None],
            };
            for name in names {
                devices.push(Device {
                    name: format!("{}/{}", merchant.feed, name.unwrap_or("-")),
                    subscriber: merchant.feed.clone(),
                    device: name.map(str::to_owned),
                    feeds: vec![merchant.feed.clone()],
                    temper,
                });
            }
        }
        for chain in 0..CHAINS {
            let feeds = (0..CHAIN_FEEDS).map(|place| {
                let rank = chain * CHAIN_FEEDS + place;
                merchants[rank * 7 % MERCHANTS].feed.clone()
            });
            devices.push(Device {
                name: format!("chain-{chain}/-"),
                subscriber: format!("chain-{chain}"),
                device: None,
                feeds: feeds.collect(),
                temper: match chain {
                    // It reads the greatest merchant, and so enough to fill its window.
                    0 => Temper::Hoarding,
                    // The other devices of the same merchants acknowledge meanwhile.
                    1 | 2 => Temper::Away,
                    _ => Temper::Steady,
                },
            });
        }
        Self { merchants, devices }
    }

    /// A merchant, by its share.
    pub fn pick(&self, random: &mut Rng) -> &Merchant {
        let at = random.f64();
        let place = self
            .merchants
            .partition_point(|merchant| merchant.share_end < at);
        &self.merchants[place.min(MERCHANTS - 1)]
    }

    /// The content of `secrets.json`.
    pub fn secrets(&self) -> Value {
        let by_feed: BTreeMap<_, _> = self
            .merchants
            .iter()
            .map(|merchant| (&merchant.feed, &merchant.secret))
            .collect();
        json!(by_feed)
    }

    /// The content of `devices.json`.
    pub fn description(&self) -> Value {
        let device = |device: &Device| {
            let mut feeds = device.feeds.clone();
            feeds.push(BROADCAST_FEED.to_owned());
            json!({
                "device": device.name,
                "subscriber": device.subscriber,
                "stored_as": device.device.as_deref().unwrap_or_default(),
                "feeds": feeds,
                "offline": device.temper == Temper::Offline,
            })
        };
        self.devices.iter().map(device).collect()
    }
}

impl Temper {
    /// The greatest merchants stay connected, because a slow one of them would never catch up.
    fn draw(rank: usize, random: &mut Rng) -> Self {
        match random.u8(..100) {
            0..15 => Self::Offline,
            15..30 => Self::Flapping,
            30..40 if rank >= 20 => Self::Slow,
            _ => Self::Steady,
        }
    }
}

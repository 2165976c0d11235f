//! A device: it connects whenever it can, and behaves as its temper.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{sleep, timeout};

use super::population::{Device, Temper};
use super::session::{Session, Stay};
use super::stage::{Phase, REPLICAS, Stage};
use crate::it::support::Handshake;

/// Bound of a handshake, and the pause after a failed one or a lost session.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(8);
const PAUSE_MS: std::ops::Range<u64> = 200..1_000;
/// Length of a session that flaps, and of the pause after it.
const FLAP_MS: std::ops::Range<u64> = 500..6_000;
const AWAY_MS: std::ops::Range<u64> = 100..4_000;
/// Length of the only session that a device has before it is away for the rest of the load. It is long enough for
/// its first ack.
const VISIT: Duration = Duration::from_secs(8);

/// Lives until the run is finishing and the device has received the counts.
pub async fn live(stage: Arc<Stage>, device: Device, mut random: Rng) {
    if device.temper == Temper::Offline {
        return;
    }
    let mut phase = stage.phase();
    let mut number = 0;
    loop {
        let replica = random.usize(..REPLICAS);
        let address = stage.doors[replica].address();
        let handshake = handshake(&stage, &device);
        let opened = timeout(HANDSHAKE_BOUND, handshake.open(address)).await;
        let Ok(Ok((welcome, socket))) = opened else {
            sleep(Duration::from_millis(random.u64(PAUSE_MS))).await;
            continue;
        };
        number += 1;
        let name = format!("{}#{number}", device.name);
        let stay = Stay {
            slow: device.temper == Temper::Slow,
            hoards: device.temper == Temper::Hoarding,
            length: match device.temper {
                Temper::Flapping => Some(Duration::from_millis(random.u64(FLAP_MS))),
                Temper::Away => Some(VISIT),
                _ => None,
            },
        };
        let session = Session::new(&stage, name, &device, replica, &welcome, socket);
        if session.live(stay, &mut random, &mut phase).await {
            return;
        }
        if device.temper == Temper::Away {
            // The sender lives as long as the stage.
            phase.wait_for(|phase| *phase >= Phase::Draining).await.ok();
        }
        let pause = match device.temper {
            Temper::Flapping if *phase.borrow() == Phase::Running => random.u64(AWAY_MS),
            _ => random.u64(PAUSE_MS),
        };
        sleep(Duration::from_millis(pause)).await;
    }
}

fn handshake(stage: &Stage, device: &Device) -> Handshake {
    let token = stage.world.token(&device.subscriber);
    let token = token.feed_list(device.feeds.clone());
    let handshake = Handshake::new(&device.subscriber, &token);
    match &device.device {
        Some(name) => handshake.device(name),
        None => handshake,
    }
}

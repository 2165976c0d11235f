//! A RabbitMQ that works and does not let Shopbell work: alarms, closed connections, changed queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::{effects, postgres, queues};
use crate::campaign::load::BAD_PERMILLE;
use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::Stage;

/// The share of bad events before an alarm with poison, and the time to publish them.
const POISON_PERMILLE: u16 = 150;
const POISON_TIME: Duration = Duration::from_secs(1);
/// The limit of the memory in the configuration of `scripts/services` is higher.
const MEMORY_BOUND: &str = "0.5";
/// A storm: acks are lost for this long, then the connections end, and so on.
const STORM_MS: std::ops::Range<u64> = 150..500;
/// RabbitMQ checks the timeout of consumers at each tick. Only new channels read both, so every
/// connection is closed. One call, because each takes seconds.
const SHORT_TIMEOUT: &str = "application:set_env(rabbit, consumer_timeout, 3000), \
     application:set_env(rabbit, channel_tick_interval, 1000), \
     [rabbit_networking:close_connection(C, \"chaos\") || C <- rabbit_networking:connections()].";
/// The defaults.
const LONG_TIMEOUT: &str = "application:set_env(rabbit, consumer_timeout, 1800000), \
     application:set_env(rabbit, channel_tick_interval, 60000), \
     [rabbit_networking:close_connection(C, \"chaos\") || C <- rabbit_networking:connections()].";

/// A memory alarm blocks every publisher. With poison, ingest has dead letters meanwhile.
pub fn memory_alarm(stage: &Arc<Stage>, poison: bool) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["rabbitmq".to_owned()],
        target: "a memory alarm".to_owned() + if poison { " with poison" } else { "" },
        total: false,
        begin: async move {
            if poison {
                stage.load.set_bad(POISON_PERMILLE);
                sleep(POISON_TIME).await;
            }
            stage.services.set_memory_bound("0").await;
            End::by(async move {
                let blocked = stage.load.blocked();
                stage.services.set_memory_bound(MEMORY_BOUND).await;
                stage.load.set_bad(BAD_PERMILLE);
                blocked
            })
        }
        .boxed(),
    }
}

/// RabbitMQ closes every connection.
pub fn close_connections(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, times) = (Arc::clone(stage), random.usize(1..=2));
    Plan {
        hits: vec!["rabbitmq".to_owned()],
        target: format!("all connections are closed, {times} times"),
        total: false,
        begin: async move {
            let address = stage.to_rabbitmq.address();
            let before = effects::connections(address);
            for _ in 0..times {
                let close = ["close_all_connections", "chaos"];
                stage.services.rabbitmqctl(close).await;
            }
            End::by(async move { effects::gone(&before, address) })
        }
        .boxed(),
    }
}

/// Ingest holds its deliveries for longer than RabbitMQ allows, so RabbitMQ closes the channel.
pub fn consumer_timeout(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["rabbitmq".to_owned(), "postgres".to_owned()],
        target: "feeds are locked for longer than the consumer timeout".to_owned(),
        total: false,
        begin: async move {
            stage.services.rabbitmqctl(["eval", SHORT_TIMEOUT]).await;
            let lock = postgres::take(&stage, postgres::TABLE_LOCK).await;
            let address = stage.to_rabbitmq.address();
            let before = effects::connections(address);
            End::by(async move {
                // A replica closes the connection of a channel that RabbitMQ closed.
                let closed = effects::gone(&before, address);
                lock.release().await;
                stage.services.rabbitmqctl(["eval", LONG_TIMEOUT]).await;
                closed
            })
        }
        .boxed(),
    }
}

/// Acks of deliveries are lost and connections end, again and again.
pub fn redelivery_storm(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, mut random) = (Arc::clone(stage), random.fork());
    Plan {
        hits: vec!["rabbitmq".to_owned(), "network".to_owned()],
        target: "a storm of redeliveries".to_owned(),
        total: false,
        begin: async move {
            let (stormy, broken) = (Arc::clone(&stage), Arc::new(AtomicU64::new(0)));
            let counted = Arc::clone(&broken);
            let storm = tokio::spawn(async move {
                loop {
                    // Long enough for a new connection and its deliveries.
                    sleep(Duration::from_millis(2 * random.u64(STORM_MS))).await;
                    stormy.to_rabbitmq.stall_upstream();
                    sleep(Duration::from_millis(random.u64(STORM_MS))).await;
                    let cut = effects::count(&effects::connections(stormy.to_rabbitmq.address()));
                    counted.fetch_add(cut, Ordering::Relaxed);
                    stormy.to_rabbitmq.cut();
                    stormy.to_rabbitmq.mend();
                }
            });
            End::by(async move {
                storm.abort();
                storm.await.ok();
                stage.to_rabbitmq.mend();
                broken.load(Ordering::Relaxed)
            })
        }
        .boxed(),
    }
}

/// The ingest queue is deleted while it is empty. With `wrong`, a queue with other arguments takes
/// its name until an operator deletes it. The events meanwhile go to the queue `unroutable`, and an
/// operator moves them back (docs/runbook.md, ShopbellUnroutable).
pub fn queue_deleted(stage: &Arc<Stage>, wrong: bool) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["rabbitmq".to_owned(), "postgres".to_owned()],
        target: match wrong {
            true => "the ingest queue is declared with other arguments",
            false => "the ingest queue is deleted",
        }
        .to_owned(),
        total: false,
        begin: async move {
            // Otherwise the deletion would lose confirmed events.
            if !stage.load.pause_until_stored(&stage.pool).await {
                stage
                    .history
                    .say("the load does not pause: no queue is deleted");
                stage.load.resume();
                return End::by(async { 0 });
            }
            queues::delete(&stage, wrong).await;
            stage.load.resume();
            End::by(async move {
                queues::repair(&stage, wrong).await;
                1
            })
        }
        .boxed(),
    }
}

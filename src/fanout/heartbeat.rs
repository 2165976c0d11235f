//! Publishes the heartbeats of this process: the numbers of its streams, at an interval.
//!
//! So the other gateways notice that the last hint of a stream was lost, and that a process has
//! ended between a commit and its hint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Fanout;
use super::announcement::Announcement;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::amqp::{Broker, BrokerError};

/// Interval of heartbeats in a small cluster. Lost hints are found after about this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval after hints or a heartbeat that RabbitMQ did not confirm.
const INTERVAL_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// Longest interval.
const INTERVAL_MAX: Duration = Duration::from_secs(15);
/// Gateways for which the interval is not longer. Each process publishes to each gateway, so their
/// cost grows with the square.
const GATEWAYS_PER_INTERVAL: u32 = 20;
/// Longest wait for RabbitMQ to connect, or to confirm a heartbeat.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of a command, which connects first.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Publishes heartbeats.
#[derive(Debug)]
pub struct Heartbeat {
    fanout: Arc<Fanout>,
    publisher: Publisher,
}

impl Heartbeat {
    /// Publishes through `publisher`.
    pub fn new(fanout: Arc<Fanout>, publisher: Publisher) -> Self {
        Self { fanout, publisher }
    }

    /// Publishes until `stop`, and takes leave then.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut every, mut was_refused) = (INTERVAL, false);
        loop {
            let begun = Instant::now();
            let beat = Announcement::Heartbeat {
                every_ms: u64::try_from(every.as_millis()).unwrap_or(u64::MAX),
                numbers: self.fanout.streams.settled(),
            };
            let published = self.publish(&beat).await;
            self.fanout.published(&published);
            match &published {
                Ok(()) => self.fanout.heard().confirmed(begun),
                Err(error) if !was_refused => {
                    tracing::warn!(%error, "RabbitMQ does not take heartbeats; gateways read the newest numbers");
                }
                Err(_) => {}
            }
            was_refused = published.is_err();
            if stop
                .run_until_cancelled(self.next(begun, every))
                .await
                .is_none()
            {
                break;
            }
            if let Ok(gateways) = self.publisher.count_gateways(TIMEOUT).await {
                every = interval(gateways);
            }
        }
        let farewell = Announcement::Farewell {
            numbers: self.fanout.streams.settled(),
        };
        if let Err(error) = self.publish(&farewell).await {
            tracing::warn!(%error, "RabbitMQ does not take the last heartbeat; gateways find the end of this process by its silence");
        }
        self.publisher.close().await;
    }

    /// Waits for the time of the next heartbeat. After a failure, it is due early. While RabbitMQ has an
    /// alarm, it is due at the end of the alarm, so that its state is known again at once.
    async fn next(&self, begun: Instant, every: Duration) {
        let after = |pause: Duration| tokio::time::sleep(pause.saturating_sub(begun.elapsed()));
        tokio::select! {
            () = after(every) => {}
            () = self.fanout.refused.notified() => {
                self.publisher.unblocked().await;
                after(INTERVAL_AFTER_FAILURE).await;
            }
        }
    }

    async fn publish(&mut self, announcement: &Announcement) -> Result<(), BrokerError> {
        let Fanout {
            exchange, replica, ..
        } = &*self.fanout;
        let message = Outgoing::heartbeat(exchange.clone(), replica, announcement.encode());
        self.publisher.try_publish(TIMEOUT, message).await
    }
}

/// Makes every gateway read the newest numbers, because a command has changed feeds without hints.
///
/// It is the only message of a process that nobody has heard.
///
/// # Errors
/// RabbitMQ does not take it.
pub async fn announce_changes(broker: &Broker) -> Result<(), BrokerError> {
    let farewell = Announcement::Farewell {
        numbers: Vec::new(),
    };
    let process = uuid::Uuid::new_v4().simple().to_string();
    let message = Outgoing::heartbeat(broker.names.fanout(), &process, farewell.encode());
    let mut publisher = Publisher::lazy(broker);
    let published = publisher.try_publish(COMMAND_TIMEOUT, message).await;
    publisher.close().await;
    published
}

/// The interval of heartbeats with this number of gateways.
fn interval(gateways: u32) -> Duration {
    (INTERVAL * gateways / GATEWAYS_PER_INTERVAL).clamp(INTERVAL, INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_gateways_make_the_interval_longer() {
        for (gateways, seconds) in [(0, 1), (1, 1), (20, 1), (100, 5), (1_000, 15)] {
            assert_eq!(interval(gateways).as_secs(), seconds, "{gateways}");
        }
    }
}

//! The relay: reads rows, publishes them with confirms, removes the confirmed ones.
//!
//! One relay is active, and others stand by. If two are active for a moment, because the connection of
//! one broke unnoticed, each still publishes a recipient's rows in order from the oldest one. Shopbell
//! stores the first copy of each, so the order stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use tokio_util::sync::CancellationToken;

use super::OutboxError;
use super::database::Database;
use super::listener::Listener;
use super::row::Row;
use super::state::{Duty, Publishing, State};
use crate::amqp::publisher::ordered::Keyed;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::amqp::{Broker, BrokerError};
use crate::retry::{Backoff, sleep};
use crate::telemetry::labels::RelayFailure;
use crate::telemetry::metrics::RelayMetrics;

/// Interval in which a standby tries to become active.
const TAKEOVER_INTERVAL: Duration = Duration::from_secs(1);
/// Longest sleep. A notification can be lost, and then a row waits this long.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// After the last row, the relay polls for this time without notifications. So transactions of a busy
/// shop send none.
const LINGER: Duration = Duration::from_millis(500);
/// Interval of these polls.
const LINGER_INTERVAL: Duration = Duration::from_millis(20);

/// Publishes the rows of an outbox.
#[derive(Debug)]
pub struct Relay {
    /// The shop's Postgres.
    pub options: PgConnectOptions,
    /// The RabbitMQ of Shopbell.
    pub broker: Broker,
    /// Most rows that are read and published together.
    pub rows_max: i64,
    /// Reported by the operations port.
    pub state: Arc<State>,
    /// Counts rows and failures.
    pub metrics: Arc<RelayMetrics>,
}

impl Relay {
    /// Publishes until `stop`, then ends its batch.
    pub async fn run(self, stop: CancellationToken) {
        let mut publisher = Publisher::lazy(&self.broker);
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let opened = Database::open(&self.options).await;
            let served = match opened {
                Ok(mut database) => {
                    backoff.reset();
                    let served = self.serve(&mut database, &mut publisher, &stop).await;
                    database.close().await;
                    served
                }
                Err(error) => Err(error),
            };
            let Err(error) = served else { break };
            let wait = backoff.next_wait();
            self.metrics.failures.inc(RelayFailure::Database);
            self.state.lost_the_outbox(error.to_string());
            tracing::warn!(%error, wait_ms = wait.as_millis(), "the relay lost the outbox; it connects again after a wait");
            sleep(wait, &stop).await;
        }
        publisher.close().await;
    }

    /// Waits until no other relay is active, then publishes until `stop`.
    async fn serve(
        &self,
        database: &mut Database,
        publisher: &mut Publisher,
        stop: &CancellationToken,
    ) -> Result<(), OutboxError> {
        while !database.try_lock().await? {
            if self.state.read().0 != Duty::Standby {
                self.state.is_on(Duty::Standby);
                tracing::info!("another relay is active; this one stands by");
            }
            if !sleep(TAKEOVER_INTERVAL, stop).await {
                return Ok(());
            }
        }
        self.state.is_on(Duty::Active);
        tracing::info!("the relay is active");
        let listener = Listener::start(&self.options);
        let mut round = Round::new(self, database, publisher);
        while !stop.is_cancelled() {
            match round.run(stop).await? {
                Next::AtOnce => {}
                Next::After(wait) => _ = sleep(wait, stop).await,
                Next::WhenHeard => {
                    tokio::select! {
                        () = listener.heard() => {}
                        () = tokio::time::sleep(POLL_INTERVAL) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// When the next round begins.
enum Next {
    AtOnce,
    After(Duration),
    WhenHeard,
}

/// The rounds of an active relay: read, publish, remove.
struct Round<'a> {
    relay: &'a Relay,
    database: &'a mut Database,
    publisher: &'a mut Publisher,
    /// The last recipient that was read. The next round reads the recipients after it, so each has its
    /// turn.
    after: String,
    /// Whether publishers notify; `None` if it is unknown.
    asleep: Option<bool>,
    last_row_at: Instant,
    backoff: Backoff,
}

impl<'a> Round<'a> {
    fn new(relay: &'a Relay, database: &'a mut Database, publisher: &'a mut Publisher) -> Self {
        Self {
            relay,
            database,
            publisher,
            after: String::new(),
            asleep: None,
            last_row_at: Instant::now(),
            backoff: Backoff::default(),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<Next, OutboxError> {
        // In an alarm the rows stay in the outbox.
        if stop
            .run_until_cancelled(self.publisher.unblocked())
            .await
            .is_none()
        {
            return Ok(Next::AtOnce);
        }
        let rows = self.database.read(&self.after, self.relay.rows_max).await?;
        let Some(last) = rows.last() else {
            return self.nothing_found().await;
        };
        self.last_row_at = Instant::now();
        self.after.clone_from(&last.recipient);
        if self.asleep != Some(false) {
            self.set_asleep(false).await?;
        }
        Ok(match self.publish(rows, stop).await? {
            Ok(()) => {
                self.relay.state.published();
                Next::AtOnce
            }
            Err(error) => Next::After(self.failed(&error)),
        })
    }

    /// Begins again with the first recipient. If that finds nothing either, sleeps.
    async fn nothing_found(&mut self) -> Result<Next, OutboxError> {
        if !self.after.is_empty() {
            self.after.clear();
            return Ok(Next::AtOnce);
        }
        if self.asleep == Some(true) {
            return Ok(Next::WhenHeard);
        }
        if self.last_row_at.elapsed() < LINGER {
            return Ok(Next::After(LINGER_INTERVAL));
        }
        // A row that was committed before this is found by one more read.
        self.set_asleep(true).await?;
        Ok(Next::AtOnce)
    }

    async fn set_asleep(&mut self, asleep: bool) -> Result<(), OutboxError> {
        self.database.set_asleep(asleep).await?;
        self.asleep = Some(asleep);
        Ok(())
    }

    /// Publishes rows, and removes those that are confirmed. The inner error is one of RabbitMQ.
    async fn publish(
        &mut self,
        rows: Vec<Row>,
        stop: &CancellationToken,
    ) -> Result<Result<(), BrokerError>, OutboxError> {
        let exchange = self.relay.broker.names.events();
        let (mut ids, mut publishes) = (Vec::new(), Vec::new());
        for row in rows {
            match row.to_event() {
                Ok(body) => {
                    let (key, kind) = (row.recipient, row.event_type);
                    let outgoing = Outgoing::event(exchange.clone(), &kind, &key, body.into());
                    ids.push(row.id);
                    publishes.push(Keyed { key, outgoing });
                }
                Err(reason) => self.set_aside(row.id, &reason).await?,
            }
        }
        let published = self.publisher.publish_in_order(&publishes, stop).await;
        let confirmed = published.confirmed.iter();
        let confirmed: Vec<i64> = confirmed.filter_map(|at| ids.get(*at)).copied().collect();
        self.remove(&confirmed).await?;
        if !confirmed.is_empty() {
            self.backoff.reset();
        }
        match published.failure {
            None => Ok(Ok(())),
            Some(error) if error.refuses_a_publish() => {
                let mut suspects: Vec<_> = ids.into_iter().zip(publishes).map(Some).collect();
                for at in published.unconfirmed {
                    if let Some((id, keyed)) = suspects.get_mut(at).and_then(Option::take)
                        && let Err(error) = self.publish_alone(id, keyed, stop).await?
                    {
                        return Ok(Err(error));
                    }
                }
                Ok(Ok(()))
            }
            Some(error) => Ok(Err(error)),
        }
    }

    /// Publishes one of the rows of which RabbitMQ refused one, and sets it aside if it is this one.
    async fn publish_alone(
        &mut self,
        id: i64,
        keyed: Keyed,
        stop: &CancellationToken,
    ) -> Result<Result<(), BrokerError>, OutboxError> {
        let published = self.publisher.publish_in_order(&[keyed], stop).await;
        match published.failure {
            None if published.confirmed.is_empty() => {}
            None => self.remove(&[id]).await?,
            Some(error) if error.refuses_a_publish() => {
                self.set_aside(id, &error.to_string()).await?;
            }
            Some(error) => return Ok(Err(error)),
        }
        Ok(Ok(()))
    }

    async fn remove(&mut self, ids: &[i64]) -> Result<(), OutboxError> {
        if !ids.is_empty() {
            self.relay.metrics.published.inc_by(ids.len() as u64);
            self.database.remove(ids).await?;
        }
        Ok(())
    }

    async fn set_aside(&mut self, id: i64, reason: &str) -> Result<(), OutboxError> {
        self.relay.metrics.failures.inc(RelayFailure::Row);
        tracing::error!(
            id,
            reason,
            "a row of the outbox can never be published and is set aside"
        );
        self.database.set_aside(id, reason).await
    }

    /// Counts and logs a failure of RabbitMQ, and returns the wait after it. The rows stay in the outbox.
    fn failed(&mut self, error: &BrokerError) -> Duration {
        let state = match error {
            BrokerError::Blocked => Publishing::Blocked,
            _ => Publishing::Failing,
        };
        self.relay.state.failed(state, error.to_string());
        self.relay.metrics.failures.inc(RelayFailure::Publish);
        let wait = self.backoff.next_wait();
        tracing::warn!(%error, wait_ms = wait.as_millis(), "rows of the outbox are not published; the next attempt follows after a wait");
        wait
    }
}

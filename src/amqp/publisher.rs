//! Publishes with confirms. A publish that must arrive waits for RabbitMQ; a publish that may be
//! lost fails at once while RabbitMQ takes none. [`ordered`] keeps the order of each key.

pub mod ordered;

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, TryStreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::Mutex;

use super::connection::{self, Connection, Frames};
use super::delivery::ANNOUNCEMENT_HEADER;
use super::{Broker, BrokerError, DECLARE_TIMEOUT, topology, within};

/// Longest wait for a confirm. After it, RabbitMQ is gone, or its alarm lasts.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failure, before a publish that may be lost is attempted again.
const REOPEN_PAUSE: Duration = Duration::from_secs(5);
/// Interval of the look whether an alarm of RabbitMQ has begun or ended.
const ALARM_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Most unconfirmed publishes on the channel.
const IN_FLIGHT_MAX: usize = 256;
/// The body of a heartbeat, which any version reads as no hints.
const NO_HINTS: &str = "[]";
/// The content type of an event in structured mode (CloudEvents AMQP binding §3.2.1).
const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";
/// RabbitMQ writes a persistent message to disk before it confirms it.
const PERSISTENT: u8 = 2;

/// A publish: exchange, routing key, properties and body.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    pub(super) mandatory: bool,
}

impl Outgoing {
    /// A CloudEvent in structured mode. A header repeats its recipient, because RabbitMQ chooses
    /// the partition by the header.
    pub fn event(exchange: String, event_type: &str, recipient: &str, body: Vec<u8>) -> Self {
        let recipient = topology::table([(topology::RECIPIENT_HEADER, topology::text(recipient))]);
        Self {
            exchange,
            routing_key: event_type.into(),
            properties: BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type(STRUCTURED.into())
                .with_headers(recipient),
            body,
            mandatory: true,
        }
    }

    /// A CloudEvent in binary mode (AMQP binding §3.1). The recipient is one of the attributes.
    pub fn binary_event<'a>(
        exchange: String,
        event_type: &str,
        recipient: &str,
        attributes: impl Iterator<Item = (&'a str, &'a str)>,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> Self {
        let mut event = Self::event(exchange, event_type, recipient, body);
        let content_type = content_type.unwrap_or("application/json");
        event.properties = event.properties.with_content_type(content_type.into());
        for (name, value) in attributes {
            event.set_header(&format!("{}{name}", topology::ATTRIBUTE_PREFIX), value);
        }
        event
    }

    /// Adds the header of the trace (W3C Trace Context §3.2).
    pub fn traced(mut self, traceparent: Option<&str>) -> Self {
        if let Some(traceparent) = traceparent {
            self.set_header("traceparent", traceparent);
        }
        self
    }

    /// A receipt, as a CloudEvent in structured mode. RabbitMQ drops it if no queue is bound for its type.
    pub fn receipt(exchange: String, event_type: String, body: Vec<u8>) -> Self {
        Self {
            exchange,
            routing_key: event_type,
            properties: BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type(STRUCTURED.into()),
            body,
            mandatory: false,
        }
    }

    fn set_header(&mut self, name: &str, value: &str) {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), topology::text(value));
        self.properties = std::mem::take(&mut self.properties).with_headers(headers);
    }

    /// Hints for the other replicas. They are not persistent, because a receiver finds a lost one by
    /// the numbers in `announcement`.
    pub fn hints(exchange: String, replica: &str, announcement: String, body: Vec<u8>) -> Self {
        let header = topology::table([(ANNOUNCEMENT_HEADER, topology::text(announcement))]);
        Self {
            exchange,
            routing_key: String::new(),
            properties: BasicProperties::default()
                .with_app_id(replica.into())
                .with_headers(header),
            body,
            mandatory: false,
        }
    }

    /// A heartbeat for the other replicas: an announcement without hints.
    pub fn heartbeat(exchange: String, replica: &str, announcement: String) -> Self {
        Self::hints(exchange, replica, announcement, NO_HINTS.into())
    }

    pub(super) fn persistent(properties: BasicProperties) -> BasicProperties {
        properties.with_delivery_mode(PERSISTENT)
    }
}

/// The connection of all publishers of this process. Each publisher has a channel of its own.
///
/// No consumer uses it: in an alarm RabbitMQ blocks it, and then it carries no acknowledgements. It
/// closes with its last publisher. If a publisher fails, it drops its channel and keeps the
/// connection, unless the connection is the cause.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// Locked only to copy or to replace the pointer.
    connection: Arc<RwLock<Weak<Connection>>>,
    /// Held while a publisher opens the connection or a channel.
    opening: Arc<Mutex<()>>,
}

impl Shared {
    /// The connection, if it works.
    fn current(&self) -> Option<Arc<Connection>> {
        let connection = self.connection.read();
        let connection = connection.unwrap_or_else(PoisonError::into_inner).upgrade();
        connection.filter(|connection| connection.is_connected())
    }

    /// Whether RabbitMQ blocks the connection because of an alarm.
    pub(super) fn is_blocked(&self) -> bool {
        self.current()
            .is_some_and(|connection| connection.is_blocked())
    }

    async fn channel(&self, broker: &Broker) -> Result<(Arc<Connection>, Channel), BrokerError> {
        let _opening = self.opening.lock().await;
        if let Some(connection) = self.current() {
            if connection.is_blocked() {
                return Err(BrokerError::Blocked);
            }
            return match connection.channel().await {
                Ok(channel) => Ok((connection, channel)),
                // The answer comes when the alarm ends.
                Err(_) if connection.is_blocked() => Err(BrokerError::Blocked),
                // Without an answer, the connection is of no use to any publisher.
                Err(error) => {
                    connection.cut();
                    Err(error)
                }
            };
        }
        let connection =
            Arc::new(Connection::open(&broker.address(), "publisher", Frames::Large).await?);
        let channel = connection.channel().await?;
        let mut shared = self
            .connection
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *shared = Arc::downgrade(&connection);
        Ok((connection, channel))
    }
}

/// Publishes on a channel of its own. It opens the channel with the first publish, and drops it
/// after a failure.
#[derive(Debug)]
pub struct Publisher {
    broker: Broker,
    incarnation: Option<Incarnation>,
    /// The earliest time of the next incarnation for a publish that may be lost.
    reopen_at: Option<Instant>,
}

struct Incarnation {
    connection: Arc<Connection>,
    channel: Channel,
}

impl std::fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incarnation").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Makes a publisher that is connected. If `broker.declare` is on, it declares the topology.
    /// Otherwise it verifies nothing, because its user may not be allowed to.
    ///
    /// # Errors
    /// RabbitMQ does not answer, or rejects a part of the topology.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        Ok(Self {
            incarnation: Some(Incarnation::open(broker).await?),
            ..Self::lazy(broker)
        })
    }

    /// Makes a publisher that connects with its first publish.
    pub fn lazy(broker: &Broker) -> Self {
        Self {
            broker: broker.clone(),
            incarnation: None,
            reopen_at: None,
        }
    }

    /// Publishes in order, and returns when RabbitMQ has confirmed all.
    ///
    /// Takes `&mut self`, because lapin may swap the confirms of two tasks that publish on one
    /// channel.
    ///
    /// # Errors
    /// RabbitMQ does not answer, or rejects a publish. [`BrokerError::Blocked`] if an alarm lasts
    /// too long. Some publishes may have arrived; the caller repeats all.
    pub async fn publish(&mut self, publishes: &[Outgoing]) -> Result<(), BrokerError> {
        // Otherwise lapin would keep the publishes, and the connection would have to be cut.
        if self.is_blocked()
            && tokio::time::timeout(CONFIRM_TIMEOUT, self.unblocked())
                .await
                .is_err()
        {
            return Err(BrokerError::Blocked);
        }
        // Taken out, so that an error drops it.
        let incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.unless_blocked(Incarnation::open(&self.broker).await)?,
        };
        let published = within(
            CONFIRM_TIMEOUT,
            "confirming publishes",
            incarnation.publish(publishes),
        )
        .await;
        let timed_out = matches!(published, Err(BrokerError::Timeout(..)));
        if timed_out && incarnation.is_blocked() {
            // Otherwise lapin keeps these publishes and all repeats until the alarm ends.
            incarnation.connection.cut();
            return Err(BrokerError::Blocked);
        }
        match published {
            Ok(()) => self.incarnation = Some(incarnation),
            Err(_) => incarnation.close().await,
        }
        published
    }

    /// Publishes once, for a publish that may be lost.
    ///
    /// # Errors
    /// RabbitMQ does not confirm it within `limit`. Fails at once if RabbitMQ blocks the
    /// connection, or if the last attempt failed a short time ago. A blocked connection is kept: it
    /// cannot be closed, and new ones would accumulate.
    pub async fn try_publish(
        &mut self,
        limit: Duration,
        publish: Outgoing,
    ) -> Result<(), BrokerError> {
        let incarnation = self.take(limit).await?;
        let publishes = [publish];
        let published = tokio::select! {
            biased;
            published = within(limit, "confirming a publish", incarnation.publish(&publishes)) => published,
            () = incarnation.blocked() => Err(BrokerError::Blocked),
        };
        self.keep(incarnation, published)
    }

    /// Counts the gateways, including that of this replica.
    ///
    /// # Errors
    /// RabbitMQ does not answer within `limit`, or blocks the connection.
    pub async fn count_gateways(&mut self, limit: Duration) -> Result<u32, BrokerError> {
        let incarnation = self.take(limit).await?;
        let counting = topology::count_gateways(&incarnation.channel, &self.broker.names);
        let counted = within(limit, "counting gateways", counting).await;
        self.keep(incarnation, counted)
    }

    /// Waits until RabbitMQ does not block the connection, because its alarm has ended or the
    /// connection has.
    pub async fn unblocked(&self) {
        while self.is_blocked() {
            tokio::time::sleep(ALARM_POLL_INTERVAL).await;
        }
    }

    fn is_blocked(&self) -> bool {
        match &self.incarnation {
            Some(incarnation) => incarnation.is_blocked(),
            None => self.broker.publishing.is_blocked(),
        }
    }

    /// Takes the incarnation out, so that an error drops it, or opens one. For a publish that may be
    /// lost.
    async fn take(&mut self, limit: Duration) -> Result<Incarnation, BrokerError> {
        if self.is_blocked() {
            return Err(BrokerError::Blocked);
        }
        let incarnation = self.incarnation.take();
        match incarnation.filter(|incarnation| incarnation.connection.is_connected()) {
            Some(incarnation) => Ok(incarnation),
            None => self.reopen(limit).await,
        }
    }

    /// Keeps the incarnation if it works or is blocked, and returns the result.
    fn keep<T>(
        &mut self,
        incarnation: Incarnation,
        result: Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let result = match result {
            Err(_) if incarnation.is_blocked() => Err(BrokerError::Blocked),
            result => result,
        };
        match result {
            Ok(_) | Err(BrokerError::Blocked) => self.incarnation = Some(incarnation),
            // The caller does not wait for the close, which has a timeout of its own.
            Err(_) => drop(tokio::spawn(incarnation.close())),
        }
        result
    }

    /// Opens an incarnation for a publish that may be lost, at most once in [`REOPEN_PAUSE`].
    async fn reopen(&mut self, limit: Duration) -> Result<Incarnation, BrokerError> {
        let now = Instant::now();
        if self.reopen_at.is_some_and(|at| now < at) {
            return Err(BrokerError::FailedBefore(REOPEN_PAUSE));
        }
        self.reopen_at = Some(now + REOPEN_PAUSE);
        let opened = within(limit, "connecting", Incarnation::open(&self.broker)).await;
        self.unless_blocked(opened)
    }

    /// Names the alarm as the cause of an error, because RabbitMQ answers no request of a blocked
    /// connection.
    fn unless_blocked<T>(&self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        result.map_err(|error| match self.broker.publishing.is_blocked() {
            true => BrokerError::Blocked,
            false => error,
        })
    }

    /// Closes the channel, and the connection if no other publisher uses it.
    pub async fn close(self) {
        if let Some(incarnation) = self.incarnation {
            incarnation.close().await;
        }
    }
}

impl Incarnation {
    async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        let (connection, channel) = broker.publishing.channel(broker).await?;
        if broker.declare {
            broker.ensure_on(&connection, &channel).await?;
        }
        let confirming = async {
            Ok(channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?)
        };
        within(DECLARE_TIMEOUT, "beginning to confirm", confirming).await?;
        Ok(Self {
            connection,
            channel,
        })
    }

    /// Closes the channel, or the connection if no other publisher uses it.
    async fn close(self) {
        match Arc::into_inner(self.connection) {
            Some(connection) => connection.close(&self.channel).await,
            None => connection::close_channel(&self.channel).await,
        }
    }

    /// Whether RabbitMQ blocks the connection.
    fn is_blocked(&self) -> bool {
        self.connection.is_blocked()
    }

    /// Waits until RabbitMQ blocks the connection. It does so at the first publish in an alarm.
    async fn blocked(&self) {
        while !self.is_blocked() {
            tokio::time::sleep(ALARM_POLL_INTERVAL).await;
        }
    }

    /// Sends a publish, and returns its confirm.
    async fn send(&self, publish: &Outgoing) -> Result<PublisherConfirm, BrokerError> {
        let options = BasicPublishOptions {
            mandatory: publish.mandatory,
            ..Default::default()
        };
        let name = |name: &String| {
            ShortString::try_new(name).map_err(|_| BrokerError::NameTooLong(name.len()))
        };
        let (exchange, key) = (name(&publish.exchange)?, name(&publish.routing_key)?);
        let properties = publish.properties.clone();
        let sent = self
            .channel
            .basic_publish(exchange, key, options, &publish.body, properties);
        Ok(sent.await?)
    }

    async fn publish(&self, publishes: &[Outgoing]) -> Result<(), BrokerError> {
        let mut confirms = FuturesUnordered::new();
        for publish in publishes {
            confirms.push(self.send(publish).await?);
            if confirms.len() >= IN_FLIGHT_MAX
                && let Some(confirmation) = confirms.try_next().await?
            {
                check(&confirmation, publish)?;
            }
        }
        while let Some(confirmation) = confirms.try_next().await? {
            if let Some(publish) = publishes.last() {
                check(&confirmation, publish)?;
            }
        }
        Ok(())
    }
}

/// lapin may attach a returned message to the confirm of another publish. So each return fails the
/// whole call.
fn check(confirmation: &Confirmation, publish: &Outgoing) -> Result<(), BrokerError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(publish.exchange.clone())),
        Confirmation::Nack(_) | Confirmation::NotRequested => {
            Err(BrokerError::NotConfirmed(publish.exchange.clone()))
        }
    }
}

//! Publishing with confirms.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, TryStreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Mutex;

use super::connection::{self, Connection, Frames};
use super::{Broker, BrokerError, DECLARE_TIMEOUT, topology, within};

/// A publish that RabbitMQ does not confirm in this time has failed: RabbitMQ is gone, or its alarm lasts.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long after a failure nothing that may be lost is tried.
const REOPEN_PAUSE: Duration = Duration::from_secs(5);
/// Most publishes under way on the channel.
const IN_FLIGHT_MAX: usize = 256;
/// Written to disk before it is confirmed.
const PERSISTENT: u8 = 2;

/// Something to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    pub(super) mandatory: bool,
}

impl Outgoing {
    /// A CloudEvent in structured mode. Its recipient stands in a header too, as the partitions need it.
    pub fn event(exchange: String, event_type: &str, recipient: &str, body: Vec<u8>) -> Self {
        let recipient = topology::table([(topology::RECIPIENT_HEADER, topology::text(recipient))]);
        Self {
            exchange,
            routing_key: event_type.into(),
            properties: BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type("application/cloudevents+json; charset=utf-8".into())
                .with_headers(recipient),
            body,
            mandatory: true,
        }
    }

    /// A hint for every replica. Not persistent: a lost one is made good by the sweep.
    pub fn hint(exchange: String, replica: &str, body: Vec<u8>) -> Self {
        Self {
            exchange,
            routing_key: String::new(),
            properties: BasicProperties::default().with_app_id(replica.into()),
            body,
            mandatory: false,
        }
    }

    pub(super) fn persistent(properties: BasicProperties) -> BasicProperties {
        properties.with_delivery_mode(PERSISTENT)
    }
}

/// The connection that all publishers of this process share, each with a channel of its own. Nobody consumes on it: RabbitMQ
/// blocks it in an alarm, and then it carries no acknowledgement either.
///
/// It is closed with the last of its publishers. A publisher that fails gives up its channel, and the connection only where
/// that is why it failed.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Weak<Connection>>>);

impl Shared {
    async fn channel(&self, broker: &Broker) -> Result<(Arc<Connection>, Channel), BrokerError> {
        let mut shared = self.0.lock().await;
        if let Some(connection) = shared
            .upgrade()
            .filter(|connection| connection.is_connected())
        {
            if connection.is_blocked() {
                return Err(BrokerError::Blocked);
            }
            let channel = connection.channel().await;
            // RabbitMQ does not answer on this connection, so it serves nobody any more.
            let channel = channel.inspect_err(|_| connection.cut())?;
            return Ok((connection, channel));
        }
        let connection = Arc::new(Connection::open(&broker.uri, "publisher", Frames::Large).await?);
        let channel = connection.channel().await?;
        *shared = Arc::downgrade(&connection);
        Ok((connection, channel))
    }
}

/// Publishes on a channel of its own, which is opened when it is needed and dropped after any failure.
#[derive(Debug)]
pub struct Publisher {
    broker: Broker,
    incarnation: Option<Incarnation>,
    /// Not before this is a new incarnation opened for what may be lost.
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
    /// Connects, with the topology declared or verified.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        Ok(Self {
            incarnation: Some(Incarnation::open(broker).await?),
            ..Self::lazy(broker)
        })
    }

    /// Connects when there is something to publish.
    pub fn lazy(broker: &Broker) -> Self {
        Self {
            broker: broker.clone(),
            incarnation: None,
            reopen_at: None,
        }
    }

    /// Publishes in order and returns when RabbitMQ has confirmed all. Fails with [`BrokerError::Blocked`] if an alarm of RabbitMQ
    /// lasts too long. After an error it is unknown which arrived: the caller publishes all again.
    ///
    /// `&mut self`, because lapin may swap the confirms of two tasks that publish on one channel at once.
    pub async fn publish(&mut self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        // Taken out, so that an error on the way drops it.
        let incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => Incarnation::open(&self.broker).await?,
        };
        let published = within(
            CONFIRM_TIMEOUT,
            "confirming publishes",
            incarnation.publish(messages),
        )
        .await;
        let timed_out = matches!(published, Err(BrokerError::Timeout(..)));
        if timed_out && incarnation.is_blocked() {
            // Or lapin would keep these messages until the alarm ends, and those of each further try with them.
            incarnation.connection.cut();
            return Err(BrokerError::Blocked);
        }
        match published {
            Ok(()) => self.incarnation = Some(incarnation),
            Err(_) => incarnation.close().await,
        }
        published
    }

    /// The same for what may be lost: gives up after `limit`, and at once where the broker is known to take nothing.
    ///
    /// A blocked connection is kept: it cannot even be closed, so a new one for each try would pile up.
    pub async fn try_publish(
        &mut self,
        limit: Duration,
        message: Outgoing,
    ) -> Result<(), BrokerError> {
        if self
            .incarnation
            .as_ref()
            .is_some_and(Incarnation::is_blocked)
        {
            return Err(BrokerError::Blocked);
        }
        let incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.reopen(limit).await?,
        };
        let published = tokio::time::timeout(limit, incarnation.publish(&[message])).await;
        let blocked = incarnation.is_blocked();
        match blocked || matches!(published, Ok(Ok(()))) {
            true => self.incarnation = Some(incarnation),
            // Nobody waits for it, and it does not take long.
            false => drop(tokio::spawn(incarnation.close())),
        }
        match published {
            Ok(published) => published,
            Err(_) if blocked => Err(BrokerError::Blocked),
            Err(_) => Err(BrokerError::Timeout(limit, "confirming a publish")),
        }
    }

    /// How many gateways there are, this replica's own among them; an error where that cannot be told within `limit`.
    pub async fn gateways(&mut self, limit: Duration) -> Result<u32, BrokerError> {
        if self
            .incarnation
            .as_ref()
            .is_some_and(Incarnation::is_blocked)
        {
            return Err(BrokerError::Blocked);
        }
        // Taken out, so that an error on the way drops it.
        let incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.reopen(limit).await?,
        };
        let counting = topology::count_gateways(&incarnation.channel, &self.broker.names);
        let gateways = within(limit, "counting gateways", counting).await?;
        self.incarnation = Some(incarnation);
        Ok(gateways)
    }

    /// A new incarnation for what may be lost, not too often.
    async fn reopen(&mut self, limit: Duration) -> Result<Incarnation, BrokerError> {
        let now = Instant::now();
        if self.reopen_at.is_some_and(|at| now < at) {
            return Err(BrokerError::FailedBefore(REOPEN_PAUSE));
        }
        self.reopen_at = Some(now + REOPEN_PAUSE);
        within(limit, "connecting", Incarnation::open(&self.broker)).await
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
        broker.ensure_on(&connection, &channel).await?;
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

    /// The broker said that it takes no publishes.
    fn is_blocked(&self) -> bool {
        self.connection.is_blocked()
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        let mut confirms = FuturesUnordered::new();
        for message in messages {
            let options = BasicPublishOptions {
                mandatory: message.mandatory,
                ..Default::default()
            };
            let name = |name: &String| {
                ShortString::try_new(name).map_err(|_| BrokerError::NameTooLong(name.len()))
            };
            let (exchange, key) = (name(&message.exchange)?, name(&message.routing_key)?);
            let properties = message.properties.clone();
            confirms.push(
                self.channel
                    .basic_publish(exchange, key, options, &message.body, properties)
                    .await?,
            );
            if confirms.len() >= IN_FLIGHT_MAX
                && let Some(confirmation) = confirms.try_next().await?
            {
                check(&confirmation, message)?;
            }
        }
        while let Some(confirmation) = confirms.try_next().await? {
            if let Some(message) = messages.last() {
                check(&confirmation, message)?;
            }
        }
        Ok(())
    }
}

/// lapin may hang a returned message on the confirm of another, so a return fails the whole call, whosever it is.
fn check(confirmation: &Confirmation, message: &Outgoing) -> Result<(), BrokerError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(message.exchange.clone())),
        Confirmation::Nack(_) | Confirmation::NotRequested => {
            Err(BrokerError::NotConfirmed(message.exchange.clone()))
        }
    }
}

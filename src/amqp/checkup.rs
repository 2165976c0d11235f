//! What an operator asks RabbitMQ: is everything of the contract there, is it as it must be, what waits. Changes nothing.

use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::ErrorKind;
use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, AMQPErrorKind, AMQPSoftError, parse_class};
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable};

use super::connection::{Connection, Frames};
use super::{Broker, BrokerError, topology, within};

/// How long all the questions may take together.
const CHECKUP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long RabbitMQ may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest greeting that is looked at.
const GREETING_BYTES_MAX: u32 = 64 * 1024;
/// How a client of AMQP 0-9-1 begins.
const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";

/// What RabbitMQ answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkup {
    /// The server's version, where it tells one.
    pub version: Option<String>,
    /// The durable exchanges of the contract.
    pub exchanges: Vec<Exchange>,
    /// The durable queues of the contract.
    pub queues: Vec<Queue>,
    /// There are partitions beyond those that this process knows of.
    pub more_partitions: bool,
    /// How many gateways are running.
    pub gateways: u32,
}

/// One exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// What was found under it.
    pub found: Found,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// What was found under it.
    pub found: Found,
    /// How many lie in it, ready to be delivered.
    pub messages: u32,
    /// How many consume it.
    pub consumers: u32,
}

/// What is there under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// What the contract wants.
    Right,
    /// Nothing.
    Missing,
    /// Something else: how RabbitMQ puts it.
    Different(String),
    /// Something; RabbitMQ does not tell this user more.
    Unsure(String),
}

/// Asks everything.
pub async fn look(broker: &Broker) -> Result<Checkup, BrokerError> {
    let version = version(broker).await;
    let connection = Connection::open(&broker.uri, "doctor", Frames::Small).await?;
    let channel = connection.channel().await?;
    let looking = async {
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let (mut exchanges, mut queues) = (Vec::new(), Vec::new());
        for (name, kind, arguments) in topology::exchanges(broker) {
            let found = exchange(&connection, &name, kind, arguments).await?;
            exchanges.push(Exchange { name, found });
        }
        for (name, arguments) in topology::queues(broker) {
            queues.push(queue(&connection, name, arguments).await?);
        }
        let more = broker.names.partition(broker.partitions + 1);
        let more_partitions = topology::is_there(&connection, more).await?;
        let gateways = queues
            .iter()
            .find(|queue| queue.name == broker.names.gateways());
        let gateways = gateways.map_or(0, |queue| queue.consumers);
        Ok(Checkup {
            version,
            exchanges,
            queues,
            more_partitions,
            gateways,
        })
    };
    let checkup = within(CHECKUP_TIMEOUT, "looking at exchanges and queues", looking).await;
    connection.close(&channel).await;
    checkup
}

/// Only what exists is declared once more as it must be, which changes nothing: RabbitMQ takes what is equivalent and
/// refuses the rest with the difference. Each on a channel of its own, which a refusal closes.
async fn exchange(
    connection: &Connection,
    name: &str,
    kind: lapin::ExchangeKind,
    arguments: FieldTable,
) -> Result<Found, BrokerError> {
    let channel = connection.channel().await?;
    let declare = |passive, kind, arguments| {
        let options = ExchangeDeclareOptions {
            durable: true,
            passive,
            ..Default::default()
        };
        channel.exchange_declare(name.into(), kind, options, arguments)
    };
    match declare(true, kind.clone(), FieldTable::default()).await {
        Ok(()) => found(declare(false, kind, arguments).await),
        Err(error) => missing(error),
    }
}

async fn queue(
    connection: &Connection,
    name: String,
    arguments: FieldTable,
) -> Result<Queue, BrokerError> {
    let channel = connection.channel().await?;
    let declare = |passive, arguments| {
        let options = QueueDeclareOptions {
            durable: true,
            passive,
            ..Default::default()
        };
        channel.queue_declare(name.as_str().into(), options, arguments)
    };
    let (found, messages, consumers) = match declare(true, FieldTable::default()).await {
        Ok(queue) => (
            found(declare(false, arguments).await.map(drop))?,
            queue.message_count(),
            queue.consumer_count(),
        ),
        Err(error) => (missing(error)?, 0, 0),
    };
    Ok(Queue {
        name,
        found,
        messages,
        consumers,
    })
}

fn missing(error: lapin::Error) -> Result<Found, BrokerError> {
    match topology::is_not_found(&error) {
        true => Ok(Found::Missing),
        false => Err(error.into()),
    }
}

fn found(declared: Result<(), lapin::Error>) -> Result<Found, BrokerError> {
    let Err(error) = declared else {
        return Ok(Found::Right);
    };
    let ErrorKind::ProtocolError(protocol) = error.kind() else {
        return Err(error.into());
    };
    let told = protocol.get_message().to_string();
    match protocol.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Ok(Found::Different(told)),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Ok(Found::Unsure(told)),
        _ => Err(error.into()),
    }
}

/// What the server says of itself before anybody logs in: lapin keeps it to itself, so it is asked once more.
async fn version(broker: &Broker) -> Option<String> {
    tokio::time::timeout(GREETING_TIMEOUT, greeting(broker))
        .await
        .ok()
        .flatten()
}

async fn greeting(broker: &Broker) -> Option<String> {
    let runtime = lapin::runtime::default_runtime().ok()?;
    let mut stream = broker.uri.connect_async(&runtime).await.ok()?;
    stream.write_all(PROTOCOL_HEADER).await.ok()?;
    stream.flush().await.ok()?;
    // The head of a frame: type, channel, length.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.ok()?;
    let [.., a, b, c, d] = head;
    let length = u32::from_be_bytes([a, b, c, d]).min(GREETING_BYTES_MAX);
    let mut payload = vec![0; usize::try_from(length).ok()?];
    stream.read_exact(&mut payload).await.ok()?;
    let Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) = parse_class(&payload[..]) else {
        return None;
    };
    match start.server_properties.inner().get("version")? {
        AMQPValue::LongString(version) => Some(version.to_string()),
        _ => None,
    }
}

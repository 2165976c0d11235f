//! Compares RabbitMQ with the contract for `shopbell doctor`: version, exchanges, queues and their
//! depths. Changes nothing in RabbitMQ.

use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::ErrorKind;
use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, AMQPErrorKind, AMQPSoftError, parse_class};
use lapin::tcp::AsyncTcpStream;
use lapin::types::{AMQPValue, FieldTable};

use super::connection::{Connection, Frames, resolve, secure};
use super::{Broker, BrokerError, topology, within};

/// Longest time to inspect all exchanges and queues.
const CHECKUP_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for the greeting of RabbitMQ.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest greeting that is read.
const GREETING_BYTES_MAX: u32 = 64 * 1024;
/// The first bytes of a client (AMQP 0-9-1 §4.2.2).
const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";

/// The state of RabbitMQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkup {
    /// The version of the server, if it sends one.
    pub version: Option<String>,
    /// The durable exchanges of the contract.
    pub exchanges: Vec<Exchange>,
    /// The durable queues of the contract.
    pub queues: Vec<Queue>,
    /// Whether RabbitMQ has more partitions than this process consumes.
    pub more_partitions: bool,
    /// The number of running gateways.
    pub gateways: u32,
}

/// One exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The name.
    pub name: String,
    /// The result of the comparison.
    pub found: Found,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The name.
    pub name: String,
    /// The result of the comparison.
    pub found: Found,
    /// Messages that are ready for delivery.
    pub messages: u32,
    /// The number of consumers.
    pub consumers: u32,
}

/// An exchange or queue, compared with the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It matches the contract.
    AsDeclared,
    /// It does not exist.
    Missing,
    /// It differs from the contract, with RabbitMQ's text.
    Different(String),
    /// It exists, but this user may not compare it. With RabbitMQ's text.
    NotComparable(String),
}

/// Reads the state of RabbitMQ.
///
/// # Errors
/// RabbitMQ does not answer.
pub async fn inspect(broker: &Broker) -> Result<Checkup, BrokerError> {
    let version = version(broker).await;
    let connection = Connection::open(&broker.address(), "doctor", Frames::Small).await?;
    let channel = connection.channel().await?;
    let inspecting = async {
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
        let more_partitions = topology::queue_exists(&connection, more).await?;
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
    let checkup = within(
        CHECKUP_TIMEOUT,
        "inspecting exchanges and queues",
        inspecting,
    )
    .await;
    connection.close(&channel).await;
    checkup
}

/// If the exchange exists, declares it again, which changes nothing: RabbitMQ accepts an equal
/// declaration and rejects another with the difference. Uses a channel of its own, because RabbitMQ
/// closes it with a rejection.
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
        return Ok(Found::AsDeclared);
    };
    let ErrorKind::ProtocolError(protocol) = error.kind() else {
        return Err(error.into());
    };
    let text = protocol.get_message().to_string();
    match protocol.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Ok(Found::Different(text)),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Ok(Found::NotComparable(text)),
        _ => Err(error.into()),
    }
}

/// Reads the version from the greeting over a connection of its own, because lapin does not expose
/// it.
async fn version(broker: &Broker) -> Option<String> {
    tokio::time::timeout(GREETING_TIMEOUT, greeting(broker))
        .await
        .ok()
        .flatten()
}

async fn greeting(broker: &Broker) -> Option<String> {
    let runtime = lapin::runtime::default_runtime().ok()?;
    let address = broker.address();
    let addresses = resolve(&address).await.ok()?;
    let stream = AsyncTcpStream::connect(&runtime, addresses).await.ok()?;
    let mut stream = secure(&address, stream).await.ok()?;
    stream.write_all(PROTOCOL_HEADER).await.ok()?;
    stream.flush().await.ok()?;
    // Type, channel and length of the frame (AMQP 0-9-1 §4.2.3).
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

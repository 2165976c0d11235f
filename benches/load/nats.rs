//! The protocol of NATS clients, as far as a measurement needs it: text commands, the payloads of
//! messages, and the requests of JetStream. It is the same over TCP and over WebSocket.

use std::str;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

const LINE_END: &[u8] = b"\r\n";

/// One command of the server.
#[derive(Debug)]
pub enum Arrival<'a> {
    Message(Message<'a>),
    /// INFO, +OK and PONG, and PING: the server's interval is longer than a run.
    Other,
}

/// A MSG.
#[derive(Debug)]
pub struct Message<'a> {
    pub subject: &'a str,
    pub reply: Option<&'a str>,
    pub payload: &'a [u8],
}

/// Splits off the first command. `None` if its end has not arrived yet.
pub fn split_first(bytes: &[u8]) -> anyhow::Result<Option<(Arrival<'_>, &[u8])>> {
    let Some(end) = bytes.windows(2).position(|two| two == LINE_END) else {
        return Ok(None);
    };
    let (line, rest) = (str::from_utf8(&bytes[..end])?, &bytes[end + 2..]);
    let words: Vec<&str> = line.split(' ').collect();
    let (subject, reply, length) = match words.as_slice() {
        ["MSG", subject, _, reply, length] => (*subject, Some(*reply), *length),
        ["MSG", subject, _, length] => (*subject, None, *length),
        ["INFO" | "+OK" | "PING" | "PONG", ..] => return Ok(Some((Arrival::Other, rest))),
        _ => bail!("NATS: {line}"),
    };
    let length: usize = length.parse().context("a MSG without a length")?;
    let Some((payload, rest)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    let Some((_, rest)) = rest.split_at_checked(LINE_END.len()) else {
        return Ok(None);
    };
    let message = Message {
        subject,
        reply,
        payload,
    };
    Ok(Some((Arrival::Message(message), rest)))
}

/// The first command of a client, and its subscription.
pub fn connect(subject: &str) -> Vec<u8> {
    let options = r#"{"verbose":false,"pedantic":false,"headers":false}"#;
    format!("CONNECT {options}\r\nSUB {subject} 1\r\nPING\r\n").into()
}

/// The ack of a delivery.
pub fn ack(ack_subject: &str) -> Vec<u8> {
    format!("PUB {ack_subject} 4\r\n+ACK\r\n").into()
}

/// Appends a PUB, whose reply goes to the subject `reply`.
pub fn push_publish(commands: &mut Vec<u8>, subject: &str, reply: &str, payload: &[u8]) {
    let head = format!("PUB {subject} {reply} {}\r\n", payload.len());
    commands.extend_from_slice(head.as_bytes());
    commands.extend_from_slice(payload);
    commands.extend_from_slice(LINE_END);
}

/// The subject of the orders of a recipient.
pub fn orders_of(recipient: &str) -> String {
    format!("orders.{recipient}")
}

/// The setup of a client, whose consumer exists: it only subscribes to the deliveries.
pub fn opening(name: &str) -> Vec<u8> {
    connect(&deliveries_to(name))
}

fn deliveries_to(name: &str) -> String {
    format!("deliveries.{name}")
}

/// The request that makes the stream of a client: its subject and its payload. The stream keeps all
/// orders, and has no replica.
pub fn stream(name: &str) -> (String, Vec<u8>) {
    let stream = json!({
        "name": name,
        "subjects": [orders_of(name)],
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
    });
    let subject = format!("$JS.API.STREAM.CREATE.{name}");
    (subject, stream.to_string().into())
}

/// The same for the consumer of a client, which has the name of its stream.
pub fn consumer(name: &str) -> (String, Vec<u8>) {
    let consumer = json!({
        "stream_name": name,
        "config": {
            "durable_name": name,
            "deliver_subject": deliveries_to(name),
            "deliver_policy": "all",
            "ack_policy": "explicit",
        },
    });
    let subject = format!("$JS.API.CONSUMER.DURABLE.CREATE.{name}.{name}");
    (subject, consumer.to_string().into())
}

/// Fails if JetStream's reply to a request or to a publish is an error.
pub fn check_reply(payload: &[u8]) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    let reply: Reply = serde_json::from_slice(payload)?;
    match reply.error {
        None => Ok(()),
        Some(error) => bail!("JetStream: {error}"),
    }
}

/// The number of a delivery among those of its consumer. Its ack subject has it:
/// `$JS.ACK.STREAM.CONSUMER.DELIVERIES.STREAM_SEQ.CONSUMER_SEQ.TIME.PENDING`.
pub fn consumer_seq(ack_subject: &str) -> anyhow::Result<i64> {
    let seq = ack_subject.split('.').nth(6);
    seq.and_then(|seq| seq.parse().ok())
        .with_context(|| format!("a delivery without a number: {ack_subject}"))
}

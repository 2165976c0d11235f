//! The protocols of clients: Shopbell's, and those of the peers, as far as a measurement needs
//! them.
//!
//! MQTT 3.1.1 and STOMP 1.2 are five packets and four frames here. Any client library for them
//! would be larger. `nats` has the protocol of NATS.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::Deserialize;
use shopbell::config::Environment;
use shopbell::gateway::auth::{Right, Tokens};
use shopbell::model::feed::Subscriber;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::{event, nats};

/// Validity of a token: longer than a run.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The address for clients, and their protocol.
#[derive(Debug, Clone)]
pub enum Server {
    Shopbell {
        port: u16,
        secret: String,
    },
    /// RabbitMQ's Web MQTT: QoS 1 and a persistent session.
    WebMqtt {
        port: u16,
        user: String,
        password: String,
    },
    /// RabbitMQ's Web STOMP: a durable subscription, each message acknowledged by the client.
    WebStomp {
        port: u16,
        user: String,
        password: String,
    },
    /// NATS JetStream: a durable push consumer for each client, with explicit acks.
    JetStream {
        port: u16,
    },
    /// The minimal pipeline, which ignores replies.
    Minimal {
        port: u16,
    },
    /// A bare WebSocket server, which accepts any reply.
    Bare {
        port: u16,
    },
}

/// One event that a client received.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    pub index: usize,
    /// Its number, if the server has numbers.
    pub seq: Option<i64>,
    /// It arrived in the broadcast feed.
    pub broadcast: bool,
    /// The client's reply.
    pub ack: Message,
}

impl Server {
    /// The port on loopback.
    pub fn port(&self) -> u16 {
        match self {
            Self::Shopbell { port, .. }
            | Self::WebMqtt { port, .. }
            | Self::WebStomp { port, .. }
            | Self::JetStream { port }
            | Self::Minimal { port }
            | Self::Bare { port } => *port,
        }
    }

    /// The handshake of the client of that name.
    pub fn request(&self, name: &str) -> anyhow::Result<Request> {
        let (path, subprotocol) = match self {
            Self::Shopbell { .. } => ("v1/ws", Some("shopbell.v1")),
            Self::WebMqtt { .. } => ("ws", Some("mqtt")),
            Self::WebStomp { .. } => ("ws", Some("v12.stomp")),
            Self::Minimal { .. } => (name, None),
            Self::JetStream { .. } | Self::Bare { .. } => ("", None),
        };
        let url = format!("ws://127.0.0.1:{}/{path}", self.port());
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        if let Some(subprotocol) = subprotocol {
            headers.insert(
                "sec-websocket-protocol",
                HeaderValue::from_static(subprotocol),
            );
        }
        if let Self::Shopbell { secret, .. } = self {
            let subscriber = Subscriber::parse(name)?;
            let environment =
                Environment::of(vec![("SHOPBELL_JWT_HS256_SECRET".into(), secret.clone())]);
            let token = Tokens::new(&environment.jwt()?, &Default::default()).mint(
                &subscriber,
                &[],
                &[],
                Right::None,
                TOKEN_TTL,
            )?;
            headers.insert("authorization", format!("Bearer {token}").parse()?);
        }
        Ok(request)
    }

    /// The setup frames of the client of that name. Each waits for the reply to the last, until the
    /// server has answered all.
    pub fn opening(&self, name: &str) -> Vec<Message> {
        match self {
            Self::Shopbell { .. } | Self::Minimal { .. } | Self::Bare { .. } => vec![],
            Self::WebMqtt { user, password, .. } => {
                let mut connect = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0b1100_0000, 0, 0];
                [name, user, password]
                    .into_iter()
                    .for_each(|text| push_text(&mut connect, text));
                let mut subscribe = vec![0, 1];
                push_text(&mut subscribe, name);
                subscribe.push(1);
                vec![mqtt(0x10, &connect), mqtt(0x82, &subscribe)]
            }
            Self::WebStomp { user, password, .. } => vec![
                stomp(&format!(
                    "CONNECT\naccept-version:1.2\nhost:/\nlogin:{user}\npasscode:{password}\nheart-beat:0,0\n\n"
                )),
                stomp(&format!(
                    "SUBSCRIBE\nid:{name}\ndestination:/topic/{name}\ndurable:true\nauto-delete:false\nx-queue-name:stomp-{name}\nack:client-individual\nreceipt:s\n\n"
                )),
            ],
            Self::JetStream { .. } => vec![Message::binary(nats::opening(name))],
        }
    }

    /// Whether the server sends the first frame.
    pub fn greets(&self) -> bool {
        matches!(
            self,
            Self::Shopbell { .. } | Self::JetStream { .. } | Self::Minimal { .. }
        )
    }

    /// Reads one message: an event, or nothing that counts.
    pub fn read(&self, name: &str, message: &Message) -> anyhow::Result<Vec<Received>> {
        match (self, message) {
            (_, Message::Ping(_) | Message::Pong(_)) => Ok(vec![]),
            (_, Message::Close(frame)) => bail!("the server closed: {frame:?}"),
            (Self::Shopbell { .. } | Self::Minimal { .. }, Message::Text(text)) => {
                shopbell_frame(name, text).map(Vec::from_iter)
            }
            (Self::WebMqtt { .. }, Message::Binary(bytes)) => mqtt_packets(bytes),
            (Self::WebStomp { .. }, Message::Text(text)) => {
                stomp_frame(text.as_str()).map(Vec::from_iter)
            }
            (Self::WebStomp { .. }, Message::Binary(bytes)) => {
                stomp_frame(std::str::from_utf8(bytes)?).map(Vec::from_iter)
            }
            (Self::JetStream { .. }, Message::Binary(bytes)) => nats_messages(name, bytes),
            (Self::Bare { .. }, Message::Text(text)) => {
                shopbell_frame("bare", text).map(Vec::from_iter)
            }
            (_, other) => bail!("an unexpected message of {} bytes", other.len()),
        }
    }
}

#[derive(Deserialize)]
struct Frame<'a> {
    r#type: &'a str,
    feed: Option<&'a str>,
    seq: Option<i64>,
    id: Option<&'a str>,
}

fn shopbell_frame(name: &str, text: &str) -> anyhow::Result<Option<Received>> {
    let frame: Frame = serde_json::from_str(text)?;
    match (frame.r#type, frame.feed, frame.seq, frame.id) {
        ("notification", Some(feed), Some(seq), Some(id)) => {
            ensure!(
                feed == name || feed == "all",
                "{name} received what is for {feed}"
            );
            let index = event::index_of(id)
                .with_context(|| format!("{name} received an id of nobody's: {id}"))?;
            let ack = Message::text(format!(r#"{{"type":"ack","feed":"{feed}","seq":{seq}}}"#));
            Ok(Some(Received {
                index,
                seq: Some(seq),
                broadcast: feed != name,
                ack,
            }))
        }
        ("welcome" | "caught_up" | "heartbeat" | "state", ..) => Ok(None),
        (other, ..) => bail!("{name} received an unexpected frame: {other}"),
    }
}

/// An event as the peers deliver it, unchanged.
#[derive(Deserialize)]
struct Published<'a> {
    id: &'a str,
}

fn published_index(body: &[u8]) -> anyhow::Result<usize> {
    let published: Published = serde_json::from_slice(body)?;
    event::index_of(published.id).ok_or_else(|| anyhow!("an event of another publisher"))
}

/// One MQTT control packet (MQTT 3.1.1 §2.2).
fn mqtt(kind: u8, body: &[u8]) -> Message {
    let mut packet = vec![kind];
    let mut rest = body.len();
    loop {
        let digit = (rest % 128) as u8;
        rest /= 128;
        packet.push(if rest > 0 { digit | 0x80 } else { digit });
        if rest == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    Message::binary(packet)
}

fn push_text(packet: &mut Vec<u8>, text: &str) {
    packet.extend_from_slice(&(text.len() as u16).to_be_bytes());
    packet.extend_from_slice(text.as_bytes());
}

/// The packets in one WebSocket message; RabbitMQ puts whole ones into each.
fn mqtt_packets(mut bytes: &[u8]) -> anyhow::Result<Vec<Received>> {
    let mut received = Vec::new();
    while let Some((kind, mut rest)) = bytes.split_first() {
        let (mut length, mut shift) = (0, 0);
        loop {
            let (digit, after) = rest.split_first().context("a cut MQTT packet")?;
            length |= usize::from(digit & 0x7f) << shift;
            (rest, shift) = (after, shift + 7);
            if digit & 0x80 == 0 {
                break;
            }
        }
        let (packet, after) = rest.split_at_checked(length).context("a cut MQTT packet")?;
        match kind >> 4 {
            // PUBLISH: topic, packet id, payload.
            3 => {
                let topic_bytes = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
                let (id, payload) = packet[2 + topic_bytes..]
                    .split_at_checked(2)
                    .context("a PUBLISH without an id")?;
                received.push(Received {
                    index: published_index(payload)?,
                    seq: None,
                    broadcast: false,
                    ack: mqtt(0x40, id),
                });
            }
            // CONNACK, SUBACK: the last byte is a refusal if its highest bits are set or it has any
            // other value.
            2 if packet.last() != Some(&0) => bail!("MQTT CONNECT was refused: {packet:?}"),
            9 if packet.last() != Some(&1) => bail!("MQTT SUBSCRIBE was refused: {packet:?}"),
            2 | 9 => {}
            other => bail!("an unexpected MQTT packet of type {other}"),
        }
        bytes = after;
    }
    Ok(received)
}

fn stomp(text: &str) -> Message {
    Message::text(format!("{text}\0"))
}

fn stomp_frame(text: &str) -> anyhow::Result<Option<Received>> {
    let text = text.trim_start_matches('\n');
    let Some((head, body)) = text.split_once("\n\n") else {
        return Ok(None);
    };
    let (command, headers) = head.split_once('\n').unwrap_or((head, ""));
    match command {
        "MESSAGE" => {
            let id = headers
                .lines()
                .find_map(|line| line.strip_prefix("ack:"))
                .context("a MESSAGE without `ack`")?;
            let index = published_index(body.trim_end_matches(['\0', '\n']).as_bytes())?;
            Ok(Some(Received {
                index,
                seq: None,
                broadcast: false,
                ack: stomp(&format!("ACK\nid:{id}\n\n")),
            }))
        }
        "CONNECTED" | "RECEIPT" => Ok(None),
        _ => bail!("STOMP: {head}"),
    }
}

/// The messages in one WebSocket message; nats-server puts whole ones into each.
fn nats_messages(name: &str, mut bytes: &[u8]) -> anyhow::Result<Vec<Received>> {
    let mut received = Vec::new();
    while !bytes.is_empty() {
        let (arrival, rest) = nats::split_first(bytes)?.context("a cut NATS message")?;
        bytes = rest;
        let nats::Arrival::Message(message) = arrival else {
            continue;
        };
        ensure!(
            message.subject == nats::orders_of(name),
            "{name} received a message of {}",
            message.subject
        );
        let ack_subject = message.reply.context("a message of no consumer")?;
        received.push(Received {
            index: published_index(message.payload)?,
            seq: Some(nats::consumer_seq(ack_subject)?),
            broadcast: false,
            ack: Message::binary(nats::ack(ack_subject)),
        });
    }
    Ok(received)
}

//! A canary: every now and then an event of our own goes the whole way, from a publish to the ack of a real client, and how
//! long that took is measured. What merchants do not get, it does not get.
//!
//! Its feed is this replica's alone and holds one event at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use crate::amqp::Broker;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::gateway::auth::{Right, Tokens};
use crate::model::event::{CANARY_SOURCE, CANARY_TYPE};
use crate::model::feed::{CANARY_PREFIX, Feed, Subscriber};
use crate::model::protocol::SUBPROTOCOL;
use crate::store::canaries;
use crate::store::pools::Pool;
use crate::telemetry::labels::CanaryStep;
use crate::telemetry::metrics::Metrics;

/// How long a client waits to be let in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long RabbitMQ may take to confirm the event.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// An event that needs longer is lost: ten times what a merchant would call slow.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the replica may take to take the ack in.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Its token is good for one flight.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// The canary of one gateway.
#[derive(Debug)]
pub struct Canary {
    /// Where this replica's clients connect.
    pub address: SocketAddr,
    /// What its tokens are signed with.
    pub tokens: Arc<Tokens>,
    /// Where it publishes.
    pub broker: Broker,
    /// Where it is forgotten.
    pub pool: Pool,
    /// The feed that every token may read too.
    pub broadcast_feed: Feed,
    /// What it is measured by.
    pub metrics: Arc<Metrics>,
}

/// Whatever went wrong on the way: it is only told.
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// A flight that ended before its end: where, and why.
#[derive(Debug)]
struct Lost {
    step: CanaryStep,
    why: String,
}

impl Canary {
    /// Sends one each time, until told to stop.
    pub async fn run(self, every: Duration, stop: CancellationToken) {
        let name = format!("{CANARY_PREFIX}{}", uuid::Uuid::new_v4().simple());
        let (Ok(feed), Ok(subscriber)) = (Feed::parse(&name), Subscriber::parse(&name)) else {
            return;
        };
        let mut publisher = Publisher::lazy(&self.broker);
        // Replicas that start together take turns.
        let mut wait = every.mul_f64(0.5 + fastrand::f64() / 2.0);
        while stop
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_some()
        {
            wait = every;
            let Some(flown) = stop
                .run_until_cancelled(self.fly(&feed, &subscriber, &mut publisher))
                .await
            else {
                break;
            };
            self.metrics.canary_runs.inc();
            match flown {
                Ok(took) => self.metrics.canary.observe(took.as_secs_f64()),
                Err(Lost { step, why }) => {
                    self.metrics.canary_failures.inc(step);
                    tracing::error!(
                        step = step.as_str(),
                        why,
                        "the canary was lost: merchants may not get their orders through this replica"
                    );
                }
            }
        }
        publisher.close().await;
        // What is not forgotten now is forgotten by the housekeeping of any replica.
        let _ = canaries::end(&self.pool, &feed).await;
    }

    async fn fly(
        &self,
        feed: &Feed,
        subscriber: &Subscriber,
        publisher: &mut Publisher,
    ) -> Result<Duration, Lost> {
        let mut client = step(
            CanaryStep::Connect,
            CONNECT_TIMEOUT,
            self.connect(feed, subscriber),
        )
        .await?;
        let (id, begun) = (uuid::Uuid::now_v7().to_string(), Instant::now());
        let publishing = async {
            let event = event(feed, &id)?;
            let outgoing = Outgoing::event(
                self.broker.names.events(),
                CANARY_TYPE,
                feed.as_str(),
                event,
            );
            // Once more, because RabbitMQ may have gone and come back since the last one.
            if publisher
                .try_publish(PUBLISH_TIMEOUT, outgoing.clone())
                .await
                .is_err()
            {
                publisher.try_publish(PUBLISH_TIMEOUT, outgoing).await?;
            }
            Ok(())
        };
        // Limited by itself, and never dropped halfway: a connection that an alarm has blocked cannot even be closed.
        publishing.await.map_err(|trouble: Trouble| Lost {
            step: CanaryStep::Publish,
            why: trouble.to_string(),
        })?;
        let seq = step(
            CanaryStep::Deliver,
            DELIVERY_TIMEOUT,
            client.notified_of(&id),
        )
        .await?;
        step(CanaryStep::Ack, ACK_TIMEOUT, client.acknowledge(feed, seq)).await?;
        let took = begun.elapsed();
        client.leave().await;
        Ok(took)
    }

    /// Forgets the last flight, then connects as any client does; to everyone's feed at its end, which is none of its business.
    async fn connect(&self, feed: &Feed, subscriber: &Subscriber) -> Result<Client, Trouble> {
        canaries::begin(&self.pool, feed, &self.broadcast_feed).await?;
        let token = self
            .tokens
            .mint(subscriber, &[], Right::Canary, TOKEN_TTL)?;
        let mut request = format!(
            "ws://{}/v1/ws?after={}:{}",
            self.address,
            self.broadcast_feed,
            i64::MAX
        )
        .into_client_request()?;
        let headers: [(HeaderName, HeaderValue); 2] = [
            (AUTHORIZATION, format!("Bearer {token}").parse()?),
            (
                SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(SUBPROTOCOL),
            ),
        ];
        request.headers_mut().extend(headers);
        let (socket, _) = client_async(request, TcpStream::connect(self.address).await?).await?;
        Ok(Client(socket))
    }
}

/// Gives a step a limit.
async fn step<T>(
    step: CanaryStep,
    limit: Duration,
    doing: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Lost> {
    match tokio::time::timeout(limit, doing).await {
        Ok(done) => done.map_err(|trouble| Lost {
            step,
            why: trouble.to_string(),
        }),
        Err(_) => Err(Lost {
            step,
            why: format!("not done within {} s", limit.as_secs()),
        }),
    }
}

/// The event, in CloudEvents' JSON format. Whoever finds it later need not look at it.
fn event(feed: &Feed, id: &str) -> Result<Vec<u8>, Trouble> {
    let now = OffsetDateTime::now_utc();
    Ok(serde_json::to_vec(&Event {
        specversion: "1.0",
        id,
        source: CANARY_SOURCE,
        kind: CANARY_TYPE,
        recipient: feed.as_str(),
        time: now.format(&Rfc3339)?,
        expirytime: (now + DELIVERY_TIMEOUT).format(&Rfc3339)?,
    })?)
}

#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    recipient: &'a str,
    time: String,
    expirytime: String,
}

/// The frames of the contract, as far as a canary looks at them.
#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    seq: i64,
}

/// A client as merchants have one.
struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// Returns the number of the notification of this event. What else comes is not ours: everyone's feed comes to all.
    async fn notified_of(&mut self, id: &str) -> Result<i64, Trouble> {
        self.until(|frame| frame.kind == "notification" && frame.id == id)
            .await
            .map(|frame| frame.seq)
    }

    /// Returns when the ack was taken in, which the answer to the ping after it says.
    async fn acknowledge(&mut self, feed: &Feed, seq: i64) -> Result<(), Trouble> {
        self.0
            .feed(Message::text(format!(
                r#"{{"type":CanaryStep::Ack,"feed":"{feed}","seq":{seq}}}"#
            )))
            .await?;
        self.0.send(Message::text(r#"{"type":"ping"}"#)).await?;
        self.until(|frame| frame.kind == "pong").await.map(drop)
    }

    async fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Result<Frame, Trouble> {
        while let Some(message) = self.0.next().await {
            let message = message?;
            if let Message::Close(close) = message {
                return Err(format!("the connection was closed: {close:?}").into());
            }
            if let Message::Text(text) = message
                && let Ok(frame) = serde_json::from_str::<Frame>(&text)
                && is_it(&frame)
            {
                return Ok(frame);
            }
        }
        Err("the connection was lost".into())
    }

    /// Says goodbye; nobody waits for the answer.
    async fn leave(mut self) {
        let _ = self.0.close(None).await;
    }
}

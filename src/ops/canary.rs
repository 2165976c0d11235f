//! The canary: an end-to-end check at an interval. It publishes an event, receives it as a client, acknowledges it, and
//! measures the time. If merchants stop receiving orders, the canary fails too.
//!
//! Each replica has its own canary feed, which holds one event at a time.

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
use crate::store::pool::Pool;
use crate::telemetry::labels::CanaryStep;
use crate::telemetry::metrics::Metrics;

/// Most time to open a session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most time until RabbitMQ confirms the event.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Most time until the notification arrives: ten times more than a merchant would accept.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Most time until the ack is processed.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Lifetime of a token; a run is shorter.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// The canary of one gateway.
#[derive(Debug)]
pub struct Canary {
    /// The address of this replica's public port.
    pub address: SocketAddr,
    /// Signs the tokens.
    pub tokens: Arc<Tokens>,
    /// Publishes the events.
    pub broker: Broker,
    /// Deletes the rows of the last run.
    pub pool: Pool,
    /// The broadcast feed, which every session reads.
    pub broadcast_feed: Feed,
    /// Counts the runs.
    pub metrics: Arc<Metrics>,
}

/// The cause of a failed step, which is only logged.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A run that failed.
#[derive(Debug)]
struct Failure {
    step: CanaryStep,
    reason: String,
}

impl Canary {
    /// Runs at the interval until `stop`.
    pub async fn run(self, every: Duration, stop: CancellationToken) {
        let name = format!("{CANARY_PREFIX}{}", uuid::Uuid::new_v4().simple());
        let (Ok(feed), Ok(subscriber)) = (Feed::parse(&name), Subscriber::parse(&name)) else {
            return;
        };
        let mut publisher = Publisher::lazy(&self.broker);
        // Spreads the runs of replicas that start together.
        let mut wait = every.mul_f64(0.5 + fastrand::f64() / 2.0);
        while stop
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_some()
        {
            wait = every;
            let Some(result) = stop
                .run_until_cancelled(self.run_once(&feed, &subscriber, &mut publisher))
                .await
            else {
                break;
            };
            self.metrics.canary.runs.inc();
            match result {
                Ok(took) => self.metrics.canary.time.observe(took.as_secs_f64()),
                Err(Failure { step, reason }) => {
                    self.metrics.canary.failures.inc(step);
                    tracing::error!(
                        step = step.as_str(),
                        reason,
                        "the canary failed; merchants may not receive orders through this replica"
                    );
                }
            }
        }
        publisher.close().await;
        // If this fails, the housekeeping of any replica deletes the rows.
        let _ = canaries::end(&self.pool, &feed).await;
    }

    async fn run_once(
        &self,
        feed: &Feed,
        subscriber: &Subscriber,
        publisher: &mut Publisher,
    ) -> Result<Duration, Failure> {
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
            // Tried twice, because the connection may have ended since the last run.
            if publisher
                .try_publish(PUBLISH_TIMEOUT, outgoing.clone())
                .await
                .is_err()
            {
                publisher.try_publish(PUBLISH_TIMEOUT, outgoing).await?;
            }
            Ok(())
        };
        // `try_publish` has its own timeout. It is never dropped, because a connection blocked by an alarm cannot be closed.
        publishing.await.map_err(|cause: Cause| Failure {
            step: CanaryStep::Publish,
            reason: cause.to_string(),
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

    /// Deletes the rows of the last run, then connects like a client. It starts at the end of the broadcast feed.
    async fn connect(&self, feed: &Feed, subscriber: &Subscriber) -> Result<Client, Cause> {
        canaries::begin(&self.pool, feed, &self.broadcast_feed).await?;
        let token = self
            .tokens
            .mint(subscriber, &[], &[], Right::Canary, TOKEN_TTL)?;
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

/// Runs one step with a timeout.
async fn step<T>(
    step: CanaryStep,
    limit: Duration,
    task: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, task).await {
        Ok(result) => result.map_err(|cause| Failure {
            step,
            reason: cause.to_string(),
        }),
        Err(_) => Err(Failure {
            step,
            reason: format!("not done within {} s", limit.as_secs()),
        }),
    }
}

/// The event in the JSON format of CloudEvents. It expires, so that operators can ignore an old one.
fn event(feed: &Feed, id: &str) -> Result<Vec<u8>, Cause> {
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

/// The fields that the canary reads of a frame.
#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    seq: i64,
}

/// A client of the gateway.
struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// Waits for the notification of this event and returns its number. Other notifications belong to the broadcast feed.
    async fn notified_of(&mut self, id: &str) -> Result<i64, Cause> {
        self.until(|frame| frame.kind == "notification" && frame.id == id)
            .await
            .map(|frame| frame.seq)
    }

    /// Sends the ack and a ping. The pong shows that the session has processed the ack.
    async fn acknowledge(&mut self, feed: &Feed, seq: i64) -> Result<(), Cause> {
        self.0
            .feed(Message::text(format!(
                r#"{{"type":"ack","feed":"{feed}","seq":{seq}}}"#
            )))
            .await?;
        self.0.send(Message::text(r#"{"type":"ping"}"#)).await?;
        self.until(|frame| frame.kind == "pong").await.map(drop)
    }

    async fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Result<Frame, Cause> {
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

    /// Closes the session without waiting for the server's close.
    async fn leave(mut self) {
        let _ = self.0.close(None).await;
    }
}

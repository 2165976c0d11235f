//! `POST /v1/events`: publishers without a connection to RabbitMQ (CloudEvents HTTP binding 1.0.2).
//!
//! A request with a token comes in: one event in structured or binary mode, or a batch. Its events go
//! to RabbitMQ through [`publishing`], and a verdict for each event goes out after the confirm.
//! Nothing is stored here: ingest stores the events as it stores those of other publishers.
//! `GET /v1/events/{id}` responds with the delivery certificate of an event.

mod certificate;
pub mod publishing;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::certificate::{Parameters, certify};
use self::publishing::{EventPublisher, NotPublished};
use self::request::{BODY_BYTES_MAX, Item, Malformed, Rules, Verdict};
use super::handshake::bearer;
use super::presence::Presence;
use super::refusal::{Refusal, RefusedRequest};
use super::websocket::Gateway;
use crate::http::client_address::Client;
use crate::http::problem::Problem;
use crate::model::event::Limits;
use crate::model::feed::Feed;
use crate::telemetry::labels::RequestRefused;

/// Most time for the body of a request. Eight megabytes in it are 2 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of the bodies of all requests. A request holds its part until its response.
const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The unit in which requests take their part of [`BODIES_BYTES_MAX`].
const SHARE_BYTES: usize = 1024;

/// The endpoint for the events of publishers.
#[derive(Debug)]
pub struct Events {
    publisher: EventPublisher,
    exchange: String,
    limits: Limits,
    broadcast_feed: Feed,
    room: Arc<Semaphore>,
}

impl Events {
    /// Accepts events within `limits`, and publishes them to `exchange`.
    pub fn new(
        publisher: EventPublisher,
        exchange: String,
        limits: Limits,
        broadcast_feed: Feed,
    ) -> Self {
        Self {
            publisher,
            exchange,
            limits,
            broadcast_feed,
            room: Arc::new(Semaphore::new(BODIES_BYTES_MAX / SHARE_BYTES)),
        }
    }

    /// Takes room for a body. Without a length, this is the room of the largest body.
    fn room(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, RefusedRequest> {
        let length = headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let bytes = length.unwrap_or(BODY_BYTES_MAX);
        if bytes > BODY_BYTES_MAX {
            return Err(too_large());
        }
        let shares = u32::try_from(bytes.div_ceil(SHARE_BYTES)).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(shares);
        room.map_err(|_| not_ready("too many events are being published: try again"))
    }
}

/// The routes.
pub fn router(events: Arc<Events>) -> Router<Arc<Gateway>> {
    let broadcast_feed = events.broadcast_feed.clone();
    let certify = async move |State(gateway): State<Arc<Gateway>>,
                              ConnectInfo(peer): ConnectInfo<SocketAddr>,
                              id: Path<String>,
                              parameters: Result<Query<Parameters>, QueryRejection>,
                              headers: HeaderMap| {
        let client = gateway.client(peer, &headers);
        let certified = certify(&gateway, &broadcast_feed, client, id, parameters, &headers).await;
        or_refusal(&gateway, certified)
    };
    let publish = async move |State(gateway): State<Arc<Gateway>>,
                              ConnectInfo(peer): ConnectInfo<SocketAddr>,
                              request: Request| {
        let client = gateway.client(peer, request.headers());
        let published = publish(&gateway, &events, client, request).await;
        or_refusal(&gateway, published)
    };
    Router::new()
        .route("/v1/events", post(publish))
        // An id may have slashes.
        .route("/v1/events/{*id}", get(certify))
}

/// The response to a publisher. A refusal is counted.
fn or_refusal(gateway: &Gateway, responded: Result<Response, RefusedRequest>) -> Response {
    responded.unwrap_or_else(|RefusedRequest { reason, problem }| {
        gateway.shared.metrics.publishing.refused.inc(reason);
        problem.into_response()
    })
}

/// Publishes the events of a request, if its token allows it, and responds with their verdicts.
async fn publish(
    gateway: &Gateway,
    events: &Events,
    client: Client,
    request: Request,
) -> Result<Response, RefusedRequest> {
    let (head, body) = request.into_parts();
    if gateway.health.draining.load(Ordering::Relaxed) {
        return Err(Refusal::Draining.into());
    }
    let admitted = match gateway.count_request(client) {
        Ok(()) => {
            gateway
                .authenticate_publisher(client, bearer(&head.headers))
                .await
        }
        Err(refusal) => Err(refusal),
    };
    let recipients = admitted.inspect_err(|refusal| gateway.log_bound(client, refusal))?;
    let _room = events.room(&head.headers)?;
    let body = read(body).await?;
    let rules = Rules {
        limits: events.limits,
        broadcast_feed: &events.broadcast_feed,
        recipients: &recipients,
        exchange: &events.exchange,
    };
    let parsed = request::parse(&head.headers, &body, &rules).map_err(RefusedRequest::from)?;
    drop(body);
    let (is_batch, items) = (parsed.is_batch, parsed.items);
    let (mut verdicts, outgoing): (Vec<_>, Vec<_>) =
        items.into_iter().map(Item::into_parts).unzip();
    let outgoing: Vec<_> = outgoing.into_iter().flatten().collect();
    let metrics = &gateway.shared.metrics.publishing;
    if !outgoing.is_empty() {
        let begun = Instant::now();
        let (published, ()) = tokio::join!(
            events.publisher.publish(outgoing),
            note_online(&gateway.shared.presence, &mut verdicts),
        );
        published?;
        metrics.confirm.observe(begun.elapsed().as_secs_f64());
    }
    for verdict in &verdicts {
        metrics.events.inc(verdict.label());
    }
    Ok(respond(is_batch, verdicts))
}

/// Notes which recipients have a session. Meanwhile RabbitMQ confirms the events.
async fn note_online(presence: &Presence, verdicts: &mut [Verdict]) {
    let mut accepted: Vec<_> = verdicts
        .iter_mut()
        .filter_map(|verdict| match verdict {
            Verdict::Accepted {
                online, recipient, ..
            } => Some((online, recipient.clone())),
            Verdict::Refused { .. } => None,
        })
        .collect();
    let recipients: Vec<_> = accepted.iter().map(|(_, feed)| feed.clone()).collect();
    let known = presence.online(&recipients).await;
    for ((online, _), known) in accepted.iter_mut().zip(known) {
        **online = known;
    }
}

async fn read(body: Body) -> Result<Vec<u8>, RefusedRequest> {
    let reading = axum::body::to_bytes(body, BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.into()),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(RefusedRequest {
            reason: RequestRefused::BadRequest,
            problem: Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive within 30 s",
            ),
        }),
    }
}

/// 200 with the verdicts of a batch, or with that of an accepted event. One refused event is a
/// problem, so that a program that reads only the status knows.
fn respond(is_batch: bool, mut verdicts: Vec<Verdict>) -> Response {
    let json = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    // Strings and names always serialize.
    if is_batch {
        let body = serde_json::to_string(&verdicts).unwrap_or_default();
        return (json, body).into_response();
    }
    match verdicts.pop() {
        Some(Verdict::Refused { reason, detail, .. }) => {
            let status = match reason {
                request::NOT_ALLOWED => StatusCode::FORBIDDEN,
                _ => StatusCode::BAD_REQUEST,
            };
            Problem::new(status, detail).reason(reason).into_response()
        }
        verdict => {
            let body = serde_json::to_string(&verdict).unwrap_or_default();
            (json, body).into_response()
        }
    }
}

fn too_large() -> RefusedRequest {
    RefusedRequest {
        reason: RequestRefused::BadRequest,
        problem: Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {BODY_BYTES_MAX} bytes: send a smaller batch"),
        ),
    }
}

fn not_ready(detail: &str) -> RefusedRequest {
    RefusedRequest {
        reason: RequestRefused::NotReady,
        problem: Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later(),
    }
}

impl From<Malformed> for RefusedRequest {
    fn from(malformed: Malformed) -> Self {
        let status = match malformed {
            Malformed::NotABatch => StatusCode::BAD_REQUEST,
            Malformed::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
        };
        Self {
            reason: RequestRefused::BadRequest,
            problem: Problem::new(status, malformed.to_string()),
        }
    }
}

impl From<NotPublished> for RefusedRequest {
    fn from(error: NotPublished) -> Self {
        not_ready(&error.to_string())
    }
}

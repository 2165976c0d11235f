//! Sessions over plain HTTP, for clients without WebSockets: `GET /v1/stream` and `GET /v1/feeds/{feed}/stream`.
//!
//! A request becomes a session, as in [`super::websocket`]. The session writes its frames into the body of the response: for
//! ever (Server-Sent Events), or until the first news (long polling). [`frames`] takes the frames of the client.

mod frames;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use url::form_urlencoded;

pub use self::frames::ack_by_path;
use super::auth::Grant;
use super::handshake::{self, SessionParameters, bearer};
use super::origin;
use super::refusal::{Refusal, RefusedRequest};
use super::session::response::{Format, ResponseBody};
use super::session::socket::Socket;
use super::session::state::Transport;
use super::session::task;
use super::websocket::Gateway;
use crate::http::client_address::Client;
use crate::http::handover::Handover;
use crate::model::feed::{Feed, Seq};
use crate::telemetry::labels::HttpTransport;

/// The id of the last event that a client of a stream received (WHATWG HTML §9.2).
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Longest wait of a poll, in seconds. Proxies close a connection that is silent for a minute; heartbeats come before.
const WAIT_SECONDS_MAX: u64 = 60;

/// The parameters of a stream that a handshake does not have.
#[derive(Debug, Default)]
struct StreamParameters {
    feeds: Vec<Feed>,
    wait: Option<Duration>,
}

/// The routes without a feed in their path.
pub fn router() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/v1/stream", get(open))
        .route("/v1/frames", post(frames::take))
}

async fn open(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (head, _) = request.into_parts();
    let client = gateway.client(peer, &head.headers);
    let opened = start(&gateway, client, None, &head).await;
    opened.unwrap_or_else(|refusal| refuse(&gateway, client, refusal))
}

/// Opens a stream of the feed of a path.
pub async fn open_by_path(
    gateway: Arc<Gateway>,
    peer: SocketAddr,
    feed: &str,
    request: Request,
) -> Response {
    let (head, _) = request.into_parts();
    let client = gateway.client(peer, &head.headers);
    let opened = start(&gateway, client, Some(feed), &head).await;
    opened.unwrap_or_else(|refusal| refuse(&gateway, client, refusal))
}

async fn start(
    gateway: &Arc<Gateway>,
    client: Client,
    feed: Option<&str>,
    head: &Parts,
) -> Result<Response, Refusal> {
    let headers = &head.headers;
    gateway.count_request(client)?;
    if !origin::is_allowed(headers, &gateway.allowed_origins) {
        return Err(Refusal::Origin);
    }
    let query = head.uri.query().unwrap_or_default();
    let mut parameters = handshake::parameters(query).map_err(Refusal::Parameter)?;
    let mut stream = parameters_of(query).map_err(Refusal::Parameter)?;
    if let Some(feed) = feed {
        let feed = Feed::parse(feed).map_err(|error| Refusal::Parameter(error.to_string()))?;
        stream.feeds = vec![feed];
    }
    resume(&mut parameters, headers, feed).map_err(Refusal::Parameter)?;
    if gateway.health.draining.load(Ordering::Relaxed) {
        return Err(Refusal::Draining);
    }
    let grant = gateway.authenticate(client, bearer(headers)).await?;
    let grant = restricted(grant, stream.feeds)?;
    let transport = match stream.wait {
        None => Transport::Stream,
        Some(wait) => Transport::Poll {
            until: Instant::now() + wait,
        },
    };
    let (opened, admitted) = gateway
        .open(parameters, grant, client.block, transport)
        .await?;
    let (content_type, format, label) = match transport {
        Transport::Poll { .. } => ("application/json", Format::Array, HttpTransport::Poll),
        Transport::WebSocket | Transport::Stream => {
            let (epoch, is_of_one_feed) = (opened.epoch.clone(), feed.is_some());
            let format = Format::Events {
                epoch,
                is_of_one_feed,
            };
            ("text/event-stream", format, HttpTransport::Stream)
        }
    };
    let is_chunked = head.version >= Version::HTTP_11;
    let Some(handover) = head.extensions.get::<Handover>() else {
        tracing::error!("a request has no handover; its stream is refused");
        return Err(Refusal::Draining);
    };
    let (body, stream) = handover.begin();
    let (shared, drain) = (gateway.shared.clone(), gateway.drain.clone());
    gateway.sessions.spawn(async move {
        // There is no stream if the client disconnected before the head was written.
        if let Ok(stream) = stream.await {
            let _counted = shared.metrics.streams.sessions.count(label);
            let socket = Socket::of_response(stream, ResponseBody::new(format, is_chunked));
            // Boxed, because otherwise each idle task would have the size of its largest state.
            Box::pin(task::run(socket, opened, shared, drain)).await;
        }
        drop(admitted);
    });
    let headers = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        // nginx would keep the frames until its buffer is full.
        (HeaderName::from_static("x-accel-buffering"), "no"),
        // The session ends the connection.
        (CONNECTION, "close"),
    ];
    Ok((headers, body).into_response())
}

fn refuse(gateway: &Gateway, client: Client, refusal: Refusal) -> Response {
    let RefusedRequest { reason, problem } = refused(gateway, client, refusal);
    gateway.shared.metrics.streams.refused.inc(reason);
    problem.into_response()
}

/// The refusal, with the close that a WebSocket would get.
fn refused(gateway: &Gateway, client: Client, refusal: Refusal) -> RefusedRequest {
    gateway.log_bound(client, &refusal);
    let close = refusal.close();
    let mut refused = RefusedRequest::from(refusal);
    if let Some(close) = close {
        refused.problem = refused
            .problem
            .reason(close.word())
            .close(close.code(), close.retry_after_ms());
    }
    refused
}

/// The same grant for some of its feeds, if any are named.
fn restricted(grant: Grant, feeds: Vec<Feed>) -> Result<Grant, Refusal> {
    if let Some(foreign) = feeds.iter().find(|feed| !grant.feeds.contains(feed)) {
        return Err(Refusal::ForeignFeed(foreign.clone()));
    }
    Ok(match feeds.is_empty() {
        true => grant,
        false => Grant { feeds, ..grant },
    })
}

fn parameters_of(query: &str) -> Result<StreamParameters, String> {
    let mut parameters = StreamParameters::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "wait" => {
                let seconds = value.parse().ok().filter(|wait| *wait <= WAIT_SECONDS_MAX);
                let seconds = seconds.ok_or("wait must be a whole number of seconds, 0 to 60")?;
                parameters.wait = Some(Duration::from_secs(seconds));
            }
            "feed" => {
                let feed = Feed::parse(&value).map_err(|error| error.to_string())?;
                if !parameters.feeds.contains(&feed) {
                    parameters.feeds.push(feed);
                }
            }
            _ => {}
        }
    }
    Ok(parameters)
}

/// Starts after the last event that the client received, which is newer than the parameters of its URL.
fn resume(
    parameters: &mut SessionParameters,
    headers: &HeaderMap,
    feed: Option<&str>,
) -> Result<(), String> {
    let id = handshake::text(headers, LAST_EVENT_ID).filter(|id| !id.is_empty());
    let Some(id) = id else { return Ok(()) };
    let id = match feed {
        Some(feed) => format!("{feed}:{id}"),
        None => id.to_owned(),
    };
    let (feed, kept) = handshake::kept_number(&id, Seq::new)
        .ok_or("Last-Event-ID must be the id of an event of this stream")?;
    parameters.after.retain(|(known, _)| *known != feed);
    parameters.after.push((feed, kept));
    Ok(())
}

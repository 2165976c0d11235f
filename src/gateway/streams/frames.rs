//! The frames of clients whose session is over HTTP: `POST /v1/frames` and `POST /v1/feeds/{feed}/ack`.
//!
//! A request may reach another replica than the session. So it does not look for the session: acks go to the cursors, where
//! the session reads them, and marks reach it as they reach all sessions of their feed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::{refused, restricted};
use crate::gateway::handshake::{self, bearer};
use crate::gateway::origin;
use crate::gateway::refusal::{Refusal, RefusedRequest};
use crate::gateway::session::task::{NotPerformed, perform_request};
use crate::gateway::websocket::Gateway;
use crate::http::client_address::Client;
use crate::http::problem::Problem;
use crate::model::feed::{Epoch, Feed};
use crate::model::frame_text::FrameText;
use crate::model::protocol::ClientFrame;
use crate::telemetry::labels::RequestRefused;

/// Most frames of a request.
const FRAMES_MAX: usize = 32;
/// Most bytes of a request: marks with 256 numbers each.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Most time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of `POST /v1/feeds/{feed}/ack`.
#[derive(Deserialize)]
struct Ack {
    #[serde(alias = "through")]
    seq: i64,
}

/// Handles `POST /v1/frames`: a frame, or an array of frames. The response has the replies.
pub(super) async fn take(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let client = gateway.client(peer, request.headers());
    let replies = perform(&gateway, client, None, request, parse).await;
    respond(&gateway, replies.map(|replies| array(&replies)))
}

/// Handles `POST /v1/feeds/{feed}/ack`.
pub async fn ack_by_path(
    gateway: &Gateway,
    peer: SocketAddr,
    feed: Result<String, RefusedRequest>,
    request: Request,
) -> Response {
    let acked = async {
        let feed = feed?;
        let client = gateway.client(peer, request.headers());
        let parse = |body: &str| {
            let Ack { seq } = serde_json::from_str(body).ok()?;
            let feed = feed.clone();
            Some(vec![ClientFrame::Ack { feed, seq }])
        };
        let replies = perform(gateway, client, Some(&feed), request, parse).await?;
        match replies.is_empty() {
            true => Ok(StatusCode::NO_CONTENT.into_response()),
            false => Err(bad(
                StatusCode::CONFLICT,
                "the feed has no such seq: ack only numbers that you received",
            )),
        }
    };
    respond(gateway, acked.await)
}

fn respond(gateway: &Gateway, done: Result<Response, RefusedRequest>) -> Response {
    done.unwrap_or_else(|RefusedRequest { reason, problem }| {
        gateway.shared.metrics.streams.refused.inc(reason);
        problem.into_response()
    })
}

/// Performs the frames of a request, if its token allows their feeds.
async fn perform(
    gateway: &Gateway,
    client: Client,
    feed: Option<&str>,
    request: Request,
    parse: impl Fn(&str) -> Option<Vec<ClientFrame>>,
) -> Result<Vec<FrameText>, RefusedRequest> {
    let refused = |refusal| refused(gateway, client, refusal);
    let (head, body) = request.into_parts();
    gateway.count_request(client).map_err(refused)?;
    if !origin::is_allowed(&head.headers, &gateway.allowed_origins) {
        return Err(refused(Refusal::Origin));
    }
    let query = head.uri.query().unwrap_or_default();
    let wrong = |detail| refused(Refusal::Parameter(detail));
    let device = handshake::parameters(query).map_err(wrong)?.device;
    let epoch = epoch_of(query).map_err(wrong)?;
    let token = bearer(&head.headers);
    let grant = gateway.authenticate(client, token).await.map_err(refused)?;
    let feeds: Vec<_> = match feed.map(Feed::parse).transpose() {
        Ok(feed) => feed.into_iter().collect(),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut grant = restricted(grant, feeds).map_err(refused)?;
    let body = read(body).await?;
    let frames = parse(&body).ok_or_else(|| {
        bad(
            StatusCode::BAD_REQUEST,
            "the body is not a frame or an array of frames",
        )
    })?;
    if frames.len() > FRAMES_MAX {
        return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, "too many frames"));
    }
    // The session needs the cursors of these feeds only. The broadcast feed has the epoch in any case.
    let is_named = |feed: &Feed| {
        frames
            .iter()
            .any(|frame| frame.feed() == Some(feed.as_str()))
    };
    // The state of a device is that of all its feeds.
    let is_of_all = |frame: &ClientFrame| matches!(frame, ClientFrame::DeviceState(_));
    if frames.iter().any(is_of_all) {
    } else if grant.feeds.iter().any(is_named) {
        grant.feeds.retain(is_named);
    } else {
        grant.feeds.truncate(1);
    }
    let opened = gateway
        .open_for_request(device, grant)
        .await
        .map_err(refused)?;
    if epoch.is_some_and(|epoch| epoch != opened.epoch) {
        let problem = bad(
            StatusCode::CONFLICT,
            "the epoch has changed: these numbers may belong to other notifications now",
        );
        return Err(RefusedRequest {
            problem: problem.problem.reason("epoch_changed"),
            ..problem
        });
    }
    perform_request(opened, frames, gateway.shared.clone())
        .await
        .map_err(|error| match error {
            NotPerformed::Closed(_) => bad(StatusCode::BAD_REQUEST, "a frame is wrong"),
            NotPerformed::NotStored => RefusedRequest {
                reason: RequestRefused::NotReady,
                problem: Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the frames are not stored yet: send them again",
                )
                .retry_later(),
            },
        })
}

fn parse(body: &str) -> Option<Vec<ClientFrame>> {
    if !body.trim_start().starts_with('[') {
        return Some(vec![ClientFrame::parse(body)?]);
    }
    let frames: Vec<&RawValue> = serde_json::from_str(body).ok()?;
    let frames = frames
        .into_iter()
        .map(|frame| ClientFrame::parse(frame.get()));
    frames.collect()
}

fn epoch_of(query: &str) -> Result<Option<Epoch>, String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let epoch = pairs.find(|(name, _)| name == "epoch");
    let epoch = epoch.map(|(_, epoch)| Epoch::parse(&epoch)).transpose();
    epoch.map_err(|_| "epoch must be the epoch of welcome".into())
}

async fn read(body: Body) -> Result<String, RefusedRequest> {
    let reading = axum::body::to_bytes(body, BODY_BYTES_MAX);
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let detail = "the body has more than 64 KiB";
            return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        Err(_) => {
            let detail = "the body did not arrive within 10 s";
            return Err(bad(StatusCode::REQUEST_TIMEOUT, detail));
        }
    };
    let text = String::from_utf8(bytes.into());
    text.map_err(|_| bad(StatusCode::BAD_REQUEST, "the body is not UTF-8"))
}

fn array(replies: &[FrameText]) -> Response {
    let json = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    let replies: Vec<_> = replies.iter().map(FrameText::as_str).collect();
    (json, format!("[{}]\n", replies.join(",\n"))).into_response()
}

fn bad(status: StatusCode, detail: &str) -> RefusedRequest {
    RefusedRequest {
        reason: RequestRefused::BadRequest,
        problem: Problem::new(status, detail),
    }
}

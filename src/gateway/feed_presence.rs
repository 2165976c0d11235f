//! `GET /v1/feeds/{feed}/presence`: whether a feed has sessions, and the devices of its subscribers.
//!
//! A request with a token comes in; JSON goes out. A token may ask about the feeds that it reads, and
//! about the recipients to whom it may publish.

use std::net::SocketAddr;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::handshake::bearer;
use super::refusal::{Refusal, RefusedRequest};
use super::websocket::Gateway;
use crate::http::problem::Problem;
use crate::model::feed::Feed;
use crate::store::StoreError;
use crate::store::presence::read;
use crate::telemetry::labels::RequestRefused;

/// Responds to a request for the feed of its path.
pub async fn read_by_path(
    gateway: &Gateway,
    peer: SocketAddr,
    feed: &str,
    head: &Parts,
) -> Response {
    let presence = presence(gateway, peer, feed, &head.headers).await;
    presence.unwrap_or_else(|RefusedRequest { reason, problem }| {
        gateway.shared.metrics.presence.refused.inc(reason);
        problem.into_response()
    })
}

async fn presence(
    gateway: &Gateway,
    peer: SocketAddr,
    feed: &str,
    headers: &HeaderMap,
) -> Result<Response, RefusedRequest> {
    let client = gateway.client(peer, headers);
    let admitted = match gateway.count_request(client) {
        Ok(()) => gateway.authenticate_watcher(client, bearer(headers)).await,
        Err(refusal) => Err(refusal),
    };
    let watcher = admitted.inspect_err(|refusal| gateway.log_bound(client, refusal))?;
    let feed = Feed::parse(feed).map_err(|error| bad(error.to_string()))?;
    if !gateway.shared.presence.has(&feed) {
        return Err(bad(
            "everyone reads the broadcast feed, so it has no presence".into(),
        ));
    }
    if !watcher.allows(&feed) {
        return Err(Refusal::ForeignFeed(feed).into());
    }
    let presence = read(&gateway.history, &feed).await.map_err(unreadable)?;
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    // Names, numbers and times always serialize.
    let body = serde_json::to_string(&presence).unwrap_or_default();
    Ok((headers, body).into_response())
}

fn unreadable(error: StoreError) -> RefusedRequest {
    tracing::warn!(%error, "the presence of a feed could not be read");
    let detail = "the database does not answer: try again";
    RefusedRequest {
        reason: RequestRefused::NotReady,
        problem: Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later(),
    }
}

fn bad(detail: String) -> RefusedRequest {
    RefusedRequest {
        reason: RequestRefused::BadRequest,
        problem: Problem::new(StatusCode::BAD_REQUEST, detail),
    }
}

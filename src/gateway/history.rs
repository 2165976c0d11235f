//! The history: `GET /v1/feeds/{feed}/notifications` and `GET /v1/notifications?feed={feed}`.
//!
//! A request with a token comes in; a page of one feed goes out as JSON, newest first. It never
//! changes a cursor or a mark.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::handshake::bearer;
use super::refusal::{Refusal, RefusedRequest};
use super::websocket::Gateway;
use crate::http::problem::Problem;
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::store::StoreError;
use crate::store::history::{HistoryPage, HistoryRequest, read};
use crate::telemetry::labels::RequestRefused;

const LIMIT_DEFAULT: u8 = 50;
/// Most notifications of one page. `PAGE_BYTES_MAX` of the store bounds its bytes.
const LIMIT_MAX: u8 = 200;

/// The query. Other parameters are ignored.
#[derive(Debug, Deserialize)]
struct Parameters {
    /// Present only if the path has no feed.
    feed: Option<String>,
    before: Option<i64>,
    limit: Option<u8>,
    #[serde(default)]
    unread: bool,
    #[serde(default)]
    unhandled: bool,
    collapse: Option<bool>,
}

/// The refusal of a token. One without a feed is forbidden for a session and unauthorized here.
fn of_caller(refusal: Refusal) -> RefusedRequest {
    match refusal {
        Refusal::Token(error) => RefusedRequest {
            reason: Refusal::Token(error).label(),
            problem: Problem::unauthorized(error.to_string(), error.retry_after()),
        },
        refusal => refusal.into(),
    }
}

#[derive(Serialize)]
struct Body<'a> {
    feed: &'a Feed,
    last: Seq,
    version: Version,
    epoch: &'a Epoch,
    unread: i64,
    unhandled: i64,
    /// The `notification` frames of the WebSocket protocol.
    notifications: Vec<&'a RawValue>,
    /// `before` of the next page. A short or empty page may have one too.
    next: Option<Seq>,
}

/// The feed of `/v1/notifications` without a query: for the feed `..`, URL parsers remove two
/// segments.
const DOT_DOT: &str = "..";

/// The route for feeds in whose path proxies merge slashes or browsers remove dots.
pub fn router() -> Router<Arc<Gateway>> {
    Router::new().route("/v1/notifications", get(list_by_query))
}

/// Responds to a request for the feed of its path.
pub async fn list_by_path(
    gateway: &Gateway,
    peer: SocketAddr,
    feed: Result<String, RefusedRequest>,
    head: &Parts,
) -> Response {
    let parameters = Query::try_from_uri(&head.uri);
    let listed = match feed {
        Ok(feed) => list(gateway, peer, &feed, parameters, &head.headers).await,
        Err(refused) => Err(refused),
    };
    respond(gateway, listed)
}

async fn list_by_query(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let named = parameters
        .as_ref()
        .ok()
        .and_then(|parameters| parameters.feed.clone());
    let feed = named.as_deref().unwrap_or(DOT_DOT);
    let listed = list(&gateway, peer, feed, parameters, &headers).await;
    respond(&gateway, listed)
}

/// The response with the page. A refusal is counted.
fn respond(gateway: &Gateway, listed: Result<Response, RefusedRequest>) -> Response {
    listed.unwrap_or_else(|RefusedRequest { reason, problem }| {
        gateway.shared.metrics.refused.history.inc(reason);
        problem.into_response()
    })
}

/// Responds with a page of a feed, if the token names the feed.
async fn list(
    gateway: &Gateway,
    peer: SocketAddr,
    feed: &str,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, RefusedRequest> {
    let client = gateway.client(peer, headers);
    let admitted = match gateway.count_request(client) {
        Ok(()) => gateway.authenticate(client, bearer(headers)).await,
        Err(refusal) => Err(refusal),
    };
    let grant = admitted
        .inspect_err(|refusal| gateway.log_bound(client, refusal))
        .map_err(of_caller)?;
    let feed = Feed::parse(feed).map_err(|error| bad(error.to_string()))?;
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    if !grant.feeds.contains(&feed) {
        if feed.as_str() == DOT_DOT && parameters.feed.is_none() {
            return Err(bad("name the feed: /v1/notifications?feed=FEED".into()));
        }
        return Err(Refusal::ForeignFeed(feed).into());
    }
    let request = request(feed, &parameters).map_err(|detail| bad(detail.into()))?;
    let page = read(&gateway.history, &request)
        .await
        .map_err(|error| unreadable(gateway, &request.feed, &error))?;
    // Counts and times change, and the page is for one subscriber.
    Ok((
        [
            (CONTENT_TYPE, "application/json"),
            (CACHE_CONTROL, "no-store"),
        ],
        body(&request.feed, &page),
    )
        .into_response())
}

fn unreadable(gateway: &Gateway, feed: &Feed, error: &StoreError) -> RefusedRequest {
    let reason = RequestRefused::NotReady;
    if let StoreError::Away(_) | StoreError::Silent(_) = error {
        tracing::warn!(%error, "a page of history could not be read");
        let detail = "the database does not answer: try again";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later();
        return RefusedRequest { reason, problem };
    }
    let damaged = u64::from(error.blames_rows());
    gateway.shared.metrics.damaged_reads.inc_by(damaged);
    tracing::error!(%error, feed = feed.as_str(), "a page of history could not be read");
    let problem = Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this page of history cannot be read",
    );
    RefusedRequest { reason, problem }
}

fn bad(detail: String) -> RefusedRequest {
    RefusedRequest {
        reason: RequestRefused::BadRequest,
        problem: Problem::new(StatusCode::BAD_REQUEST, detail),
    }
}

fn request(feed: Feed, parameters: &Parameters) -> Result<HistoryRequest, &'static str> {
    let before = match parameters.before {
        Some(before) => Some(
            Seq::new(before)
                .filter(|seq| *seq > Seq::ZERO)
                .ok_or("before must be a seq: a whole number from 1")?,
        ),
        None => None,
    };
    let limit = parameters.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err("limit must be a whole number from 1 to 200");
    }
    let (unread, unhandled) = (parameters.unread, parameters.unhandled);
    // Pages of `unread` or `unhandled` are not collapsed, so that their length matches the counts.
    let collapse = parameters.collapse.unwrap_or(!unread && !unhandled);
    Ok(HistoryRequest {
        feed,
        before,
        limit,
        unread,
        unhandled,
        collapse,
    })
}

fn body(feed: &Feed, page: &HistoryPage) -> String {
    // A frame is always JSON.
    let frames = page
        .notifications
        .iter()
        .filter_map(|notification| serde_json::from_str(&notification.frame).ok());
    let body = Body {
        feed,
        last: page.counts.last,
        version: page.version,
        epoch: &page.epoch,
        unread: page.counts.unread,
        unhandled: page.counts.unhandled,
        notifications: frames.collect(),
        next: page.next,
    };
    // Numbers, names and raw JSON always serialize.
    serde_json::to_string(&body).unwrap_or_default()
}

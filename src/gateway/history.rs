//! `GET /v1/feeds/{feed}/notifications` and `GET /v1/notifications?feed={feed}`: looking back, newest first, a page at a time.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tower_http::cors::CorsLayer;

use super::handshake::{bearer, unauthorized};
use super::websocket::Gateway;
use crate::gateway::auth::TokenError;
use crate::http::problem::Problem;
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::store::StoreError;
use crate::store::history::{HistoryPage, Look, read};

const LIMIT_DEFAULT: u8 = 50;
const LIMIT_MAX: u8 = 200;
/// How long a browser may remember which origins are let in.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// The query. What is not named here is ignored.
#[derive(Debug, Deserialize)]
struct Parameters {
    /// Only if the path does not name it.
    feed: Option<String>,
    before: Option<i64>,
    limit: Option<u8>,
    #[serde(default)]
    unread: bool,
    #[serde(default)]
    unhandled: bool,
    collapse: Option<bool>,
}

/// The answer.
#[derive(Serialize)]
struct Answer<'a> {
    feed: &'a Feed,
    last: Seq,
    version: Version,
    epoch: &'a Epoch,
    unread: i64,
    unhandled: i64,
    /// The `notification` frames of the WebSocket protocol.
    notifications: Vec<&'a RawValue>,
    /// `before` of the next page; a page may be short or empty and still have one.
    next: Option<Seq>,
}

/// The feed `.` in a path: a URL parser removes that segment (RFC 3986 §5.2.4, WHATWG URL), so this is all that arrives …
const REST_OF_DOT: &str = "notifications";
/// … and it removes two for the feed `..`, which leaves `/v1/notifications`.
const DOT_DOT: &str = "..";

/// The routes; pages of these origins may ask.
pub fn router(allowed_origins: &[String]) -> Router<Arc<Gateway>> {
    Router::new()
        // A feed may have slashes, and many proxies decode %2F.
        .route("/v1/feeds/{*rest}", get(of_path))
        // Some proxies merge slashes, and browsers remove segments of dots.
        .route("/v1/notifications", get(of_query))
        .layer(cors(allowed_origins))
}

async fn of_path(
    State(gateway): State<Arc<Gateway>>,
    rest: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(rest) = rest.map_err(|error| bad(error.to_string()))?;
    let feed = if rest == REST_OF_DOT {
        Some(".")
    } else {
        rest.strip_suffix("/notifications")
    };
    let feed = feed.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "there is /v1/feeds/{feed}/notifications",
        )
    })?;
    list(&gateway, feed, parameters, &headers).await
}

async fn of_query(
    State(gateway): State<Arc<Gateway>>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let feed = parameters
        .as_ref()
        .ok()
        .and_then(|parameters| parameters.feed.clone());
    list(
        &gateway,
        feed.as_deref().unwrap_or(DOT_DOT),
        parameters,
        &headers,
    )
    .await
}

/// Answers with a page of a feed that the token names.
async fn list(
    gateway: &Gateway,
    feed: &str,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let token = bearer(headers).ok_or_else(|| unauthorized(TokenError::Missing))?;
    let grant = gateway
        .shared
        .authenticator
        .check(token)
        .map_err(unauthorized)?;
    let feed = Feed::parse(feed).map_err(|error| bad(error.to_string()))?;
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    if !grant.feeds.contains(&feed) {
        if feed.as_str() == DOT_DOT && parameters.feed.is_none() {
            return Err(bad("name the feed: /v1/notifications?feed=FEED".into()));
        }
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("the token does not name the feed {feed}"),
        ));
    }
    let look = look(feed, &parameters).map_err(|detail| bad(detail.into()))?;
    let page = read(&gateway.history, &look).await.map_err(|error| match error {
        StoreError::Away(_) | StoreError::Silent(_) => {
            tracing::warn!(%error, "a page of history could not be read");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer").retry_later()
        }
        error => {
            gateway.shared.metrics.damaged_reads.inc_by(u64::from(error.blames_rows()));
            tracing::error!(%error, feed = look.feed.as_str(), "a page of history could not be read");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the history could not be read")
        }
    })?;
    // Numbers and times of a person: not for a cache between us.
    Ok((
        [
            (CONTENT_TYPE, "application/json"),
            (CACHE_CONTROL, "no-store"),
        ],
        body(&look.feed, &page),
    )
        .into_response())
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// Lets the pages of these origins ask, as they may connect; without a list only the page's own.
fn cors(allowed_origins: &[String]) -> CorsLayer {
    // What the configuration took is printable; what were not could not be an origin.
    let origins = allowed_origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_methods([Method::GET])
        .allow_headers([AUTHORIZATION])
        .max_age(PREFLIGHT_MAX_AGE)
}

fn look(feed: Feed, parameters: &Parameters) -> Result<Look, &'static str> {
    let before = match parameters.before {
        Some(before) => Some(
            Seq::new(before)
                .filter(|seq| *seq > Seq::ZERO)
                .ok_or("before must be a seq, from 1")?,
        ),
        None => None,
    };
    let limit = parameters.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err("limit must be a whole number from 1 to 200");
    }
    let (unread, unhandled) = (parameters.unread, parameters.unhandled);
    // Who asks for what is counted gets what is counted.
    let collapse = parameters.collapse.unwrap_or(!unread && !unhandled);
    Ok(Look {
        feed,
        before,
        limit,
        unread,
        unhandled,
        collapse,
    })
}

fn body(feed: &Feed, page: &HistoryPage) -> String {
    // A frame is JSON: it was rendered as such.
    let frames = page
        .notifications
        .iter()
        .filter_map(|notification| serde_json::from_str(&notification.frame).ok());
    let answer = Answer {
        feed,
        last: page.counts.last,
        version: page.version,
        epoch: &page.epoch,
        unread: page.counts.unread,
        unhandled: page.counts.unhandled,
        notifications: frames.collect(),
        next: page.next,
    };
    // Serialising numbers, names and raw JSON to a string cannot fail.
    serde_json::to_string(&answer).unwrap_or_default()
}

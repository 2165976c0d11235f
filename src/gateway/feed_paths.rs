//! The paths of one feed, `/v1/feeds/{feed}/…`, and the pages that may fetch them and their like without a feed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::get;
use tower_http::cors::CorsLayer;

use super::feed_presence;
use super::history;
use super::refusal::RefusedRequest;
use super::streams;
use super::websocket::Gateway;
use crate::http::problem::Problem;
use crate::telemetry::labels::RequestRefused;

const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// The routes of feeds: their history, their presence and their streams. Pages of these origins may fetch them.
pub fn router(allowed_origins: &[String]) -> Router<Arc<Gateway>> {
    Router::new()
        // A feed may have slashes, and many proxies decode `%2F`.
        .route("/v1/feeds/{*rest}", get(by_path).post(ack_by_path))
        .merge(history::router())
        .merge(streams::router())
        .layer(cors(allowed_origins))
}

async fn by_path(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    rest: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    if let Some(feed) = feed_of(&rest, "stream") {
        return streams::open_by_path(gateway, peer, &feed, request).await;
    }
    if let Some(feed) = feed_of(&rest, "presence") {
        return feed_presence::read_by_path(&gateway, peer, &feed, &request.into_parts().0).await;
    }
    let feed = match feed_of(&rest, "notifications") {
        Some(feed) => Ok(feed),
        None => Err(unknown(rest)),
    };
    history::list_by_path(&gateway, peer, feed, &request.into_parts().0).await
}

async fn ack_by_path(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    rest: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let feed = feed_of(&rest, "ack").ok_or_else(|| unknown(rest));
    streams::ack_by_path(&gateway, peer, feed, request).await
}

/// The feed of a path that ends with this segment. URL parsers remove the segment of the feed `.` (RFC 3986 §5.2.4,
/// WHATWG URL).
fn feed_of(rest: &Result<Path<String>, PathRejection>, last: &str) -> Option<String> {
    let Path(rest) = rest.as_ref().ok()?;
    let feed = rest.strip_suffix(last)?;
    match feed.is_empty() {
        true => Some(".".into()),
        false => feed.strip_suffix('/').map(str::to_owned),
    }
}

fn unknown(rest: Result<Path<String>, PathRejection>) -> RefusedRequest {
    let (status, detail) = match rest {
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()),
        Ok(_) => (
            StatusCode::NOT_FOUND,
            "unknown path: use /v1/feeds/{feed}/notifications, …/stream, …/presence or …/ack"
                .into(),
        ),
    };
    RefusedRequest {
        reason: RequestRefused::BadRequest,
        problem: Problem::new(status, detail),
    }
}

/// The origins that may fetch: those that may connect. Without a list, only the same origin.
fn cors(allowed_origins: &[String]) -> CorsLayer {
    // The configuration accepts only printable origins.
    let origins = allowed_origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, streams::LAST_EVENT_ID])
        .max_age(PREFLIGHT_MAX_AGE)
}

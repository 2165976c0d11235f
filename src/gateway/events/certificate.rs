//! `GET /v1/events/{id}?source=…`: the delivery certificate of an event, for its publisher.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::super::handshake::bearer;
use super::super::refusal::{Refusal, RefusedRequest};
use super::super::websocket::Gateway;
use crate::http::client_address::Client;
use crate::http::problem::Problem;
use crate::model::feed::Feed;
use crate::store::certificates::{Certificate, of_event};
use crate::telemetry::labels::RequestRefused;

/// The query. Other parameters are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Parameters {
    source: String,
    /// Needed if the token names its recipients by prefixes only.
    recipient: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    source: &'a str,
    notifications: &'a [Certificate],
}

/// Responds with the certificates of an event, one for each recipient of the token that has it.
pub(super) async fn certify(
    gateway: &Gateway,
    broadcast_feed: &Feed,
    client: Client,
    Path(id): Path<String>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, RefusedRequest> {
    let admitted = match gateway.count_request(client) {
        Ok(()) => {
            gateway
                .authenticate_publisher(client, bearer(headers))
                .await
        }
        Err(refusal) => Err(refusal),
    };
    let recipients = admitted.inspect_err(|refusal| gateway.log_bound(client, refusal))?;
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    let feeds = match &parameters.recipient {
        Some(name) => {
            let feed = Feed::parse(name).map_err(|error| bad(error.to_string()))?;
            if !recipients.allow(&feed, broadcast_feed) {
                return Err(Refusal::ForeignFeed(feed).into());
            }
            vec![feed]
        }
        None => recipients.named(),
    };
    if feeds.is_empty() {
        let detail =
            "the token names prefixes only: name the recipient, ?source=SOURCE&recipient=RECIPIENT";
        return Err(bad(detail.into()));
    }
    let certificates = of_event(&gateway.history, &feeds, &parameters.source, &id).await;
    let certificates = certificates.map_err(|error| {
        tracing::warn!(%error, "a delivery certificate could not be read");
        let detail = "the database does not answer: try again";
        RefusedRequest {
            reason: RequestRefused::NotReady,
            problem: Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later(),
        }
    })?;
    if certificates.is_empty() {
        let detail = "no recipient of this token has this event: it is not stored yet, became a dead letter, or retention has removed it";
        return Err(RefusedRequest {
            reason: RequestRefused::BadRequest,
            problem: Problem::new(StatusCode::NOT_FOUND, detail),
        });
    }
    let body = Body {
        id: &id,
        source: &parameters.source,
        notifications: &certificates,
    };
    // Texts, numbers and times of Postgres always serialize.
    let body = serde_json::to_string(&body).unwrap_or_default();
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

fn bad(detail: String) -> RefusedRequest {
    RefusedRequest {
        reason: RequestRefused::BadRequest,
        problem: Problem::new(StatusCode::BAD_REQUEST, detail),
    }
}

//! The routes of the operations port: `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::http::problem::Problem;
use crate::store::pool::Pool;
use crate::store::{self, StoreError};
use crate::telemetry::exposition::Exposition;
use crate::telemetry::health::{BrokerState, Health};
use crate::telemetry::metrics::Metrics;

/// The limit of the alert ShopbellIngestStuck.
const STUCK_SECONDS: f64 = 30.0;
/// Most time for the database to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);
/// The detail if every session would be refused.
const KEYLESS: &str =
    "there is no key for tokens: the key set of SHOPBELL_JWKS_URL could not be fetched";

/// The state that the routes report.
#[derive(Debug, Clone)]
pub struct Operations {
    /// The health of the parts.
    pub health: Arc<Health>,
    /// The metrics that `/readyz` reads and `/metrics` updates.
    pub metrics: Arc<Metrics>,
    /// All metrics.
    pub registry: Arc<Registry>,
    /// The pool that checks the database.
    pub pool: Pool,
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    /// `ready`, `degraded` (RabbitMQ is away or blocks publishers, or ingest is stuck; sessions are served from Postgres), `unready` or `draining`.
    status: &'static str,
    database: &'static str,
    broker: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// The routes.
pub fn router(operations: Operations) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "there is /livez, /readyz and /metrics",
            )
        })
        .with_state(operations)
}

async fn ready(State(operations): State<Operations>) -> Response {
    let checked = tokio::time::timeout(DATABASE_TIMEOUT, check(&operations.pool)).await;
    let (database, mut failure) = match checked {
        Ok(Ok(())) => ("ok", None),
        Ok(Err(error @ StoreError::ReadOnly(_))) => ("read_only", Some(error.to_string())),
        Ok(Err(error)) => ("away", Some(error.to_string())),
        Err(_) => (
            "away",
            Some(format!(
                "the database did not answer within {DATABASE_TIMEOUT:?}"
            )),
        ),
    };
    if failure.is_none() && operations.health.keyless.load(Ordering::Relaxed) {
        failure = Some(KEYLESS.into());
    }
    let broker = operations.health.broker();
    let error = operations.health.append_error();
    let stuck = stuck(operations.metrics.holding.oldest(), error);
    let (code, status) = match (
        &failure,
        operations.health.draining.load(Ordering::Relaxed),
        broker == BrokerState::Ok,
        &stuck,
    ) {
        (_, true, ..) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (Some(_), ..) => (StatusCode::SERVICE_UNAVAILABLE, "unready"),
        (None, _, true, None) => (StatusCode::OK, "ready"),
        (None, ..) => (StatusCode::OK, "degraded"),
    };
    let readiness = Readiness {
        status,
        database,
        broker: broker.as_str(),
        detail: failure.or(stuck),
    };
    (code, Json(readiness)).into_response()
}

/// The detail if ingest is stuck although Postgres answers, as if its disk is full. Ends with the error
/// of the last append. Sessions are served all the same.
fn stuck(held_seconds: f64, append_error: Option<String>) -> Option<String> {
    let error = append_error.map(|error| format!(": {error}"));
    (held_seconds > STUCK_SECONDS).then(|| {
        format!(
            "ingest has held a delivery for {held_seconds:.0} s without storing it{}",
            error.unwrap_or_default()
        )
    })
}

/// Tries further connections of the pool if one is broken or leads to a former primary. A read-only answer closes its
/// connection, so the last attempt uses a new one.
async fn check(pool: &Pool) -> Result<(), StoreError> {
    for _ in 0..pool.size() {
        match store::check(pool).await {
            Err(StoreError::Away(_) | StoreError::Silent(_)) => {}
            Err(StoreError::ReadOnly(_)) => break,
            checked => return checked,
        }
    }
    store::check(pool).await
}

async fn metrics(State(operations): State<Operations>, headers: HeaderMap) -> Response {
    let Operations {
        health,
        metrics,
        registry,
        ..
    } = operations;
    for (part, works) in health.parts() {
        metrics.part_up.set(part, works.into());
    }
    metrics
        .draining
        .set(health.draining.load(Ordering::Relaxed).into());
    exposition(registry, &headers).await
}

/// The metrics, in the format that the client accepts.
pub(super) async fn exposition(registry: Arc<Registry>, headers: &HeaderMap) -> Response {
    let accept = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    let exposition = Exposition::of_accept(accept);
    // It may count open files one by one, so it runs outside the async threads.
    match tokio::task::spawn_blocking(move || exposition.render(&registry)).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, exposition.content_type())], text).into_response(),
        Ok(Err(error)) => internal(&error),
        Err(error) => internal(&error),
    }
}

fn internal(error: &dyn std::error::Error) -> Response {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_of_stuck_ingest_ends_with_the_error() {
        let error = || Some("could not extend file".to_owned());
        assert_eq!(stuck(STUCK_SECONDS, error()), None);
        let text = "ingest has held a delivery for 31 s without storing it";
        assert_eq!(stuck(31.0, None).as_deref(), Some(text));
        let with_error = format!("{text}: could not extend file");
        assert_eq!(stuck(31.0, error()), Some(with_error));
    }
}

//! The operations port of `shopbell relay`: `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::routes::exposition;
use crate::amqp::Broker;
use crate::http::problem::Problem;
use crate::outbox::state::{Duty, Publishing, State};
use crate::telemetry::metrics::RelayMetrics;

/// The state that the routes report.
#[derive(Debug, Clone)]
pub struct RelayOperations {
    /// The state of the relay.
    pub state: Arc<State>,
    /// The RabbitMQ that the relay publishes to.
    pub broker: Broker,
    /// The metrics that `/metrics` updates.
    pub metrics: Arc<RelayMetrics>,
    /// All metrics.
    pub registry: Arc<Registry>,
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    /// `ready`, `degraded` (RabbitMQ is away or blocks publishers), `unready` or `draining`.
    status: &'static str,
    /// `active`, `standby` (another relay publishes) or `away`.
    relay: &'static str,
    broker: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// The routes.
pub fn router(operations: RelayOperations) -> Router {
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

async fn ready(Shared(operations): Shared<RelayOperations>) -> Response {
    let (duty, mut publishing, is_draining, detail) = operations.state.read();
    // An alarm delays a confirm for as long as it lasts, and is no failure.
    if operations.broker.blocks_publishers() {
        publishing = Publishing::Blocked;
    }
    let (code, status) = match (is_draining, duty, publishing) {
        (true, ..) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (_, Duty::Away, _) => (StatusCode::SERVICE_UNAVAILABLE, "unready"),
        (_, _, Publishing::Ok) => (StatusCode::OK, "ready"),
        _ => (StatusCode::OK, "degraded"),
    };
    let readiness = Readiness {
        status,
        relay: match duty {
            Duty::Active => "active",
            Duty::Standby => "standby",
            Duty::Away => "away",
        },
        broker: match publishing {
            Publishing::Ok => "ok",
            Publishing::Blocked => "blocked",
            Publishing::Failing => "away",
        },
        detail,
    };
    (code, Json(readiness)).into_response()
}

async fn metrics(Shared(operations): Shared<RelayOperations>, headers: HeaderMap) -> Response {
    let (duty, ..) = operations.state.read();
    let is_active = duty == Duty::Active;
    operations.metrics.active.set(is_active.into());
    exposition(operations.registry, &headers).await
}

//! `GET /v1/ws`: a request becomes a session, or gets a [`Refusal`].
//!
//! It checks the handshake, the origin and the token, and opens the session. The session then runs
//! as a task of its own. This module never reads a frame.

mod caller;
mod opening;
mod places;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::places::{Places, REFUSALS_MAX};
use super::admission::{Admission, Admitted};
use super::handshake::{self, Offer};
use super::origin;
use super::refusal::Refusal;
use super::session::closing::send_close;
use super::session::socket::Socket;
use super::session::state::Transport;
use super::session::task::{self, Opened, Shared};
use crate::config::ProxyConfig;
use crate::fanout::hub::Hub;
use crate::http::client_address::Client;
use crate::http::connections::upgraded;
use crate::model::protocol::SUBPROTOCOL;
use crate::store::pool::Pool;
use crate::telemetry::health::Health;

/// The gateway of a replica.
#[derive(Debug)]
pub struct Gateway {
    /// The parts that all sessions share.
    pub shared: Arc<Shared>,
    /// Wakes the sessions.
    pub hub: Arc<Hub>,
    /// Bounds the number of sessions.
    pub admission: Arc<Admission>,
    /// The proxies that may name the client of a request.
    pub proxies: ProxyConfig,
    /// Whether the replica drains.
    pub health: Arc<Health>,
    /// The database pool of the history.
    pub history: Pool,
    /// `SHOPBELL_ALLOWED_ORIGINS`.
    pub allowed_origins: Vec<String>,
    /// `SHOPBELL_MAX_FRAME_BYTES`.
    pub frame_bytes_max: usize,
    /// Bounds the refused pages that get a close.
    pub places: Places,
    /// The tasks of sessions and of refused pages.
    pub sessions: TaskTracker,
    /// Ends the sessions when the replica drains.
    pub drain: CancellationToken,
}

/// Handles a request of `GET /v1/ws`.
pub async fn connect(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
) -> Response {
    let client = gateway.client(peer, request.headers());
    let counted = gateway.count_request(client);
    let upgrade = hyper::upgrade::on(&mut request);
    let offer = match handshake::offer(request.version(), request.headers()) {
        Ok(offer) => offer,
        Err(reason) => return gateway.refuse(client, &counted.err().unwrap_or(reason.into())),
    };
    if !origin::is_allowed(request.headers(), &gateway.allowed_origins) {
        return gateway.refuse(client, &counted.err().unwrap_or(Refusal::Origin));
    }
    let query = request.uri().query().unwrap_or_default();
    let admitted = match counted {
        Ok(()) => gateway.admit(client, &offer, query).await,
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Ok((opened, admitted)) => gateway.accept(&offer, upgrade, opened, admitted),
        Err(refusal) if offer.is_page => gateway.refuse_page(client, &offer, upgrade, &refusal),
        Err(refusal) => gateway.refuse(client, &refusal),
    }
}

impl Gateway {
    async fn admit(
        &self,
        client: Client,
        offer: &Offer,
        query: &str,
    ) -> Result<(Opened, Admitted), Refusal> {
        let parameters = handshake::parameters(query).map_err(Refusal::Parameter)?;
        if self.health.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let grant = self.authenticate(client, offer.token.as_deref()).await?;
        self.open(parameters, grant, client.block, Transport::WebSocket)
            .await
    }

    fn accept(
        &self,
        offer: &Offer,
        upgrade: OnUpgrade,
        opened: Opened,
        admitted: Admitted,
    ) -> Response {
        let (shared, drain) = (self.shared.clone(), self.drain.clone());
        let frame_bytes_max = self.frame_bytes_max;
        self.sessions.spawn(async move {
            // There is no stream if the client disconnected before the upgrade.
            if let Some((stream, unread)) = upgraded(upgrade).await {
                let socket = Socket::new(stream, unread, frame_bytes_max);
                // Boxed, because otherwise each idle task would have the size of its largest state.
                Box::pin(task::run(socket, opened, shared, drain)).await;
            }
            drop(admitted);
        });
        switching_protocols(offer)
    }

    fn refuse(&self, client: Client, refusal: &Refusal) -> Response {
        self.count(client, refusal);
        refusal.problem().into_response()
    }

    /// Refuses a page: completes the upgrade and sends a close. If there is no place for it,
    /// refuses with an HTTP status.
    fn refuse_page(
        &self,
        client: Client,
        offer: &Offer,
        upgrade: OnUpgrade,
        refusal: &Refusal,
    ) -> Response {
        let place = self.places.take(refusal);
        let (Some(place), Some(close)) = (place, refusal.close()) else {
            return self.refuse(client, refusal);
        };
        self.count(client, refusal);
        let reason = close.reason_with(refusal.problem().detail());
        let frame_bytes_max = self.frame_bytes_max;
        self.sessions.spawn(async move {
            if let Some((stream, unread)) = upgraded(upgrade).await {
                let socket = Socket::new(stream, unread, frame_bytes_max);
                send_close(socket, close, &reason, |_| {}).await;
            }
            drop(place);
        });
        switching_protocols(offer)
    }

    fn count(&self, client: Client, refusal: &Refusal) {
        self.log_bound(client, refusal);
        let reason = refusal.label();
        tracing::debug!(
            reason = reason.as_str(),
            detail = refusal.problem().detail(),
            "a handshake was refused"
        );
        self.shared.metrics.refused.handshakes.inc(reason);
    }
}

/// The response to a handshake (RFC 6455 §4.2.2).
fn switching_protocols(offer: &Offer) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(offer.key.as_bytes()).parse() {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if offer.subprotocol {
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    response
}

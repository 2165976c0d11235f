//! `GET /v1/ws`: a request becomes a session, or gets a [`Refusal`].
//!
//! It checks the handshake, the origin and the token, and opens the session. The session then runs
//! as a task of its own. This module never reads a frame.

mod caller;
mod opening;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::caller::Caller;
use super::admission::{Admission, Admitted};
use super::handshake::{self, Offer};
use super::origin;
use super::rates::Rates;
use super::refusal::Refusal;
use super::session::closing::send_close;
use super::session::socket::Socket;
use super::session::task::{self, Opened, Shared};
use crate::config::ProxyConfig;
use crate::fanout::hub::Hub;
use crate::http::connections::upgraded;
use crate::model::protocol::SUBPROTOCOL;
use crate::store::pool::Pool;
use crate::telemetry::health::Health;

/// Most refused pages that get a close at the same time. Each takes up to two seconds. Further
/// pages get an HTTP status.
pub const REFUSALS_MAX: usize = 512;

/// The gateway of a replica.
#[derive(Debug)]
pub struct Gateway {
    /// The parts that all sessions share.
    pub shared: Arc<Shared>,
    /// Wakes the sessions.
    pub hub: Arc<Hub>,
    /// Bounds the number of sessions.
    pub admission: Arc<Admission>,
    /// Bounds the rate of requests.
    pub rates: Rates,
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
    /// Places of refused pages, see [`refusals`].
    pub refusals: Arc<Semaphore>,
    /// The tasks of sessions and of refused pages.
    pub sessions: TaskTracker,
    /// Ends the sessions when the replica drains.
    pub drain: CancellationToken,
}

/// Makes the semaphore that bounds refused pages.
pub fn refusals() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(REFUSALS_MAX))
}

/// Handles a request of `GET /v1/ws`.
pub async fn connect(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
) -> Response {
    let caller = gateway.caller(peer, request.headers());
    let upgrade = hyper::upgrade::on(&mut request);
    let offer = match handshake::offer(request.version(), request.headers()) {
        Ok(offer) => offer,
        Err(reason) => return gateway.refuse(caller, &reason.into()),
    };
    if !origin::is_allowed(request.headers(), &gateway.allowed_origins) {
        return gateway.refuse(caller, &Refusal::Origin);
    }
    let query = request.uri().query().unwrap_or_default();
    match gateway.admit(caller, &offer, query).await {
        Ok((opened, admitted)) => gateway.accept(&offer, upgrade, opened, admitted),
        Err(refusal) if offer.is_page => gateway.refuse_page(caller, &offer, upgrade, &refusal),
        Err(refusal) => gateway.refuse(caller, &refusal),
    }
}

impl Gateway {
    async fn admit(
        &self,
        caller: Caller,
        offer: &Offer,
        query: &str,
    ) -> Result<(Opened, Admitted), Refusal> {
        let parameters = handshake::parameters(query).map_err(Refusal::Parameter)?;
        if self.health.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let grant = self.authenticate(caller, offer.token.as_deref()).await?;
        self.open(parameters, grant, caller.block).await
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

    fn refuse(&self, caller: Caller, refusal: &Refusal) -> Response {
        self.count(caller, refusal);
        refusal.problem().into_response()
    }

    /// Refuses a page: completes the upgrade and sends a close. If there is no place for it,
    /// refuses with an HTTP status.
    fn refuse_page(
        &self,
        caller: Caller,
        offer: &Offer,
        upgrade: OnUpgrade,
        refusal: &Refusal,
    ) -> Response {
        let place = self.refusals.clone().try_acquire_owned().ok();
        let (Some(place), Some(close)) = (place, refusal.close()) else {
            return self.refuse(caller, refusal);
        };
        self.count(caller, refusal);
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

    fn count(&self, caller: Caller, refusal: &Refusal) {
        self.log_bound(caller, refusal);
        let reason = refusal.label();
        tracing::debug!(
            reason = reason.as_str(),
            detail = refusal.problem().detail(),
            "a handshake was refused"
        );
        self.shared.metrics.handshakes_refused.inc(reason);
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

//! `GET /v1/ws`: lets a client in, or says why not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Admitted, Full};
use super::handshake::{self, Handshake, Token};
use super::problem::Problem;
use crate::auth::{Grant, TokenError};
use crate::cursors::NotOpened;
use crate::feed::Feed;
use crate::health::Health;
use crate::hub::Hub;
use crate::notification::Newest;
use crate::protocol::{Close, SUBPROTOCOL, WelcomeFeed};
use crate::session::state::{KeptByClient, Start};
use crate::session::task::{self, Opened, Shared};
use crate::store::canaries;
use crate::store::cursors::CursorKey;
use crate::store::pools::Pool;

/// How a refusal is counted that a client makes good by trying again.
const NOT_READY: &str = "not_ready";
/// How long a handshake may wait for its cursors before it is refused as not ready.
const CURSORS_TIMEOUT: Duration = Duration::from_secs(5);

/// What the handshake needs.
#[derive(Debug)]
pub struct Gateway {
    /// What sessions share.
    pub shared: Arc<Shared>,
    /// Where sessions are woken.
    pub hub: Arc<Hub>,
    /// How many there may be.
    pub admission: Arc<Admission>,
    /// Whether the replica is leaving.
    pub health: Arc<Health>,
    /// Where the history is read.
    pub history: Pool,
    /// `SHOPBELL_ALLOWED_ORIGINS`.
    pub allowed_origins: Vec<String>,
    /// Settings of each socket.
    pub socket_config: WebSocketConfig,
    /// Sessions under way.
    pub sessions: TaskTracker,
    /// Tells them to leave.
    pub drain: CancellationToken,
}

/// Answers a handshake; the session then runs on its own.
pub async fn connect(State(gateway): State<Arc<Gateway>>, mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let refused = |why, problem: Problem| {
        gateway.shared.metrics.handshakes_refused.inc(why);
        problem.into_response()
    };
    let handshake = match handshake::read(request.headers(), request.uri()) {
        Ok(handshake) => handshake,
        Err(problem) => return refused("bad_request", problem),
    };
    if !handshake::origin_is_allowed(request.headers(), &gateway.allowed_origins) {
        let detail = "this origin may not connect: add it to SHOPBELL_ALLOWED_ORIGINS";
        return refused("origin", Problem::new(StatusCode::FORBIDDEN, detail));
    }
    if gateway.health.draining.load(Ordering::Relaxed) {
        return refused(NOT_READY, not_ready("this replica is leaving"));
    }
    match gateway.authenticate(&handshake) {
        Ok(grant) => match gateway.open(&handshake, grant).await {
            Ok((opened, admitted)) => gateway.accept(&handshake, upgrade, opened, admitted),
            Err((why, problem)) => refused(why, problem),
        },
        Err(error) => gateway.refuse(&handshake, upgrade, error),
    }
}

impl Gateway {
    fn authenticate(&self, handshake: &Handshake) -> Result<Grant, TokenError> {
        match &handshake.token {
            Some(Token::Header(token) | Token::Subprotocol(token)) => self.shared.authenticator.check(token),
            None => Err(TokenError::Missing),
        }
    }

    /// Registers first, then reads where the subscriber stands: what is stored in between is in the inbox. An error is how
    /// the refusal is counted, and what the client is told.
    async fn open(&self, handshake: &Handshake, grant: Grant) -> Result<(Opened, Admitted), (&'static str, Problem)> {
        let named = handshake.after.iter().map(|(feed, _)| feed).chain(handshake.state.iter().map(|(feed, _)| feed));
        if let Some(feed) = named.into_iter().find(|feed| !grant.feeds.contains(feed)) {
            let detail = format!("the token does not name the feed {feed}");
            return Err(("feed", Problem::new(StatusCode::FORBIDDEN, detail)));
        }
        let full =
            |full: Full| ("too_many", Problem::new(StatusCode::TOO_MANY_REQUESTS, full.to_string()).retry_later());
        let admitted = self.admission.admit(&grant.subscriber).map_err(full)?;
        let registration = self.hub.register(grant.feeds.clone());
        let key = |feed: &Feed| {
            let (subscriber, device) = (grant.subscriber.clone(), handshake.device.clone());
            (CursorKey { feed: feed.clone(), subscriber, device }, grant.shared.as_ref() == Some(feed))
        };
        let keys = grant.feeds.iter().map(key).collect();
        let opened = tokio::time::timeout(CURSORS_TIMEOUT, self.shared.cursors.open(keys)).await;
        let standings =
            opened.unwrap_or(Err(NotOpened::NoAnswer)).map_err(|why| (NOT_READY, not_ready(&why.to_string())))?;
        let (mut starts, mut feeds) = (Vec::with_capacity(standings.len()), Vec::with_capacity(standings.len()));
        for (feed, standing) in grant.feeds.iter().cloned().zip(standings) {
            let kept = KeptByClient {
                after: handshake.after.iter().find(|(named, _)| *named == feed).map(|(_, seq)| *seq),
                version: handshake.state.iter().find(|(named, _)| *named == feed).map(|(_, version)| *version),
            };
            let newest = Newest { seq: standing.last, version: standing.version };
            let shared = grant.shared.as_ref() == Some(&feed);
            let start = Start::new(feed.clone(), standing.acked, newest, kept, shared);
            feeds.push(WelcomeFeed {
                feed,
                cursor: start.after,
                last: start.last,
                unread: standing.unread,
                unhandled: standing.unhandled,
                version: start.newest_version,
                shared,
            });
            starts.push(start);
        }
        let opened = Opened {
            id: uuid::Uuid::now_v7().to_string(),
            token_remaining: grant.remaining(),
            is_canary: grant.subscriber.as_str().starts_with(canaries::PREFIX),
            subscriber: grant.subscriber,
            device: handshake.device.clone(),
            starts,
            feeds,
            registration,
        };
        Ok((opened, admitted))
    }

    fn accept(&self, handshake: &Handshake, upgrade: OnUpgrade, opened: Opened, admitted: Admitted) -> Response {
        let (shared, drain, config) = (self.shared.clone(), self.drain.clone(), self.socket_config);
        self.sessions.spawn(async move {
            // A client that left before the upgrade was through needs no session.
            if let Ok(upgraded) = upgrade.await {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
                // Boxed, because a task is as large as its largest moment, and most of them only wait.
                Box::pin(task::run(socket, opened, shared, drain)).await;
            }
            drop(admitted);
        });
        switching_protocols(handshake)
    }

    /// A page's script sees no HTTP status: where its token was refused, the upgrade is completed and closed at once.
    fn refuse(&self, handshake: &Handshake, upgrade: OnUpgrade, error: TokenError) -> Response {
        tracing::debug!(%error, "a handshake was refused");
        let why = if matches!(error, TokenError::NoFeed) { "feed" } else { "token" };
        self.shared.metrics.handshakes_refused.inc(why);
        if let Some(Token::Subprotocol(_)) = handshake.token {
            let retry_after_ms = error.retry_after().map_or(0, |wait| wait.as_millis() as u64);
            let close = match error {
                TokenError::Expired => Close::TokenExpired,
                TokenError::KeyUnknown => Close::TokenKeyUnknown { retry_after_ms },
                TokenError::NotYetValid { .. } => Close::TokenNotYetValid { retry_after_ms },
                TokenError::NoFeed => Close::NoFeed,
                TokenError::Refused(_) | TokenError::Missing => Close::TokenRefused,
            };
            let config = self.socket_config;
            self.sessions.spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    let socket =
                        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
                    task::say_goodbye(socket, close).await;
                }
            });
            return switching_protocols(handshake);
        }
        match error {
            TokenError::NoFeed => Problem::new(StatusCode::FORBIDDEN, error.to_string()).into_response(),
            _ => Problem::unauthorized(error).into_response(),
        }
    }
}

fn not_ready(detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later()
}

/// RFC 6455 §4.2.2.
fn switching_protocols(handshake: &Handshake) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(handshake.key.as_bytes()).parse() {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if handshake.subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

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
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Admitted, Full};
use super::handshake::{self, Offer, Wishes};
use super::origin;
use crate::fanout::hub::Hub;
use crate::gateway::auth::{Grant, TokenError};
use crate::gateway::cursors::NotOpened;
use crate::gateway::session::closing::send_close;
use crate::gateway::session::socket::Socket;
use crate::gateway::session::state::{KeptByClient, Start};
use crate::gateway::session::task::{self, Opened, Shared};
use crate::http::connections::upgraded;
use crate::http::problem::Problem;
use crate::model::feed::Feed;
use crate::model::notification::Newest;
use crate::model::protocol::{Close, SUBPROTOCOL, WelcomeFeed};
use crate::store::cursors::CursorKey;
use crate::store::pools::Pool;
use crate::telemetry::health::Health;

/// How a refusal is counted that a client makes good by trying again.
const NOT_READY: &str = "not_ready";
/// How long a handshake may wait for its cursors before it is refused as not ready.
const CURSORS_TIMEOUT: Duration = Duration::from_secs(5);
/// Most refused pages to which a close is sent at a time, each for up to two seconds: nothing else
/// bounds them. Further ones get an HTTP status.
pub const REFUSALS_MAX: usize = 512;
/// The wait that a refusal asks a page for, in milliseconds.
const RETRY_AFTER_MS: u64 = 2_000;

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
    /// `SHOPBELL_MAX_FRAME_BYTES`.
    pub frame_bytes_max: usize,
    /// Places of refused pages, see [`refusals`].
    pub refusals: Arc<Semaphore>,
    /// Sessions under way.
    pub sessions: TaskTracker,
    /// Tells them to leave.
    pub drain: CancellationToken,
}

/// Places for refused pages.
pub fn refusals() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(REFUSALS_MAX))
}

/// Why a client is not let in: how that is counted, and the answer, once for programs and once for
/// pages.
struct Refusal {
    why: &'static str,
    problem: Problem,
    close: Close,
}

/// Answers a handshake; the session then runs on its own.
pub async fn connect(State(gateway): State<Arc<Gateway>>, mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let refused = |why, problem: Problem| {
        gateway.shared.metrics.handshakes_refused.inc(why);
        problem.into_response()
    };
    let offer = match handshake::offer(request.version(), request.headers()) {
        Ok(offer) => offer,
        Err(problem) => return refused("bad_request", problem),
    };
    // Not even a close for a page from elsewhere.
    if !origin::is_allowed(request.headers(), &gateway.allowed_origins) {
        let detail = "this origin may not connect: add it to SHOPBELL_ALLOWED_ORIGINS";
        return refused("origin", Problem::new(StatusCode::FORBIDDEN, detail));
    }
    match gateway
        .let_in(&offer, request.uri().query().unwrap_or_default())
        .await
    {
        Ok((opened, admitted)) => gateway.accept(&offer, upgrade, opened, admitted),
        Err(refusal) => gateway.refuse(&offer, upgrade, refusal),
    }
}

impl Gateway {
    async fn let_in(&self, offer: &Offer, query: &str) -> Result<(Opened, Admitted), Refusal> {
        let wishes = handshake::wishes(query).map_err(bad_request)?;
        if self.health.draining.load(Ordering::Relaxed) {
            let close = Close::GoingAway {
                retry_after_ms: RETRY_AFTER_MS,
            };
            return Err(not_ready("this replica is leaving", close));
        }
        let token = offer.token.as_deref().ok_or(TokenError::Missing);
        let grant = token
            .and_then(|token| self.shared.authenticator.check(token))
            .map_err(bad_token)?;
        self.open(wishes, grant).await
    }

    /// Registers first, then reads where the subscriber stands: what is stored in between is in the
    /// inbox.
    async fn open(&self, wishes: Wishes, grant: Grant) -> Result<(Opened, Admitted), Refusal> {
        let named = wishes
            .after
            .iter()
            .map(|(feed, _)| feed)
            .chain(wishes.state.iter().map(|(feed, _)| feed));
        if let Some(feed) = named.into_iter().find(|feed| !grant.feeds.contains(feed)) {
            let problem = Problem::new(
                StatusCode::FORBIDDEN,
                format!("the token does not name the feed {feed}"),
            );
            return Err(Refusal {
                why: "feed",
                problem,
                close: Close::ForeignFeed,
            });
        }
        let full = |full: Full| Refusal {
            why: "too_many",
            problem: Problem::new(StatusCode::TOO_MANY_REQUESTS, full.to_string()).retry_later(),
            close: Close::TooManySessions {
                retry_after_ms: RETRY_AFTER_MS,
            },
        };
        let admitted = self.admission.admit(&grant.subscriber).map_err(full)?;
        let registration = self.hub.register(grant.feeds.clone());
        let key = |feed: &Feed| {
            let (subscriber, device) = (grant.subscriber.clone(), wishes.device.clone());
            (
                CursorKey {
                    feed: feed.clone(),
                    subscriber,
                    device,
                },
                grant.shared.as_ref() == Some(feed),
            )
        };
        let keys = grant.feeds.iter().map(key).collect();
        let opened = tokio::time::timeout(CURSORS_TIMEOUT, self.shared.cursors.open(keys)).await;
        let standings = opened.unwrap_or(Err(NotOpened::NoAnswer)).map_err(|why| {
            let close = Close::NotReady {
                retry_after_ms: RETRY_AFTER_MS,
            };
            not_ready(&why.to_string(), close)
        })?;
        // Any two epochs in one answer mean that it changed meanwhile: then the client comes again.
        let epoch = standings.first().map(|standing| standing.epoch.clone());
        let is_one = standings
            .iter()
            .all(|standing| Some(&standing.epoch) == epoch.as_ref());
        let Some(epoch) = epoch.filter(|epoch| is_one && self.shared.epochs.learn(epoch)) else {
            let close = Close::NotReady {
                retry_after_ms: RETRY_AFTER_MS,
            };
            return Err(not_ready("the database was restored just now", close));
        };
        self.hub.follow_epoch();
        let (mut starts, mut feeds) = (
            Vec::with_capacity(standings.len()),
            Vec::with_capacity(standings.len()),
        );
        for (feed, standing) in grant.feeds.iter().cloned().zip(standings) {
            if standing.is_set_back(&feed) {
                self.shared
                    .epochs
                    .doubt(&epoch, "a cursor is above the last number of its feed");
            }
            let kept = KeptByClient {
                after: wishes
                    .after
                    .iter()
                    .find(|(named, _)| *named == feed)
                    .map(|(_, place)| place.clone()),
                version: wishes
                    .state
                    .iter()
                    .find(|(named, _)| *named == feed)
                    .map(|(_, place)| place.clone()),
            };
            let newest = Newest {
                seq: standing.last,
                version: standing.version,
            };
            let shared = grant.shared.as_ref() == Some(&feed);
            let start = Start::new(feed.clone(), &epoch, standing.acked, newest, kept, shared);
            feeds.push(WelcomeFeed {
                feed,
                cursor: start.after,
                last: start.last,
                unread: standing.unread,
                unhandled: standing.unhandled,
                version: start.newest_version,
                epoch: epoch.clone(),
                shared,
            });
            starts.push(start);
        }
        let opened = Opened {
            id: uuid::Uuid::now_v7().to_string(),
            token_remaining: grant.remaining(),
            is_canary: grant.is_canary,
            subscriber: grant.subscriber,
            device: wishes.device,
            epoch,
            starts,
            feeds,
            registration,
        };
        Ok((opened, admitted))
    }

    fn accept(
        &self,
        offer: &Offer,
        upgrade: OnUpgrade,
        opened: Opened,
        admitted: Admitted,
    ) -> Response {
        let (shared, drain, frame_bytes_max) = (
            self.shared.clone(),
            self.drain.clone(),
            self.frame_bytes_max,
        );
        self.sessions.spawn(async move {
            // A client that left before the upgrade was through needs no session.
            if let Some((stream, unread)) = upgraded(upgrade).await {
                let socket = Socket::new(stream, unread, frame_bytes_max);
                // Boxed, because a task is as large as its largest moment, and most of them only
                // wait.
                Box::pin(task::run(socket, opened, shared, drain)).await;
            }
            drop(admitted);
        });
        switching_protocols(offer)
    }

    /// A page's script sees no HTTP status, so that for a page the upgrade is completed and closed
    /// at once.
    fn refuse(&self, offer: &Offer, upgrade: OnUpgrade, refusal: Refusal) -> Response {
        let Refusal {
            why,
            problem,
            close,
        } = refusal;
        tracing::debug!(why, detail = problem.detail(), "a handshake was refused");
        self.shared.metrics.handshakes_refused.inc(why);
        let place = self
            .refusals
            .clone()
            .try_acquire_owned()
            .ok()
            .filter(|_| offer.is_page);
        let Some(place) = place else {
            return problem.into_response();
        };
        let frame_bytes_max = self.frame_bytes_max;
        self.sessions.spawn(async move {
            if let Some((stream, unread)) = upgraded(upgrade).await {
                let reason = close.reason_with(problem.detail());
                send_close(
                    Socket::new(stream, unread, frame_bytes_max),
                    close,
                    &reason,
                    |_| {},
                )
                .await;
            }
            drop(place);
        });
        switching_protocols(offer)
    }
}

fn bad_request(detail: String) -> Refusal {
    Refusal {
        why: "bad_request",
        problem: Problem::new(StatusCode::BAD_REQUEST, detail),
        close: Close::BadRequest,
    }
}

fn bad_token(error: TokenError) -> Refusal {
    let retry_after_ms = error
        .retry_after()
        .map_or(0, |wait| wait.as_millis() as u64);
    let close = match error {
        TokenError::Expired => Close::TokenExpired,
        TokenError::KeyUnknown => Close::TokenKeyUnknown { retry_after_ms },
        TokenError::NotYetValid { .. } => Close::TokenNotYetValid { retry_after_ms },
        TokenError::NoFeed => Close::NoFeed,
        TokenError::Refused(_) | TokenError::Missing => Close::TokenRefused,
    };
    match error {
        TokenError::NoFeed => Refusal {
            why: "feed",
            problem: Problem::new(StatusCode::FORBIDDEN, error.to_string()),
            close,
        },
        _ => Refusal {
            why: "token",
            problem: handshake::unauthorized(error),
            close,
        },
    }
}

fn not_ready(detail: &str, close: Close) -> Refusal {
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later();
    Refusal {
        why: NOT_READY,
        problem,
        close,
    }
}

/// RFC 6455 §4.2.2.
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

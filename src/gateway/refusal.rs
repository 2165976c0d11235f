//! The refusals of a handshake, in one place: each has a label for the metrics, a problem for
//! programs (RFC 9457), and a close for pages.
//!
//! The script of a page cannot read the HTTP status of a handshake. So for a page, the upgrade is
//! completed and the session closed at once.

use axum::http::StatusCode;
use axum::http::header::{SEC_WEBSOCKET_VERSION, UPGRADE};

use super::admission::Full;
use super::auth::TokenError;
use super::cursors::NotOpened;
use super::rates::TooFast;
use crate::http::problem::Problem;
use crate::model::feed::Feed;
use crate::model::protocol::{Close, SUBPROTOCOL};
use crate::telemetry::labels::RequestRefused;

/// Wait that a client is asked for if the refusal is temporary, in milliseconds.
const RETRY_AFTER_MS: u64 = 2_000;

/// The reason why a client gets no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request cannot become a WebSocket connection of ours.
    NotAHandshake(NotAHandshake),
    /// The page is of an origin that may not connect.
    Origin,
    /// A parameter of the query is wrong. The text is for the client.
    Parameter(String),
    /// The replica drains.
    Draining,
    /// The token is missing or rejected.
    Token(TokenError),
    /// The query names a feed that the token does not name.
    ForeignFeed(Feed),
    /// The replica, the subscriber or the address has too many sessions.
    TooManySessions(Full),
    /// The subscriber or the address sends too many requests.
    TooManyRequests(TooFast),
    /// The cursors of the session cannot be opened now.
    NotOpened(NotOpened),
    /// The epoch changed while the cursors were read.
    Restored,
}

/// A refused request of plain HTTP: the reason for the metrics, and the response.
#[derive(Debug)]
pub struct RefusedRequest {
    /// The value of the label `reason`.
    pub reason: RequestRefused,
    /// The response.
    pub problem: Problem,
}

impl From<Refusal> for RefusedRequest {
    fn from(refusal: Refusal) -> Self {
        Self {
            reason: refusal.label(),
            problem: refusal.problem(),
        }
    }
}

/// The reason why a request cannot become a WebSocket connection (RFC 6455 §4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAHandshake {
    /// It is older than HTTP/1.1.
    HttpVersion,
    /// It does not ask for an upgrade to WebSocket.
    NoUpgrade,
    /// It asks for another version of WebSocket.
    WebSocketVersion,
    /// Its key is not 16 bytes in base64.
    Key,
    /// It offers subprotocols, but not ours.
    Subprotocol,
}

impl Refusal {
    /// The value of the label `reason` in the metrics.
    pub fn label(&self) -> RequestRefused {
        match self {
            Self::NotAHandshake(_) | Self::Parameter(_) => RequestRefused::BadRequest,
            Self::Origin => RequestRefused::Origin,
            Self::Token(TokenError::NoFeed) | Self::ForeignFeed(_) => RequestRefused::Feed,
            Self::Token(_) => RequestRefused::Token,
            Self::TooManySessions(Full::Address) => RequestRefused::TooManyOfAddress,
            Self::TooManySessions(_) => RequestRefused::TooMany,
            Self::TooManyRequests(_) => RequestRefused::TooFast,
            Self::Draining | Self::NotOpened(_) | Self::Restored => RequestRefused::NotReady,
        }
    }

    /// The setting whose bound the client is beyond, if operators may want to change it.
    pub fn setting(&self) -> Option<&'static str> {
        match self {
            Self::TooManyRequests(too_fast) => Some(too_fast.setting()),
            Self::TooManySessions(Full::Address) => Some("SHOPBELL_MAX_SESSIONS_PER_ADDRESS"),
            _ => None,
        }
    }

    /// The HTTP response.
    pub fn problem(&self) -> Problem {
        match self {
            Self::NotAHandshake(reason) => reason.problem(),
            Self::Origin => Problem::new(
                StatusCode::FORBIDDEN,
                "pages of this origin may not connect: add it to SHOPBELL_ALLOWED_ORIGINS",
            ),
            Self::Parameter(detail) => Problem::new(StatusCode::BAD_REQUEST, detail),
            Self::Token(error @ (TokenError::NoFeed | TokenError::NoPublish(_))) => {
                Problem::new(StatusCode::FORBIDDEN, error.to_string())
            }
            Self::Token(error) => Problem::unauthorized(error.to_string(), error.retry_after()),
            Self::ForeignFeed(feed) => Problem::new(
                StatusCode::FORBIDDEN,
                format!("the token does not name the feed {feed}"),
            ),
            Self::TooManySessions(full) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, full.to_string()).retry_later()
            }
            Self::TooManyRequests(too_fast) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, too_fast.to_string())
                    .retry_after(TooFast::retry_after())
            }
            Self::Draining => unavailable("this replica is leaving: connect again"),
            Self::NotOpened(reason) => unavailable(reason.to_string()),
            Self::Restored => unavailable("the database was restored just now: connect again"),
        }
    }

    /// The close of a session that is opened only to refuse it. `None` if the request cannot become
    /// a session, or if its page is not trusted.
    pub fn close(&self) -> Option<Close> {
        let retry_after_ms = RETRY_AFTER_MS;
        Some(match self {
            Self::NotAHandshake(_) | Self::Origin => return None,
            Self::Parameter(_) => Close::BadRequest,
            Self::Draining => Close::GoingAway { retry_after_ms },
            Self::Token(error) => close_of_token(*error),
            Self::ForeignFeed(_) => Close::ForeignFeed,
            Self::TooManySessions(_) => Close::TooManySessions { retry_after_ms },
            Self::TooManyRequests(_) => Close::TooManyRequests {
                retry_after_ms: TooFast::retry_after().as_millis() as u64,
            },
            Self::NotOpened(_) | Self::Restored => Close::NotReady { retry_after_ms },
        })
    }
}

impl NotAHandshake {
    fn problem(self) -> Problem {
        match self {
            Self::HttpVersion => Problem::new(
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "a WebSocket handshake needs HTTP/1.1: configure the proxy (nginx: proxy_http_version 1.1)",
            ),
            Self::NoUpgrade => Problem::new(
                StatusCode::UPGRADE_REQUIRED,
                "this is a WebSocket endpoint: connect with a WebSocket client",
            )
            .with(UPGRADE, "websocket"),
            Self::WebSocketVersion => Problem::new(
                StatusCode::UPGRADE_REQUIRED,
                "the WebSocket version must be 13",
            )
            .with(SEC_WEBSOCKET_VERSION, "13"),
            Self::Key => Problem::new(
                StatusCode::BAD_REQUEST,
                "Sec-WebSocket-Key must be 16 bytes in base64",
            ),
            Self::Subprotocol => Problem::new(
                StatusCode::BAD_REQUEST,
                format!("offer the subprotocol {SUBPROTOCOL}"),
            ),
        }
    }
}

impl From<NotAHandshake> for Refusal {
    fn from(reason: NotAHandshake) -> Self {
        Self::NotAHandshake(reason)
    }
}

fn unavailable(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_later()
}

fn close_of_token(error: TokenError) -> Close {
    let retry_after_ms = error
        .retry_after()
        .map_or(0, |wait| wait.as_millis() as u64);
    match error {
        TokenError::Expired => Close::TokenExpired,
        TokenError::KeyUnknown => Close::TokenKeyUnknown { retry_after_ms },
        TokenError::NotYetValid { .. } => Close::TokenNotYetValid { retry_after_ms },
        TokenError::NoFeed => Close::NoFeed,
        TokenError::Refused(_)
        | TokenError::Algorithm
        | TokenError::Signature
        | TokenError::Audience(_)
        | TokenError::Issuer(_)
        | TokenError::NoPublish(_)
        | TokenError::Missing => Close::TokenRefused,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[track_caller]
    fn check(refusal: Refusal, expected: (RequestRefused, u16, Option<u16>)) {
        let status = refusal.problem().into_response().status().as_u16();
        if let Some(close) = refusal.close() {
            let problem = refusal.problem();
            let reason = close.reason_with(problem.detail());
            assert!(reason.contains(problem.detail()), "it is cut: {reason}");
        }
        let close = refusal.close().map(Close::code);
        assert_eq!((refusal.label(), status, close), expected, "{refusal:?}");
    }

    #[test]
    fn each_refusal_has_its_label_status_and_uncut_close() {
        let foreign = Feed::parse("m").unwrap();
        check(
            NotAHandshake::NoUpgrade.into(),
            (RequestRefused::BadRequest, 426, None),
        );
        check(
            NotAHandshake::HttpVersion.into(),
            (RequestRefused::BadRequest, 505, None),
        );
        check(
            NotAHandshake::Key.into(),
            (RequestRefused::BadRequest, 400, None),
        );
        check(Refusal::Origin, (RequestRefused::Origin, 403, None));
        let parameter = Refusal::Parameter("device is too long".into());
        check(parameter, (RequestRefused::BadRequest, 400, Some(4500)));
        check(
            Refusal::Draining,
            (RequestRefused::NotReady, 503, Some(1012)),
        );
        check(
            Refusal::ForeignFeed(foreign),
            (RequestRefused::Feed, 403, Some(4503)),
        );
        for (full, label) in [
            (Full::Replica, RequestRefused::TooMany),
            (Full::Subscriber, RequestRefused::TooMany),
            (Full::Address, RequestRefused::TooManyOfAddress),
        ] {
            check(Refusal::TooManySessions(full), (label, 429, Some(4429)));
        }
        for too_fast in [TooFast::Address, TooFast::FailedTokens, TooFast::Subscriber] {
            let too_fast = Refusal::TooManyRequests(too_fast);
            check(too_fast, (RequestRefused::TooFast, 429, Some(4429)));
        }
        for reason in [
            NotOpened::NoAnswer,
            NotOpened::NotStored,
            NotOpened::NotRead,
        ] {
            let not_opened = Refusal::NotOpened(reason);
            check(not_opened, (RequestRefused::NotReady, 503, Some(1013)));
        }
        check(
            Refusal::Restored,
            (RequestRefused::NotReady, 503, Some(1013)),
        );
    }

    #[test]
    fn each_token_error_has_its_status_and_uncut_close() {
        let wait = std::time::Duration::from_secs(7);
        for (error, expected) in [
            (
                TokenError::Missing,
                (RequestRefused::Token, 401, Some(4501)),
            ),
            (
                TokenError::Audience("wrong audience"),
                (RequestRefused::Token, 401, Some(4501)),
            ),
            (
                TokenError::KeyUnknown,
                (RequestRefused::Token, 401, Some(4402)),
            ),
            (
                TokenError::NotYetValid { wait },
                (RequestRefused::Token, 401, Some(4402)),
            ),
            (
                TokenError::Expired,
                (RequestRefused::Token, 401, Some(4401)),
            ),
            (TokenError::NoFeed, (RequestRefused::Feed, 403, Some(4503))),
        ] {
            check(Refusal::Token(error), expected);
        }
    }
}

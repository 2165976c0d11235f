//! Decides after a lost or refused connection if the client may reconnect, and when.

use std::time::Duration;

use serde::Deserialize;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::header::RETRY_AFTER;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::model::protocol::SUBPROTOCOL;

/// Bound on the wait that a server can request.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// The reason for a lost or failed connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// A new attempt cannot succeed.
    Final(String),
    /// A new attempt may succeed.
    Temporary {
        reason: String,
        /// The wait that the server requests.
        retry_after: Option<Duration>,
    },
}

impl Loss {
    pub(super) fn broken(reason: &str) -> Self {
        Self::Temporary {
            reason: reason.to_owned(),
            retry_after: None,
        }
    }

    pub(super) fn silent(limit: Duration) -> Self {
        Self::broken(&format!(
            "the service sent nothing for {} s",
            limit.as_secs()
        ))
    }

    /// Decides by the close codes of the contract.
    pub(super) fn of_close(close: Option<CloseFrame>) -> Self {
        let Some(CloseFrame { code, reason }) = close else {
            return Self::broken("the service closed the session without a code");
        };
        let code = u16::from(code);
        let text = format!("the service closed the session: {code} {reason}");
        match code {
            4501 => Self::Final(format!("{text} (the token is not valid: get a new one)")),
            4503 => Self::Final(format!("{text} (the token allows no feed)")),
            1002 | 1003 | 1007 | 1009 | 4500..=4999 => {
                Self::Final(format!("{text} (a bug: a new attempt cannot succeed)"))
            }
            _ => {
                let retry_after_ms = serde_json::from_str::<CloseReason>(&reason)
                    .ok()
                    .and_then(|reason| reason.retry_after_ms);
                let retry_after =
                    retry_after_ms.map(|ms| Duration::from_millis(ms).min(RETRY_AFTER_MAX));
                Self::Temporary {
                    reason: text,
                    retry_after,
                }
            }
        }
    }

    /// Decides by an HTTP response that refuses the handshake.
    fn of_response(response: &Response) -> Self {
        let status = response.status();
        let problem = response
            .body()
            .as_deref()
            .and_then(|body| serde_json::from_slice::<Problem>(body).ok());
        let detail = problem
            .and_then(|problem| problem.detail)
            .map(|detail| format!(": {detail}"))
            .unwrap_or_default();
        let reason = format!("the service refused the handshake with {status}{detail}");
        // A token may become valid later. The service then sends Retry-After.
        let is_temporary = status.as_u16() == 401 && response.headers().contains_key(RETRY_AFTER);
        if status.is_server_error() || status.as_u16() == 429 || is_temporary {
            let seconds = response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after =
                seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
            Self::Temporary {
                reason,
                retry_after,
            }
        } else {
            Self::Final(reason)
        }
    }

    /// Decides by the error of a handshake.
    pub(super) fn of_error(error: Error, address: &str) -> Self {
        match error {
            Error::Http(response) => Self::of_response(&response),
            Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Self::Final(
                format!("the server on {address} does not support {SUBPROTOCOL}"),
            ),
            error => Self::broken(&format!("the handshake with {address} failed: {error}")),
        }
    }
}

#[derive(Deserialize)]
struct CloseReason {
    retry_after_ms: Option<u64>,
}

/// RFC 9457.
#[derive(Deserialize)]
struct Problem {
    detail: Option<String>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use tokio_tungstenite::tungstenite::http::HeaderValue;

    use super::*;
    use crate::model::protocol::Close;

    #[test]
    fn a_close_code_decides_whether_to_reconnect() {
        let retry_after_ms = 1_500;
        for (close, wait) in [
            (Close::Internal, None),
            (Close::GoingAway { retry_after_ms }, Some(1_500)),
            (Close::TokenExpired, Some(0)),
            (Close::TokenKeyUnknown { retry_after_ms }, Some(1_500)),
            (Close::TokenNotYetValid { retry_after_ms }, Some(1_500)),
            (Close::Silent, None),
            (Close::TooOld, Some(0)),
            (Close::EpochChanged { retry_after_ms }, Some(1_500)),
            (
                Close::TooManyFrames {
                    retry_after_ms: u64::MAX,
                },
                Some(300_000),
            ),
        ] {
            let Loss::Temporary { retry_after, .. } = loss(close) else {
                panic!("{close:?} is final")
            };
            assert_eq!(retry_after, wait.map(Duration::from_millis), "{close:?}");
        }
        for close in [
            Close::BrokenFraming,
            Close::NotUtf8,
            Close::TooBig,
            Close::NotTheProtocol,
            Close::TokenRefused,
            Close::NoFeed,
        ] {
            assert!(matches!(loss(close), Loss::Final(_)), "{close:?}");
        }
        assert!(matches!(Loss::of_close(None), Loss::Temporary { .. }));
    }

    #[test]
    fn a_refused_handshake_has_its_detail() {
        let response = |status: u16, body: &str, retry_after: Option<&'static str>| {
            let mut response = Response::new(Some(body.as_bytes().to_vec()));
            *response.status_mut() = status.try_into().unwrap();
            let header =
                retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from_static(seconds)));
            response.headers_mut().extend(header);
            Loss::of_response(&response)
        };
        let refused = |status, body| response(status, body, None);
        let reason =
            "the service refused the handshake with 401 Unauthorized: the token has expired";
        assert_eq!(
            refused(401, r#"{"title":"x","detail":"the token has expired"}"#),
            Loss::Final(reason.into())
        );
        assert!(
            matches!(refused(403, "not JSON"), Loss::Final(reason) if reason.ends_with("403 Forbidden"))
        );
        assert!(matches!(response(403, "{}", Some("2")), Loss::Final(_)));
        for status in [401, 429, 503] {
            let Loss::Temporary { retry_after, .. } = response(status, "{}", Some("2")) else {
                panic!("{status} is final")
            };
            assert_eq!(retry_after, Some(Duration::from_secs(2)));
        }
    }

    fn loss(close: Close) -> Loss {
        Loss::of_close(Some(CloseFrame {
            code: close.code().into(),
            reason: close.reason().into(),
        }))
    }
}

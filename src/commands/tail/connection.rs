//! Connects to the service, and decides after a lost connection if the client may reconnect.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{
    AUTHORIZATION, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL,
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use url::Url;

use crate::model::feed::Device;
use crate::model::protocol::SUBPROTOCOL;

/// The path of a URL that has none.
const PATH: &str = "/v1/ws";
/// The remedy for a token in the URL.
const TOKEN_REMEDY: &str = "use --token or SHOPBELL_TOKEN for the token";
/// Bound on the TCP connect and the handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on a frame, above the largest event that the settings of the service allow.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bound on the wait that a server can request.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

pub(super) type Socket = WebSocketStream<TcpStream>;

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

    fn of_error(error: Error, address: &str) -> Self {
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

/// The close frame of a client that is done.
pub(super) fn normal_close() -> CloseFrame {
    CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }
}

/// The service, and the credentials of the client.
pub(super) struct Target {
    /// Host and port.
    address: String,
    url: Url,
    device: Device,
    authorization: HeaderValue,
}

impl Target {
    /// Parses a `ws` or `http` URL, and adds the path of the service if it has none.
    ///
    /// # Errors
    /// The URL or the token is not usable. The error contains neither, because both may be secrets.
    pub(super) fn parse(url: &str, token: &str, device: &Device) -> Result<Self, String> {
        let mut url = Url::parse(url.trim())
            .map_err(|error| format!("--url must be a URL like ws://host:8080: {error}"))?;
        match url.scheme() {
            "ws" => {}
            // It cannot fail between two special schemes (WHATWG URL, scheme state).
            "http" => _ = url.set_scheme("ws"),
            "wss" | "https" => {
                return Err(
                    "--url: tail supports no TLS, so use the ws:// address behind the proxy".into(),
                );
            }
            _ => return Err("--url must begin with ws://".into()),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!(
                "--url has a user or a password, which the service ignores: {TOKEN_REMEDY}"
            ));
        }
        if url.fragment().is_some() {
            return Err(format!(
                "--url has a fragment after #, which is never sent: {TOKEN_REMEDY}"
            ));
        }
        if url.path() == "/" {
            url.set_path(PATH);
        }
        let (host, port) = url
            .host_str()
            .zip(url.port_or_known_default())
            .ok_or("--url has no host")?;
        let address = format!("{host}:{port}");
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "the token is not a JWT".to_owned())?;
        authorization.set_sensitive(true);
        Ok(Self {
            address,
            url,
            device: device.clone(),
            authorization,
        })
    }

    /// Connects. `starts` has the start of each feed: `SEQ` or `SEQ:EPOCH`.
    pub(super) async fn connect(&self, starts: BTreeMap<String, String>) -> Result<Socket, Loss> {
        let connecting = async {
            let failed =
                |error| Loss::broken(&format!("could not connect to {}: {error}", self.address));
            let stream = TcpStream::connect(&self.address).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let request = self
                .request(&starts)
                .map_err(|error| Loss::Final(error.to_string()))?;
            let config = WebSocketConfig::default()
                .max_message_size(Some(FRAME_BYTES_MAX))
                .max_frame_size(Some(FRAME_BYTES_MAX));
            let upgraded =
                tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await;
            upgraded
                .map(|(socket, _)| socket)
                .map_err(|error| Loss::of_error(error, &self.address))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Loss::broken(&format!(
                "{} did not respond within {CONNECT_TIMEOUT:?}",
                self.address
            ))),
        }
    }

    /// Feeds and devices need no escape in a query, because all their characters are allowed there
    /// (RFC 3986 §3.4).
    fn request(&self, starts: &BTreeMap<String, String>) -> Result<Request, Error> {
        let device = Some(self.device.as_str())
            .filter(|name| !name.is_empty())
            .map(|name| format!("device={name}"));
        let starts = starts
            .iter()
            .map(|(feed, start)| format!("after={feed}:{start}"));
        let given = self.url.query().map(Into::into);
        let query: Vec<_> = given.into_iter().chain(device).chain(starts).collect();
        let mut url = self.url.clone();
        url.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
        let mut request = url.as_str().into_client_request()?;
        request
            .headers_mut()
            .insert(AUTHORIZATION, self.authorization.clone());
        request.headers_mut().insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
        Ok(request)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
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

    #[test]
    fn a_request_has_token_device_and_starts() {
        let device = Device::parse("till-1").unwrap();
        let target = Target::parse("ws://[::1]:8080/v1/ws", "a.b.c", &device).unwrap();
        let request = target
            .request(&[("a/b".into(), "1".into()), ("m".into(), "7:e1".into())].into())
            .unwrap();
        assert_eq!(target.address, "[::1]:8080");
        assert_eq!(
            request.uri().to_string(),
            "ws://[::1]:8080/v1/ws?device=till-1&after=a/b:1&after=m:7:e1"
        );
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer a.b.c");
        assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], "shopbell.v1");
    }

    #[test]
    fn a_url_without_a_path_gets_the_path_of_the_service() {
        let requested = |url| {
            let target = Target::parse(url, "t", &Device::default()).unwrap();
            (
                target.address.clone(),
                target.request(&BTreeMap::new()).unwrap().uri().to_string(),
            )
        };
        for (url, address, uri) in [
            (
                "ws://shop.example",
                "shop.example:80",
                "ws://shop.example/v1/ws",
            ),
            (
                "http://shop.example:8080/ ",
                "shop.example:8080",
                "ws://shop.example:8080/v1/ws",
            ),
            (
                "ws://127.0.0.1:8080?device=a",
                "127.0.0.1:8080",
                "ws://127.0.0.1:8080/v1/ws?device=a",
            ),
            ("WS://h:8080/shop/v1/ws", "h:8080", "ws://h:8080/shop/v1/ws"),
        ] {
            assert_eq!(requested(url), (address.into(), uri.into()), "{url}");
        }
    }

    #[test]
    fn the_error_for_a_bad_url_names_the_cause_and_no_secret() {
        let error_for = |url| {
            Target::parse(url, "t", &Device::default())
                .err()
                .unwrap_or_default()
        };
        for (url, named) in [
            ("wss://shop.example/v1/ws", "no TLS"),
            ("https://shop.example", "no TLS"),
            ("ftp://shop.example", "ws://"),
            ("nowhere", "ws://"),
            ("", "ws://"),
            ("ws://", "host"),
            ("ws://me:s3cr3t@shop.example", "password"),
            ("http://shop.example/#token=s3cr3t", "#"),
        ] {
            let error = error_for(url);
            assert!(
                error.contains(named) && !error.contains("s3cr3t"),
                "{url}: {error}"
            );
        }
        assert!(
            Target::parse("ws://h", "s3cr3t\n", &Device::default())
                .err()
                .is_some_and(|text| !text.contains("s3cr3t"))
        );
    }

    fn loss(close: Close) -> Loss {
        Loss::of_close(Some(CloseFrame {
            code: close.code().into(),
            reason: close.reason().into(),
        }))
    }
}

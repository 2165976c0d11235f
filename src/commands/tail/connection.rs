//! Connects to the service.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use url::Url;

use super::loss::Loss;
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

pub(super) type Socket = WebSocketStream<TcpStream>;

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
}

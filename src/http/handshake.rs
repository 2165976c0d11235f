//! What a WebSocket handshake asks for, read from its headers and query: no I/O.
//!
//! tungstenite's own handshake is not used, because the request has passed through HTTP already; so everything that
//! RFC 6455 §4.2.1 asks a server to check is checked here.

use axum::http::header::{
    AUTHORIZATION, CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::problem::Problem;
use crate::feed::{Device, Feed, Seq, Version};
use crate::protocol::{BEARER_SUBPROTOCOL_PREFIX, SUBPROTOCOL};

/// Most `after` parameters, and most `state`: as many as a token may name feeds.
const PLACES_MAX: usize = 65;

/// A handshake that is WebSocket and ours; who it is from is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    /// `Sec-WebSocket-Key`.
    pub key: String,
    /// The client offered [`SUBPROTOCOL`]; it is selected.
    pub subprotocol: bool,
    /// The token and how it came.
    pub token: Option<Token>,
    /// `?device=`.
    pub device: Device,
    /// `?after=FEED:SEQ`, each feed once.
    pub after: Vec<(Feed, Seq)>,
    /// `?state=FEED:VERSION`, each feed once.
    pub state: Vec<(Feed, Version)>,
}

/// A token, by the way it came: a refusal is answered in kind.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
    /// `Authorization: Bearer`: the client sees HTTP statuses.
    Header(String),
    /// The subprotocol `bearer.JWT`: a page's script sees close codes only.
    Subprotocol(String),
}

/// Reads a handshake.
pub fn read(headers: &HeaderMap, uri: &Uri) -> Result<Handshake, Problem> {
    let key = websocket_key(headers)?;
    let offered = list(headers, SEC_WEBSOCKET_PROTOCOL);
    let subprotocol = offered.contains(&SUBPROTOCOL);
    if !offered.is_empty() && !subprotocol {
        return Err(bad(format!("offer the subprotocol {SUBPROTOCOL}")));
    }
    let token = token(headers, &offered);
    let mut handshake = Handshake { key, subprotocol, token, device: Device::default(), after: vec![], state: vec![] };
    read_query(uri.query().unwrap_or_default(), &mut handshake)?;
    Ok(handshake)
}

fn websocket_key(headers: &HeaderMap) -> Result<String, Problem> {
    let has = |name, token: &str| list(headers, name).iter().any(|value| value.eq_ignore_ascii_case(token));
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        let detail = "this is a WebSocket endpoint: connect to it with a WebSocket client";
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, detail).with(UPGRADE, "websocket"));
    }
    if text(headers, SEC_WEBSOCKET_VERSION) != Some("13") {
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "the WebSocket version must be 13");
        return Err(problem.with(SEC_WEBSOCKET_VERSION, "13"));
    }
    let key = text(headers, SEC_WEBSOCKET_KEY).filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16));
    key.map(Into::into).ok_or_else(|| bad("Sec-WebSocket-Key must be 16 bytes in base64"))
}

fn token(headers: &HeaderMap, offered: &[&str]) -> Option<Token> {
    if headers.contains_key(AUTHORIZATION) {
        return bearer(headers).map(|token| Token::Header(token.into()));
    }
    let token = offered.iter().find_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL_PREFIX))?;
    Some(Token::Subprotocol(token.into()))
}

/// The token of `Authorization: Bearer` (RFC 6750 §2.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a browser's page of that origin may connect. A request without `Origin` is no browser's: its token decides.
/// Without a list of origins only the page's own host is let in; the scheme is not compared, for TLS may end before us.
pub fn origin_is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    if allowed.is_empty() {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        return host.is_some_and(|host| text(headers, HOST).is_some_and(|ours| ours.eq_ignore_ascii_case(host)));
    }
    allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
}

fn read_query(query: &str, handshake: &mut Handshake) -> Result<(), Problem> {
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent_decoded(value).ok_or_else(|| bad(format!("{name} is not percent-encoded UTF-8")))?;
        match name {
            "device" => handshake.device = Device::parse(&value).map_err(|error| bad(error.to_string()))?,
            "after" => handshake.after.push(place(&value, Seq::new).ok_or_else(|| bad("after must be FEED:SEQ"))?),
            "state" => {
                let place = place(&value, Version::new).ok_or_else(|| bad("state must be FEED:VERSION"))?;
                handshake.state.push(place);
            }
            // A token in a URL ends in logs and histories.
            "token" | "access_token" => return Err(bad("a token does not belong in a URL")),
            _ => {}
        }
    }
    one_each("after", &mut handshake.after)?;
    one_each("state", &mut handshake.state)
}

fn place<T>(value: &str, number: impl Fn(i64) -> Option<T>) -> Option<(Feed, T)> {
    let (feed, written) = value.rsplit_once(':')?;
    Some((Feed::parse(feed).ok()?, number(written.parse().ok()?)?))
}

fn one_each<T: Ord>(name: &str, places: &mut [(Feed, T)]) -> Result<(), Problem> {
    if places.len() > PLACES_MAX {
        return Err(bad(format!("too many {name} parameters")));
    }
    places.sort_unstable();
    match places.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        true => Err(bad(format!("{name} names a feed twice"))),
        false => Ok(()),
    }
}

/// Decodes `%XX`; feeds and devices need no `+` for a space.
fn percent_decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A header that is there once and is text.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let only = values.next().filter(|_| values.next().is_none())?;
    only.to_str().ok()
}

/// The members of a header that is a list.
fn list(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn headers(more: &[(&'static str, &str)]) -> HeaderMap {
        let given = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("host", "shop.example:8080"),
        ];
        given.iter().chain(more).map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn of_query(query: &str) -> Result<Handshake, Problem> {
        read(&headers(&[]), &format!("/v1/ws?{query}").parse().unwrap())
    }

    #[test]
    fn a_browsers_token_comes_as_a_subprotocol() {
        let headers = headers(&[("sec-websocket-protocol", "shopbell.v1, bearer.a.b.c")]);
        let handshake = read(&headers, &"/v1/ws".parse().unwrap()).unwrap();
        assert!(handshake.subprotocol);
        assert_eq!(handshake.token, Some(Token::Subprotocol("a.b.c".into())));
    }

    #[test]
    fn a_header_token_needs_no_subprotocol_but_a_foreign_one_is_refused() {
        let with = |more: &[_]| read(&headers(more), &"/v1/ws".parse().unwrap());
        let handshake = with(&[("authorization", "bearer t")]).unwrap();
        assert_eq!((handshake.token, handshake.subprotocol), (Some(Token::Header("t".into())), false));
        assert!(with(&[("sec-websocket-protocol", "graphql-ws")]).is_err());
        assert_eq!(with(&[("authorization", "Basic x")]).unwrap().token, None);
    }

    #[test]
    fn what_is_not_a_websocket_handshake_is_refused() {
        for (name, value) in [
            ("connection", "close"),
            ("upgrade", "h2c"),
            ("sec-websocket-version", "8"),
            ("sec-websocket-key", "c2hvcnQ="),
            ("sec-websocket-key", "not base64 at all !!"),
        ] {
            let mut headers = headers(&[]);
            headers.insert(name, value.parse().unwrap());
            assert!(read(&headers, &"/v1/ws".parse().unwrap()).is_err(), "{name}: {value}");
        }
    }

    #[test]
    fn device_and_after_are_read_from_the_query() {
        let handshake = of_query("device=till-2&after=m%2F1:7&after=all:0&other=x&state=all:3").unwrap();
        assert_eq!(handshake.device.as_str(), "till-2");
        let after: Vec<_> = handshake.after.iter().map(|(feed, seq)| (feed.as_str(), seq.get())).collect();
        assert_eq!(after, [("all", 0), ("m/1", 7)]);
        assert_eq!(handshake.state.iter().map(|(_, version)| version.get()).collect::<Vec<_>>(), [3]);
        for bad in [
            "after=m",
            "after=m:-1",
            "after=m:1&after=m:2",
            "state=m",
            "state=m:1&state=m:1",
            "device=a%20b",
            "device=%ff",
            "token=t",
            "after=a%",
        ] {
            assert!(of_query(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_known_origins_may_connect() {
        let allowed = |origin: &str, list: &[&str]| {
            let list: Vec<String> = list.iter().map(|origin| (*origin).into()).collect();
            origin_is_allowed(&headers(&[("origin", origin)]), &list)
        };
        assert!(allowed("https://shop.example:8080", &[]), "the same host");
        assert!(!allowed("https://shop.example", &[]), "another port is another origin");
        assert!(!allowed("null", &[]));
        assert!(allowed("https://admin.example", &["https://admin.example"]));
        assert!(!allowed("https://shop.example:8080", &["https://admin.example"]));
        assert!(!allowed("https://admin.example.evil", &["https://admin.example"]));
        assert!(origin_is_allowed(&headers(&[]), &[]), "no browser");
    }
}

//! The WebSocket handshake: headers become an [`Offer`], the query becomes [`SessionParameters`]. No
//! I/O.
//!
//! tungstenite's own handshake is not used, because the request has passed through HTTP already; so
//! everything that RFC 6455 §4.2.1 asks a server to check is checked here.

use axum::http::header::{
    AUTHORIZATION, CONNECTION, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::refusal::NotAHandshake;
use super::session::state::KeptNumber;
use crate::model::feed::{self, Device, Epoch, Feed, Seq};
use crate::model::protocol::{BEARER_SUBPROTOCOL_PREFIX, SUBPROTOCOL};

/// Most `after` parameters, and most `state` parameters: one for each feed that a token may grant.
const KEPT_NUMBERS_MAX: usize = 65;

/// A WebSocket handshake whose token is not checked yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Offer {
    /// `Sec-WebSocket-Key`.
    pub key: String,
    /// Whether the client offered [`SUBPROTOCOL`].
    pub subprotocol: bool,
    /// The token.
    pub token: Option<String>,
    /// Whether a page sent it. Its script can read close codes but no HTTP status.
    pub is_page: bool,
}

/// The parameters in the query of a handshake.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SessionParameters {
    /// `?device=`.
    pub device: Device,
    /// `?after=FEED:SEQ` or `FEED:SEQ:EPOCH`, each feed once.
    pub after: Vec<(Feed, KeptNumber<Seq>)>,
    /// `?state=FEED:VERSION` or `FEED:VERSION:EPOCH`, each feed once.
    pub state: Vec<(Feed, KeptNumber<feed::Version>)>,
}

impl SessionParameters {
    /// The feeds that the parameters name.
    pub fn feeds(&self) -> impl Iterator<Item = &Feed> {
        let after = self.after.iter().map(|(feed, _)| feed);
        after.chain(self.state.iter().map(|(feed, _)| feed))
    }
}

/// Reads the headers of a handshake.
pub fn offer(version: Version, headers: &HeaderMap) -> Result<Offer, NotAHandshake> {
    if version < Version::HTTP_11 {
        return Err(NotAHandshake::HttpVersion);
    }
    let key = websocket_key(headers)?;
    let offered = list(headers, SEC_WEBSOCKET_PROTOCOL);
    let subprotocol = offered.contains(&SUBPROTOCOL);
    if !offered.is_empty() && !subprotocol {
        return Err(NotAHandshake::Subprotocol);
    }
    // The subprotocol first, because browsers and proxies add `Authorization` headers that are not
    // for this service.
    let of_page = offered
        .iter()
        .find_map(|name| name.strip_prefix(BEARER_SUBPROTOCOL_PREFIX));
    let of_program = bearer(headers);
    let is_page =
        subprotocol && (of_page.is_some() || of_program.is_none() && headers.contains_key(ORIGIN));
    Ok(Offer {
        key,
        subprotocol,
        token: of_page.or(of_program).map(Into::into),
        is_page,
    })
}

/// Reads the query of a handshake. Unknown parameters are ignored. The error is for the client.
pub fn parameters(query: &str) -> Result<SessionParameters, String> {
    let mut parameters = SessionParameters::default();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let decoded =
            || percent_decoded(value).ok_or_else(|| format!("{name} is not percent-encoded UTF-8"));
        match name {
            "device" => {
                parameters.device = Device::parse(&decoded()?).map_err(|error| error.to_string())?
            }
            "after" => {
                let kept_number = kept_number(&decoded()?, Seq::new);
                parameters
                    .after
                    .push(kept_number.ok_or("after must be FEED:SEQ or FEED:SEQ:EPOCH")?);
            }
            "state" => {
                let kept_number = kept_number(&decoded()?, feed::Version::new);
                parameters
                    .state
                    .push(kept_number.ok_or("state must be FEED:VERSION or FEED:VERSION:EPOCH")?);
            }
            // URLs are written to logs and histories.
            "token" | "access_token" => {
                return Err(
                    "do not send a token in the URL: use the subprotocol bearer.TOKEN".into(),
                );
            }
            _ => {}
        }
    }
    one_each("after", &mut parameters.after)?;
    one_each("state", &mut parameters.state)?;
    Ok(parameters)
}

fn websocket_key(headers: &HeaderMap) -> Result<String, NotAHandshake> {
    let has = |name, token: &str| {
        list(headers, name)
            .iter()
            .any(|value| value.eq_ignore_ascii_case(token))
    };
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        return Err(NotAHandshake::NoUpgrade);
    }
    if text(headers, SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(NotAHandshake::WebSocketVersion);
    }
    let key = text(headers, SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16));
    key.map(Into::into).ok_or(NotAHandshake::Key)
}

/// The token of `Authorization: Bearer` (RFC 6750 §2.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Parses `FEED:NUMBER` or `FEED:NUMBER:EPOCH`. An epoch begins with a letter, and no number does.
pub(super) fn kept_number<T>(
    value: &str,
    number: impl Fn(i64) -> Option<T>,
) -> Option<(Feed, KeptNumber<T>)> {
    let (rest, last) = value.rsplit_once(':')?;
    let (feed, written, epoch) = match last.starts_with(|first: char| first.is_ascii_alphabetic()) {
        true => rest
            .rsplit_once(':')
            .map(|(feed, written)| (feed, written, Some(last)))?,
        false => (rest, last, None),
    };
    let epoch = epoch.map(Epoch::parse).transpose().ok()?;
    Some((
        Feed::parse(feed).ok()?,
        KeptNumber {
            number: number(written.parse().ok()?)?,
            epoch,
        },
    ))
}

fn one_each<T: Ord>(name: &str, kept_numbers: &mut [(Feed, KeptNumber<T>)]) -> Result<(), String> {
    if kept_numbers.len() > KEPT_NUMBERS_MAX {
        return Err(format!("too many {name} parameters"));
    }
    kept_numbers.sort_unstable();
    match kept_numbers.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        true => Err(format!("{name} names a feed twice")),
        false => Ok(()),
    }
}

/// Decodes `%XX`, and `+` as a space, because `URLSearchParams` writes a space as `+`.
fn percent_decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            let digits = digits.map(|digit| char::from(digit).to_digit(16));
            bytes.push((digits[0]? * 16 + digits[1]?) as u8);
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
        }
    }
    String::from_utf8(bytes).ok()
}

pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let only = values.next().filter(|_| values.next().is_none())?;
    only.to_str().ok()
}

fn list(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect()
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
        given
            .iter()
            .chain(more)
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn offered(more: &[(&'static str, &str)]) -> Result<Offer, NotAHandshake> {
        offer(Version::HTTP_11, &headers(more))
    }

    #[test]
    fn a_token_comes_as_a_subprotocol_or_in_a_header() {
        let (page, program) = (
            ("sec-websocket-protocol", "shopbell.v1, bearer.a.b.c"),
            ("authorization", "bearer t"),
        );
        let with = |more: &[_]| {
            offered(more)
                .map(|offer| (offer.token, offer.subprotocol, offer.is_page))
                .unwrap()
        };
        let of_page = (Some("a.b.c".to_owned()), true, true);
        assert_eq!(with(&[page]), of_page);
        assert_eq!(
            with(&[page, ("authorization", "Basic x")]),
            of_page,
            "credentials of the site"
        );
        assert_eq!(with(&[page, program]), of_page, "a token of a proxy");
        assert_eq!(with(&[program]), (Some("t".into()), false, false));
        let (ours, origin) = (
            ("sec-websocket-protocol", "shopbell.v1"),
            ("origin", "https://shop.example"),
        );
        assert_eq!(
            with(&[ours, program, origin]),
            (Some("t".into()), true, false),
            "a page cannot set headers"
        );
        assert_eq!(with(&[ours, origin]), (None, true, true));
        assert_eq!(with(&[ours]), (None, true, false));
        assert_eq!(
            with(&[origin, ("authorization", "Basic x")]),
            (None, false, false)
        );
        assert!(offered(&[("sec-websocket-protocol", "graphql-ws")]).is_err());
    }

    #[test]
    fn a_request_without_a_websocket_handshake_is_refused() {
        for (name, value) in [
            ("connection", "close"),
            ("upgrade", "h2c"),
            ("sec-websocket-version", "8"),
            ("sec-websocket-key", "c2hvcnQ="),
            ("sec-websocket-key", "not base64 at all !!"),
        ] {
            let mut headers = headers(&[]);
            headers.insert(name, value.parse().unwrap());
            assert!(
                offer(Version::HTTP_11, &headers).is_err(),
                "{name}: {value}"
            );
        }
        assert!(offer(Version::HTTP_10, &headers(&[])).is_err());
    }

    #[test]
    fn device_and_kept_numbers_are_read_from_the_query() {
        let asked = parameters(
            "device=till+2&after=m%2F1:7:e9&after=all:0&other=%E9&=&&device&state=all:3",
        )
        .unwrap();
        assert_eq!(asked.device.as_str(), "till 2");
        let after: Vec<_> = asked
            .after
            .iter()
            .map(|(feed, kept_number)| (feed.as_str(), kept_number.number.get()))
            .collect();
        assert_eq!(after, [("all", 0), ("m/1", 7)]);
        let epochs: Vec<_> = asked
            .after
            .iter()
            .map(|(_, kept_number)| kept_number.epoch.as_ref().map(Epoch::as_str))
            .collect();
        assert_eq!(epochs, [None, Some("e9")]);
        assert_eq!(
            asked
                .state
                .iter()
                .map(|(_, kept_number)| kept_number.number.get())
                .collect::<Vec<_>>(),
            [3]
        );
        for bad in [
            "after=m",
            "after=m:-1",
            "after=m:e9",
            "after=m:1:e-9",
            "after=m:1:e9&after=m:2",
            "after=m:1&after=m:2",
            "state=m",
            "state=m:1&state=m:1",
            "device=a%00b",
            "device=%ff",
            "device=%+f",
            "token=t",
            "after=a%",
        ] {
            assert!(parameters(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_kept_number_is_named_for_each_feed_at_most() {
        for name in ["after", "state"] {
            let query = |count: usize| {
                let pairs: Vec<_> = (0..count).map(|at| format!("{name}=m-{at}:7")).collect();
                pairs.join("&")
            };
            assert!(parameters(&query(KEPT_NUMBERS_MAX)).is_ok());
            assert_eq!(
                parameters(&query(KEPT_NUMBERS_MAX + 1)),
                Err(format!("too many {name} parameters"))
            );
        }
    }
}

//! The check of the `Origin` header (RFC 6454): only pages of allowed origins may connect. No I/O.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use url::Url;

use super::handshake::text;

/// Whether a page of the request's origin may connect. A request without `Origin` is not from a
/// browser, so only its token counts. `allowed` has origins as browsers write them. If it is empty,
/// only pages of the request's own host may connect.
pub fn is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    if !headers.contains_key(ORIGIN) {
        return true;
    }
    let Some(origin) = text(headers, ORIGIN).and_then(|origin| Url::parse(origin).ok()) else {
        return false;
    };
    match allowed.is_empty() {
        true => text(headers, HOST).is_some_and(|host| is_of_host(&origin, host)),
        false => allowed.contains(&origin.origin().ascii_serialization()),
    }
}

/// Whether an origin is of this host. The scheme of the request is not known, because TLS may end
/// before this server. So a host without a port gets the default port of the origin's scheme.
fn is_of_host(origin: &Url, host: &str) -> bool {
    let is_host = !host.is_empty() && !host.contains(['/', '\\', '@', '?', '#']);
    let ours = is_host
        .then(|| Url::parse(&format!("{}://{host}", origin.scheme())).ok())
        .flatten();
    let is_of_web = ["http", "https"].contains(&origin.scheme());
    is_of_web && ours.is_some_and(|ours| ours.origin() == origin.origin())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, origin: &str, allowed: &[&str], expected: bool) {
        let allowed: Vec<String> = allowed.iter().map(|origin| (*origin).into()).collect();
        let headers = [
            (HOST, host.parse().unwrap()),
            (ORIGIN, origin.parse().unwrap()),
        ]
        .into_iter()
        .collect();
        assert_eq!(
            is_allowed(&headers, &allowed),
            expected,
            "{host}: {origin} of {allowed:?}"
        );
    }

    #[test]
    fn a_page_of_the_same_host_and_port_may_connect() {
        for (host, origin) in [
            ("shop.example:8080", "https://shop.example:8080"),
            ("shop.example", "https://shop.example"),
            ("shop.example:443", "https://shop.example"),
            ("shop.example:80", "http://shop.example"),
            ("Shop.Example", "https://shop.example"),
            ("[::1]:443", "https://[::1]"),
            ("shop.example:443", "http://shop.example:443"),
            ("xn--mnchen-3ya.example", "https://xn--mnchen-3ya.example"),
        ] {
            check(host, origin, &[], true);
        }
        for (host, origin) in [
            ("shop.example:8080", "https://shop.example"),
            ("shop.example", "https://shop.example:8443"),
            ("shop.example:80", "https://shop.example:81"),
            ("shop.example", "https://shop.example.evil"),
            ("shop.example", "null"),
            ("shop.example", "https://"),
            ("shop.example", "data:shop.example"),
            ("evil.example@shop.example", "https://shop.example"),
            ("", "https://shop.example"),
        ] {
            check(host, origin, &[], false);
        }
        assert!(
            is_allowed(&HeaderMap::new(), &[]),
            "a request that is not from a browser"
        );
    }

    #[test]
    fn with_a_list_only_its_origins_may_connect() {
        let allowed = ["https://admin.example", "https://admin.example:8443"];
        for origin in [
            "https://admin.example",
            "https://ADMIN.example:443",
            "https://admin.example:8443",
        ] {
            check("shop.example", origin, &allowed, true);
        }
        for origin in [
            "https://shop.example",
            "http://admin.example",
            "https://admin.example.evil",
            "null",
        ] {
            check("shop.example", origin, &allowed, false);
        }
    }
}

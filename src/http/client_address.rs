//! The address of a client: of its connection, or as trusted proxies report it. No I/O.
//!
//! Each proxy appends the address that it received the request from. So trusted proxies write the
//! right end of the header. Everything left of the first address that is not trusted may be forged.
//! The PROXY protocol is not supported.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::http::{HeaderMap, HeaderName};

use crate::config::{ProxyConfig, ProxyHeader};

/// Most proxies in a row. A client in a trusted network could otherwise send a long chain of
/// trusted addresses.
const PROXIES_MAX: usize = 16;

/// The addresses that limits count as one client: one IPv4 address, or 64 bits of IPv6. Each
/// customer of a provider has at least so many addresses (RFC 6177 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressBlock {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
}

impl AddressBlock {
    /// The block of a public address. Another address has none, because a load balancer or the
    /// translation of a cluster's network may hide all clients behind it.
    pub fn of_public(address: IpAddr) -> Option<Self> {
        match address.to_canonical() {
            IpAddr::V4(address) => (!is_internal_v4(address)).then_some(Self::V4(address)),
            IpAddr::V6(address) => {
                let first_half = (address.to_bits() >> 64) as u64;
                (!is_internal_v6(address)).then_some(Self::V6(first_half))
            }
        }
    }
}

fn is_internal_v4(address: Ipv4Addr) -> bool {
    // Addresses between a provider and its customers (RFC 6598); clusters use them too.
    let [first, second, ..] = address.octets();
    let is_shared = first == 100 && (64..128).contains(&second);
    let is_local = address.is_loopback() || address.is_link_local() || address.is_unspecified();
    address.is_private() || is_local || is_shared
}

fn is_internal_v6(address: Ipv6Addr) -> bool {
    let is_local = address.is_unique_local() || address.is_unicast_link_local();
    address.is_loopback() || address.is_unspecified() || is_local
}

/// The address of the client of a request. If a proxy reports something that is not an address, it
/// is the address of that proxy.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, proxies: &ProxyConfig) -> IpAddr {
    let is_trusted = |address: IpAddr| proxies.trusted.iter().any(|net| net.contains(&address));
    let mut client = peer.to_canonical();
    let mut reported = match proxies.header {
        ProxyHeader::XForwardedFor => elements(headers, "x-forwarded-for", parse_address),
        ProxyHeader::Forwarded => elements(headers, "forwarded", parse_forwarded),
    }
    .take(PROXIES_MAX);
    while is_trusted(client)
        && let Some(Some(address)) = reported.next()
    {
        client = address.to_canonical();
    }
    client
}

/// The addresses in the elements of a list header, from the right.
///
/// A comma in a quoted string splits it too. So a client cannot hide the element of a proxy behind
/// a quote that it leaves open: both parts of the string are no valid element.
fn elements(
    headers: &HeaderMap,
    name: &'static str,
    parse: fn(&str) -> Option<IpAddr>,
) -> impl Iterator<Item = Option<IpAddr>> {
    let values = headers.get_all(HeaderName::from_static(name)).iter().rev();
    let parts = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    parts.map(move |part| parse(std::str::from_utf8(part).ok()?.trim()))
}

/// An address, as proxies write it: with or without a port, and IPv6 with or without brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse()
        .ok()
        .or_else(|| in_brackets().map(IpAddr::V6))
        .or_else(with_port)
}

/// The address in `for` of one element of `Forwarded` (RFC 7239 §4).
fn parse_forwarded(element: &str) -> Option<IpAddr> {
    let mut client = None;
    for pair in element.split(';') {
        let (name, value) = pair.trim().split_once('=')?;
        let is_token = |text: &str| {
            let is_of_token =
                |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
            !text.is_empty() && text.bytes().all(is_of_token)
        };
        let unquoted = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        let is_plain = |text: &str| !text.contains(['"', '\\']);
        // Proxies also write IPv4 addresses with a port without quotes.
        let is_value = unquoted.map_or_else(|| is_plain(value), is_plain);
        if !is_token(name) || !is_value {
            return None;
        }
        if name.eq_ignore_ascii_case("for") {
            // Twice is malformed (RFC 7239 §4).
            if client.is_some() {
                return None;
            }
            client = Some(parse_address(unquoted.unwrap_or(value))?);
        }
    }
    client
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn proxies(header: ProxyHeader) -> ProxyConfig {
        let trusted = ["10.0.0.0/8", "198.51.100.7/32", "2001:db8:1::/48"];
        ProxyConfig {
            trusted: trusted.map(|net| net.parse().unwrap()).into(),
            header,
        }
    }

    #[track_caller]
    fn check(header: ProxyHeader, peer: &str, given: &[(&'static str, &str)], expected: &str) {
        let given = given.iter().map(|(name, value)| {
            let value = axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            (HeaderName::from_static(name), value)
        });
        let client = client_address(peer.parse().unwrap(), &given.collect(), &proxies(header));
        assert_eq!(client.to_string(), expected);
    }

    #[track_caller]
    fn check_x(peer: &str, lines: &[&str], expected: &str) {
        let given: Vec<_> = lines
            .iter()
            .map(|line| ("x-forwarded-for", *line))
            .collect();
        check(ProxyHeader::XForwardedFor, peer, &given, expected);
    }

    #[track_caller]
    fn check_forwarded(line: &str, expected: &str) {
        let given = [("forwarded", line)];
        check(ProxyHeader::Forwarded, "10.0.0.1", &given, expected);
    }

    #[test]
    fn only_trusted_proxies_may_name_the_client() {
        check_x("203.0.113.9", &["192.0.2.1"], "203.0.113.9");
        check_x("10.0.0.1", &["192.0.2.1"], "192.0.2.1");
        check_x("::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1");
        check_x("2001:db8:1::5", &["2001:db8:2::9"], "2001:db8:2::9");
        check_x("10.0.0.1", &[], "10.0.0.1");
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_counts() {
        // The client sent the first address itself.
        check_x("10.0.0.1", &["127.0.0.1, 192.0.2.1"], "192.0.2.1");
        check_x("10.0.0.1", &["127.0.0.1", "192.0.2.1"], "192.0.2.1");
        check_x("10.0.0.1", &["192.0.2.1, 198.51.100.7"], "192.0.2.1");
        check_x(
            "10.0.0.1",
            &["192.0.2.1", "198.51.100.7", "10.9.9.9"],
            "192.0.2.1",
        );
        // A client in a trusted network.
        check_x("10.0.0.1", &["10.0.0.5"], "10.0.0.5");
        check_x("10.0.0.1", &["10.0.0.6, 10.0.0.5"], "10.0.0.6");
    }

    #[test]
    fn an_element_that_is_no_address_ends_the_chain() {
        for malformed in [
            "unknown",
            "_hidden",
            "",
            "192.0.2.1.5",
            "192.0.2.999",
            "fe80::1%eth0",
            "localhost",
            "192.0.2.1:99999",
            "\"192.0.2.1\"",
            "\u{e9}",
        ] {
            check_x(
                "10.0.0.1",
                &[&format!("192.0.2.1, {malformed}")],
                "10.0.0.1",
            );
            let before = format!("192.0.2.1, {malformed}, 198.51.100.7");
            check_x("10.0.0.1", &[&before], "198.51.100.7");
        }
        for (written, read) in [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("[2001:db8::9]:4711", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("2001:db8::9", "2001:db8::9"),
            (" \t192.0.2.1 ", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            check_x("10.0.0.1", &[written], read);
        }
    }

    #[test]
    fn a_chain_of_trusted_addresses_is_read_to_its_bound() {
        let chain = |count: usize| {
            let addresses: Vec<_> = (1..=count).rev().map(|at| format!("10.1.0.{at}")).collect();
            addresses.join(",")
        };
        check_x("10.0.0.1", &[&chain(PROXIES_MAX - 1)], "10.1.0.15");
        check_x("10.0.0.1", &[&chain(PROXIES_MAX)], "10.1.0.16");
        check_x("10.0.0.1", &[&chain(PROXIES_MAX + 1)], "10.1.0.16");
        check_x("10.0.0.1", &[&",".repeat(16_000)], "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        check_forwarded("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60");
        check_forwarded("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17");
        check_forwarded("for=192.0.2.43, for=198.51.100.7", "192.0.2.43");
        check_forwarded(
            "for=127.0.0.1, for=192.0.2.43;host=\"shop.example\"",
            "192.0.2.43",
        );
        check_forwarded("proto=https ; for=192.0.2.43:80", "192.0.2.43");
        for malformed in [
            "for=unknown",
            "for=_gazonk",
            "for=\"_gazonk\"",
            "proto=https",
            "for",
            "for=",
            "192.0.2.1",
            "for=192.0.2.1;for=192.0.2.2",
            "for=\"192.0.2.1",
            "for=192.0.2.1\"",
            "f r=1;for=192.0.2.1",
            "for=\"\\192.0.2.1\"",
            ";",
            "for=192.0.2.1;",
        ] {
            check_forwarded(malformed, "10.0.0.1");
        }
        // An open quote of the client cannot swallow the element of the proxy.
        check_forwarded("for=\"1.1.1.1, for=192.0.2.43", "192.0.2.43");
        // A host that the proxy copies cannot add an element.
        check_forwarded("for=192.0.2.43;host=\"a, for=1.1.1.1\"", "10.0.0.1");
        check_forwarded("for=192.0.2.43;host=\"a, for=1.1.1.1;x=\\\"\"", "10.0.0.1");
    }

    #[test]
    fn only_the_configured_header_is_read() {
        let both = [
            ("x-forwarded-for", "192.0.2.1"),
            ("forwarded", "for=192.0.2.2"),
        ];
        check(ProxyHeader::XForwardedFor, "10.0.0.1", &both, "192.0.2.1");
        check(ProxyHeader::Forwarded, "10.0.0.1", &both, "192.0.2.2");
        check(ProxyHeader::Forwarded, "10.0.0.1", &both[..1], "10.0.0.1");
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let block = |address: &str| AddressBlock::of_public(address.parse().unwrap());
        assert_eq!(block("2001:db8::1"), block("2001:db8::ffff:0:0:2"));
        assert_ne!(block("2001:db8::1"), block("2001:db8:0:1::1"));
        assert_ne!(block("192.0.2.1"), block("192.0.2.2"));
        assert_eq!(block("192.0.2.1"), block("::ffff:192.0.2.1"));
    }

    #[test]
    fn internal_addresses_are_not_counted() {
        let block = |address: &str| AddressBlock::of_public(address.parse().unwrap());
        for internal in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "::1",
            "::",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(block(internal), None, "{internal}");
        }
        for public in [
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.0",
            "203.0.113.1",
            "2001:db8::1",
        ] {
            assert!(block(public).is_some(), "{public}");
        }
    }
}

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

/// The well-known prefix of translators to IPv4, without its zeros (RFC 6052 §2.1).
const NAT64_PREFIX: u128 = 0x0064_ff9b << 64;

/// The client of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its address, or the address of the proxy that does not report it.
    pub address: IpAddr,
    /// `None` if no bound applies to the address.
    pub block: Option<AddressBlock>,
}

/// The addresses that limits count as one client: one IPv4 address, or 64 bits of IPv6. Each
/// customer of a provider has at least so many addresses (RFC 6177 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressBlock {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
    /// All clients that a trusted proxy reports in a malformed element. Otherwise a client could
    /// avoid all bounds if it makes the element of its proxy malformed, for example with its `Host`.
    Malformed,
}

impl AddressBlock {
    /// The block of a public address. Another address has none, because a load balancer or the
    /// translation of a cluster's network may hide all clients behind it.
    pub fn of_public(address: IpAddr) -> Option<Self> {
        match without_translation(address) {
            IpAddr::V4(address) => (!is_internal_v4(address)).then_some(Self::V4(address)),
            IpAddr::V6(address) => {
                let first_half = (address.to_bits() >> 64) as u64;
                (!is_internal_v6(address)).then_some(Self::V6(first_half))
            }
        }
    }
}

/// The address, or the IPv4 address in it.
fn without_translation(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        // Otherwise all of IPv4 would be one network of 64 bits.
        IpAddr::V6(address) if address.to_bits() >> 32 == NAT64_PREFIX => {
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() as u32))
        }
        address => address,
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

/// The client of a request on a connection from `peer`.
pub fn client_of(peer: IpAddr, headers: &HeaderMap, proxies: &ProxyConfig) -> Client {
    let is_trusted = |address: IpAddr| proxies.trusted.iter().any(|net| net.contains(&address));
    let mut address = peer.to_canonical();
    let mut reported = match proxies.header {
        ProxyHeader::XForwardedFor => elements(headers, "x-forwarded-for", Element::of_name),
        ProxyHeader::Forwarded => elements(headers, "forwarded", Element::of_pairs),
    }
    .take(PROXIES_MAX);
    while is_trusted(address)
        && let Some(element) = reported.next()
    {
        match element {
            Element::Address(before) => address = before.to_canonical(),
            Element::Hidden => break,
            Element::Malformed => {
                let block = Some(AddressBlock::Malformed);
                return Client { address, block };
            }
        }
    }
    let block = AddressBlock::of_public(address);
    Client { address, block }
}

/// One element of the header: the report of one proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Address(IpAddr),
    /// The proxy does not report the address (RFC 7239 §6.2, §6.3).
    Hidden,
    Malformed,
}

/// The elements of a list header, from the right.
fn elements(
    headers: &HeaderMap,
    name: &'static str,
    parse: fn(&str) -> Element,
) -> impl Iterator<Item = Element> {
    let values = headers.get_all(HeaderName::from_static(name)).iter().rev();
    let parts = values.flat_map(|value| rsplit_unquoted(value.as_bytes(), b','));
    parts.map(move |part| std::str::from_utf8(part).map_or(Element::Malformed, parse))
}

/// Splits at a separator that is not in a quoted string (RFC 9110 §5.6.4).
///
/// It reads from the right. So a client cannot hide the element of a proxy behind a quote that it
/// leaves open.
fn rsplit_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let whole = rest?;
        let Some(at) = last_unquoted(whole, separator) else {
            return rest.take();
        };
        rest = Some(&whole[..at]);
        Some(&whole[at + 1..])
    })
}

fn last_unquoted(text: &[u8], separator: u8) -> Option<usize> {
    let mut is_quoted = false;
    for (at, byte) in text.iter().enumerate().rev() {
        if *byte == b'"' && !ends_in_escape(&text[..at]) {
            is_quoted = !is_quoted;
        } else if *byte == separator && !is_quoted {
            return Some(at);
        }
    }
    None
}

/// Whether each quote between the quotes of a string is escaped, and the one after it is not.
fn is_quoted_content(content: &[u8]) -> bool {
    let is_escaped = |at: usize| ends_in_escape(&content[..at]);
    let mut quotes = (0..content.len()).filter(|at| content[*at] == b'"');
    quotes.all(is_escaped) && !is_escaped(content.len())
}

/// Whether the next character is escaped.
fn ends_in_escape(text: &[u8]) -> bool {
    let backslashes = text.iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

impl Element {
    /// Reads the name of one client.
    fn of_name(text: &str) -> Self {
        let text = text.trim();
        match parse_address(text) {
            Some(address) => Self::Address(address),
            None if text.eq_ignore_ascii_case("unknown") || text.starts_with('_') => Self::Hidden,
            None => Self::Malformed,
        }
    }

    /// Reads one element of `Forwarded` (RFC 7239 §4).
    fn of_pairs(text: &str) -> Self {
        let mut client = None;
        for pair in rsplit_unquoted(text.as_bytes(), b';') {
            let pair = std::str::from_utf8(pair).ok().and_then(parse_pair);
            let Some((name, value)) = pair else {
                return Self::Malformed;
            };
            // Twice is malformed (RFC 7239 §4).
            if name.eq_ignore_ascii_case("for") && client.replace(Self::of_name(value)).is_some() {
                return Self::Malformed;
            }
        }
        client.unwrap_or(Self::Hidden)
    }
}

/// The name and the value of a pair. Proxies also write IPv4 addresses with a port without quotes.
fn parse_pair(pair: &str) -> Option<(&str, &str)> {
    let (name, value) = pair.trim().split_once('=')?;
    let is_of_token = |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
    let unquoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let is_value = match unquoted {
        Some(content) => is_quoted_content(content.as_bytes()),
        None => !value.contains(['"', '\\']),
    };
    let is_name = !name.is_empty() && name.bytes().all(is_of_token);
    (is_name && is_value).then(|| (name, unquoted.unwrap_or(value)))
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
        let headers = given.iter().map(|(name, value)| {
            let value = axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            (HeaderName::from_static(name), value)
        });
        let client = client_of(peer.parse().unwrap(), &headers.collect(), &proxies(header));
        let is_malformed = client.block == Some(AddressBlock::Malformed);
        let mark = if is_malformed { "malformed " } else { "" };
        assert_eq!(format!("{mark}{}", client.address), expected, "{given:?}");
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
        // Google appends its own address: if that is not trusted, all clients share it.
        check_x("10.0.0.1", &["192.0.2.1,198.51.100.8"], "198.51.100.8");
        // A client in a trusted network.
        check_x("10.0.0.1", &["10.0.0.5"], "10.0.0.5");
        check_x("10.0.0.1", &["10.0.0.6, 10.0.0.5"], "10.0.0.6");
    }

    #[test]
    fn an_element_that_is_no_address_ends_the_chain() {
        for malformed in [
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
                "malformed 10.0.0.1",
            );
            let before = format!("192.0.2.1, {malformed}, 198.51.100.7");
            check_x("10.0.0.1", &[&before], "malformed 198.51.100.7");
        }
        for hidden in ["unknown", "_hidden"] {
            let before = format!("192.0.2.1, {hidden}");
            check_x("10.0.0.1", &[&before], "10.0.0.1");
            check_x("203.0.113.9", &[&before], "203.0.113.9");
        }
        // An open quote of the client cannot swallow the element of the proxy.
        check_x("10.0.0.1", &["\"1.1.1.1, 192.0.2.1"], "192.0.2.1");
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
        check_x("10.0.0.1", &[&",".repeat(16_000)], "malformed 10.0.0.1");
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
        for hidden in [
            "for=unknown",
            "for=_gazonk",
            "for=\"_gazonk\"",
            "proto=https",
        ] {
            check_forwarded(hidden, "10.0.0.1");
        }
        for malformed in [
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
            "for=192.0.2.1;host=\"a\"b\"",
            "for=192.0.2.1;host=a\"b",
        ] {
            check_forwarded(malformed, "malformed 10.0.0.1");
        }
        // An open quote of the client cannot swallow the element of the proxy.
        check_forwarded("for=\"1.1.1.1, for=192.0.2.43", "192.0.2.43");
    }

    #[test]
    fn a_host_that_the_proxy_copies_changes_nothing() {
        for host in ["a, for=1.1.1.1", "a;b", "a, for=1.1.1.1;x=\\\"", "a\\\\"] {
            let element = format!("for=192.0.2.43;host=\"{host}\"");
            check_forwarded(&element, "192.0.2.43");
            check_forwarded(
                &format!("for=\"1.1.1.1, {element};proto=http"),
                "192.0.2.43",
            );
        }
        // Proxies that do not quote or escape it. Its client does not avoid the bounds.
        for host in ["a;b", "a;for=1.1.1.1", "\"a\\\""] {
            let element = format!("for=192.0.2.43;host={host}");
            check_forwarded(&element, "malformed 10.0.0.1");
            check_forwarded(
                &format!("for=1.1.1.1;x=\", {element}"),
                "malformed 10.0.0.1",
            );
        }
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
        for embedded in [
            "::ffff:192.0.2.1",
            "64:ff9b::192.0.2.1",
            "64:ff9b::c000:201",
        ] {
            assert_eq!(block(embedded), block("192.0.2.1"), "{embedded}");
        }
        assert_ne!(block("64:ff9b::192.0.2.1"), block("64:ff9b::192.0.2.2"));
        assert_ne!(
            block("64:ff9b:1::192.0.2.1"),
            block("192.0.2.1"),
            "RFC 8215"
        );
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
            "64:ff9b::10.0.0.1",
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

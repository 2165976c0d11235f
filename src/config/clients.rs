//! The settings that bound the requests and sessions of one client address and of one subscriber.

use ipnet::IpNet;

use super::environment::Environment;
use super::settings::{
    FAILED_TOKENS_PER_ADDRESS, PROXY_HEADER, REQUESTS_PER_ADDRESS, REQUESTS_PER_SUBSCRIBER,
    SESSIONS_PER_ADDRESS, TRUSTED_PROXIES,
};

/// The proxies whose header names the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// `SHOPBELL_TRUSTED_PROXIES`.
    pub trusted: Vec<IpNet>,
    /// `SHOPBELL_PROXY_HEADER`.
    pub header: ProxyHeader,
}

/// The header in which the proxies name the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Bounds of one client address and of one subscriber; `None` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// `SHOPBELL_MAX_SESSIONS_PER_ADDRESS`.
    pub sessions_per_address: Option<usize>,
    /// `SHOPBELL_MAX_REQUESTS_PER_ADDRESS`, a second.
    pub requests_per_address: Option<u32>,
    /// `SHOPBELL_MAX_REQUESTS_PER_SUBSCRIBER`, a second.
    pub requests_per_subscriber: Option<u32>,
    /// `SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS`, a second.
    pub failed_tokens_per_address: Option<u32>,
}

impl Environment {
    pub(super) fn read_proxies(&mut self) -> Option<ProxyConfig> {
        let trusted = self.networks(&TRUSTED_PROXIES);
        let header = self.choice(&PROXY_HEADER);
        Some(ProxyConfig {
            trusted: trusted.unwrap_or_default(),
            header: match header?.as_str() {
                "forwarded" => ProxyHeader::Forwarded,
                _ => ProxyHeader::XForwardedFor,
            },
        })
    }

    pub(super) fn read_client_limits(&mut self) -> Option<ClientLimits> {
        let sessions = self.number::<usize>(&SESSIONS_PER_ADDRESS);
        let of_address = self.number::<u32>(&REQUESTS_PER_ADDRESS);
        let of_subscriber = self.number::<u32>(&REQUESTS_PER_SUBSCRIBER);
        let failed = self.number::<u32>(&FAILED_TOKENS_PER_ADDRESS);
        let unless_zero = |number: u32| (number > 0).then_some(number);
        Some(ClientLimits {
            sessions_per_address: sessions.map(|number| (number > 0).then_some(number))?,
            requests_per_address: unless_zero(of_address?),
            requests_per_subscriber: unless_zero(of_subscriber?),
            failed_tokens_per_address: unless_zero(failed?),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        Environment::of(variables.iter().map(owned).collect())
    }

    #[test]
    fn zero_is_no_bound_and_the_defaults_are_generous() {
        let limits = environment(&[]).read_client_limits().unwrap();
        assert_eq!(limits.sessions_per_address, Some(5_000));
        assert_eq!(limits.requests_per_address, Some(100));
        assert_eq!(limits.requests_per_subscriber, Some(100));
        assert_eq!(limits.failed_tokens_per_address, Some(10));
        let zero = [
            SESSIONS_PER_ADDRESS,
            REQUESTS_PER_ADDRESS,
            REQUESTS_PER_SUBSCRIBER,
            FAILED_TOKENS_PER_ADDRESS,
        ];
        let none = environment(&zero.map(|setting| (setting.variable, "0")));
        assert_eq!({ none }.read_client_limits(), Some(ClientLimits::default()));
    }

    #[test]
    fn proxies_are_networks_and_have_one_header() {
        let read = |networks: &str, header: &str| {
            let given = [
                (TRUSTED_PROXIES.variable, networks),
                (PROXY_HEADER.variable, header),
            ];
            environment(&given).read_proxies()
        };
        let proxies = read("10.0.0.0/8, 192.0.2.7,2001:db8::/32 ,::1", "forwarded").unwrap();
        assert_eq!(proxies.header, ProxyHeader::Forwarded);
        let trusted: Vec<_> = proxies.trusted.iter().map(IpNet::to_string).collect();
        assert_eq!(
            trusted,
            ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::1/128"]
        );
        let none = environment(&[]).read_proxies().unwrap();
        assert_eq!(none, ProxyConfig::default());
        assert_eq!(read("10.0.0.0/8", "x-real-ip"), None);
    }
}

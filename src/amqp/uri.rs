//! Parses `AMQP_URL`. No error repeats the URL, because it holds a password.

use std::path::PathBuf;

use lapin::uri::{AMQPScheme, AMQPUri};
use url::{Host, Url};

use super::connection::Sockets;

/// The expected form.
const FORM: &str = "must be a URL like amqp://user:password@host:5672/vhost";

/// An address of RabbitMQ, and the files of its certificates.
#[derive(Debug, Clone, Default)]
pub(super) struct Address {
    pub(super) uri: AMQPUri,
    /// `cacertfile`: CAs that are trusted besides those of the system.
    pub(super) ca: Option<PathBuf>,
    /// `certfile` and `keyfile`: the certificate of this client and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// The open connections to it.
    pub(super) sockets: Sockets,
}

impl Address {
    /// `host:port`, for errors.
    pub(super) fn authority(&self) -> String {
        let authority = &self.uri.authority;
        format!("{}:{}", authority.host, authority.port)
    }

    /// Whether both lead to the same virtual host of the same broker, both with TLS or both without.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        self.authority() == other.authority()
            && self.uri.vhost == other.uri.vhost
            && self.is_encrypted() == other.is_encrypted()
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }
}

/// Parses an `amqp` or `amqps` URL with the parameters of its certificates. Their names are those of
/// RabbitMQ's own clients (<https://www.rabbitmq.com/docs/uri-query-parameters>).
pub(super) fn parse(text: &str) -> Result<Address, &'static str> {
    let uri = parse_uri(text)?;
    let url = Url::parse(text).map_err(|_| FORM)?;
    let parameter = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    };
    if parameter("verify").is_some_and(|verify| verify != "verify_peer") {
        return Err("switches off the verification of the certificate: remove `verify`");
    }
    let path = |name: &str| parameter(name).map(PathBuf::from);
    let client = match (path("certfile"), path("keyfile")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err("must have both `certfile` and `keyfile`, or neither"),
    };
    let address = Address {
        uri,
        ca: path("cacertfile"),
        client,
        sockets: Sockets::default(),
    };
    if !address.is_encrypted() && (address.ca.is_some() || address.client.is_some()) {
        return Err("names certificates without TLS: it must begin with amqps://");
    }
    Ok(address)
}

/// Parses the part that lapin reads.
///
/// lapin takes an IPv6 literal and a missing host for `localhost`. A broker that the URL does not
/// name must never get the password, so the host is read here.
fn parse_uri(text: &str) -> Result<AMQPUri, &'static str> {
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::InvalidIpv6Address if text.contains('%') => {
            "names an IPv6 address with a zone, which is not supported: use an address without a zone, or a host name"
        }
        url::ParseError::InvalidIpv6Address => "names an IPv6 address that is not valid",
        _ => FORM,
    })?;
    let mut uri: AMQPUri = text.parse().map_err(|_| FORM)?;
    uri.authority.host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Domain(name)) if !name.is_empty() => uri.authority.host,
        _ => {
            return Err(
                "names no host: it must be a URL like amqp://user:password@host:5672/vhost",
            );
        }
    };
    if url.fragment().is_some() {
        return Err("contains a `#`: write %23 for it in a user, password or vhost");
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn authority(url: &str) -> (String, u16) {
        let uri = parse_uri(url).unwrap_or_else(|error| panic!("{url} {error}"));
        (uri.authority.host, uri.authority.port)
    }

    #[test]
    fn the_host_of_the_url_is_the_host() {
        assert_eq!(
            authority("amqp://u:p@[2001:db8::1]:5673/%2f"),
            ("2001:db8::1".into(), 5673)
        );
        assert_eq!(authority("amqps://u:p@[::1]"), ("::1".into(), 5671));
        assert_eq!(
            authority("amqp://[::ffff:10.0.0.1]/"),
            ("::ffff:10.0.0.1".into(), 5672)
        );
        assert_eq!(authority("amqp://10.0.0.1"), ("10.0.0.1".into(), 5672));
        assert_eq!(
            authority("amqp://u:p@mq.example:5/v"),
            ("mq.example".into(), 5)
        );
        assert_eq!(
            authority("amqp://u:p@mq%2dtwo.example"),
            ("mq-two.example".into(), 5672)
        );
    }

    #[test]
    fn user_password_and_vhost_may_hold_any_character() {
        let uri =
            parse_uri("amqp://u%40x:p%2F%3A%5B%23@[::1]/a%2fb?heartbeat=5").unwrap_or_default();
        let user = &uri.authority.userinfo;
        assert_eq!(
            (user.username.as_str(), user.password.as_str()),
            ("u@x", "p/:[#")
        );
        assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), ("a/b", Some(5)));
    }

    #[test]
    fn an_address_that_differs_in_tls_is_another_place() {
        let address = |url| parse(url).unwrap_or_default();
        let plain = address("amqp://u:p@host:5671/v");
        assert!(plain.is_same_place(&address("amqp://other:user@host:5671/v")));
        assert!(!plain.is_same_place(&address("amqps://u:p@host:5671/v")));
    }

    #[test]
    fn a_url_without_a_usable_host_is_refused() {
        for (url, reason) in [
            ("amqp://", "names no host"),
            ("amqp:///v", "names no host"),
            ("amqp://u:p@/v", FORM),
            ("amqp://u:p@[fe80::1%25eth0]/", "a zone"),
            ("amqp://u:p@[fe80::1%eth0]/", "a zone"),
            ("amqp://u:p@[::g]/", "not valid"),
            ("amqp://u:p@2001:db8::1/", FORM),
            ("amqp://u:p@%ff/", FORM),
            ("amqp://u:5#p@host/", "%23"),
            ("amqp:host", FORM),
            ("http://host", FORM),
            ("amqp://host?heartbeat=often", FORM),
            ("amqps://host?verify=verify_none", "remove `verify`"),
            ("amqps://host?certfile=/c", "both"),
            ("amqp://host?cacertfile=/c", "amqps://"),
        ] {
            let refused = parse(url);
            assert!(
                refused
                    .as_ref()
                    .is_err_and(|refused| refused.contains(reason)),
                "{url}: {refused:?}"
            );
        }
    }

    #[test]
    fn the_url_names_the_files_of_certificates() {
        let url = "amqps://host?cacertfile=%2Fa%20b.pem&certfile=c&keyfile=k&verify=verify_peer";
        let address = parse(url).unwrap_or_default();
        assert_eq!(address.ca, Some("/a b.pem".into()));
        assert_eq!(address.client, Some(("c".into(), "k".into())));
        assert_eq!(address.authority(), "host:5671");
    }
}

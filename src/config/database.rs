//! `DATABASE_URL`: parsed by sqlx, except for the URLs that sqlx misunderstands.

use std::net::Ipv6Addr;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::environment::Environment;
use super::error::ConfigError;
use super::settings::{DATABASE_URL, Setting};

const SEVERAL_HOSTS: &str = "names several hosts: use one name that always leads to the primary";

impl Environment {
    /// Reads the settings of Postgres only.
    pub fn database(mut self) -> Result<PgConnectOptions, ConfigError> {
        let database = self.read_database();
        self.finish(database)
    }

    pub(super) fn read_database(&mut self) -> Option<PgConnectOptions> {
        self.read_postgres(&DATABASE_URL)
    }

    pub(super) fn read_postgres(&mut self, setting: &Setting) -> Option<PgConnectOptions> {
        self.secret(
            setting,
            |url| parse(url.reveal()),
            |options| Some(shown(options)),
        )
    }
}

/// Parses the URL. A problem contains no part of the URL.
pub(super) fn parse(url: &str) -> Result<PgConnectOptions, String> {
    let expected = || format!("must be {}", DATABASE_URL.kind.expected());
    let rest = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))
        .ok_or_else(expected)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority
        .rsplit('@')
        .next()
        .is_some_and(|hosts| hosts.contains(','))
    {
        return Err(SEVERAL_HOSTS.into());
    }
    let options = PgConnectOptions::from_str(url).map_err(|_| expected())?;
    if options.get_host().contains(',') {
        return Err(SEVERAL_HOSTS.into());
    }
    without_brackets(options)
}

/// Removes the brackets around an IPv6 address (RFC 3986 §3.2.2). sqlx would resolve it as a name.
fn without_brackets(options: PgConnectOptions) -> Result<PgConnectOptions, String> {
    let Some(address) = options.get_host().strip_prefix('[') else {
        return Ok(options);
    };
    let address = address
        .strip_suffix(']')
        .and_then(|address| address.parse::<Ipv6Addr>().ok());
    let address = address.ok_or("has a host in brackets that is no IPv6 address")?;
    Ok(options.host(&address.to_string()))
}

/// The effective options as a URL without the password. Variables of libpq may have filled in some.
fn shown(options: &PgConnectOptions) -> String {
    let sslmode = match options.get_ssl_mode() {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    };
    let (user, port) = (options.get_username(), options.get_port());
    let database = options.get_database().unwrap_or(user);
    let socket = options
        .get_socket()
        .map(|socket| socket.display().to_string());
    let host = match &socket {
        Some(socket) => Some(encoded(socket)),
        None => authority_host(options.get_host()),
    };
    let has_names = !user.is_empty() && !database.is_empty();
    let (user, database) = (encoded(user), encoded(database));
    if let Some(host) = host.filter(|_| has_names) {
        return format!("postgres://{user}@{host}:{port}/{database}?sslmode={sslmode}");
    }
    // Such a name has no place before the query.
    let host = encoded(socket.as_deref().unwrap_or(options.get_host()));
    format!("postgres:///?host={host}&port={port}&user={user}&dbname={database}&sslmode={sslmode}")
}

/// A host as it stands in a URL; `None` if it can only stand in the query, because sqlx decodes no
/// host.
fn authority_host(host: &str) -> Option<String> {
    if host.parse::<Ipv6Addr>().is_ok() {
        return Some(format!("[{host}]"));
    }
    (!host.is_empty() && encoded(host) == host).then(|| host.to_owned())
}

/// Encodes every character that may have a meaning in a URL (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_loses_its_brackets() {
        let host = |url: &str| parse(url).unwrap().get_host().to_owned();
        assert_eq!(host("postgres://u:hidden@[::1]:5433/d"), "::1");
        assert_eq!(host("postgres://u@[2001:db8::1]/d"), "2001:db8::1");
        assert_eq!(host("postgres:///d?host=::1"), "::1");
        let shown = shown(&parse("postgres://u:hidden@[::1]:5433/d").unwrap());
        assert_eq!(shown, "postgres://u@[::1]:5433/d?sslmode=prefer");
    }

    #[test]
    fn a_shown_url_gives_the_same_options_again() {
        let parts = |options: &PgConnectOptions| {
            (
                options.get_host().to_owned(),
                options.get_socket().cloned(),
                options.get_port(),
                options.get_username().to_owned(),
                options
                    .get_database()
                    .unwrap_or(options.get_username())
                    .to_owned(),
                shown(options),
            )
        };
        for url in [
            "postgres://u:hidden@h/d",
            "postgres://a%40b%2Fc%3Ad:hidden@h/d",
            "postgres://%C3%BC%20%25:hidden@h/d",
            "postgres://u:hidden@h/a%2Fb%3Fc%23d%20%25",
            "postgres://u:hidden@h/%2Fd?user=a+b",
            "postgres://u:hidden@%2Frun%2Fpost%20gres/d",
            "postgres:///d?host=/run/postgres&user=a%26b",
            "postgres:///d?host=fe80::1%25eth0",
            "postgres://u:hidden@h/d?host=a%20b",
            "postgres:///d?host=",
            "postgres://u:hidden@[::1]:5433/d?dbname=&user=",
        ] {
            let options = parse(url).unwrap();
            let shown = shown(&options);
            assert!(!shown.contains("hidden"), "{shown}");
            let again = parse(&shown).unwrap_or_else(|error| panic!("{url}: {shown}: {error}"));
            assert_eq!(parts(&again), parts(&options), "{url}: {shown}");
        }
        let encoded = shown(&parse("postgres://a%40b:hidden@h/c%2Fd").unwrap());
        assert_eq!(encoded, "postgres://a%40b@h:5432/c%2Fd?sslmode=prefer");
    }

    #[test]
    fn several_hosts_are_refused_with_a_reason() {
        for url in [
            "postgres://u:hidden@a,b/d",
            "postgres://u:hidden@a:5432,b:5432/d?target_session_attrs=read-write",
            "postgres:///d?host=a,b",
        ] {
            let refused = parse(url).unwrap_err();
            assert!(refused.starts_with("names several hosts"), "{refused}");
        }
        assert_eq!(parse("postgres://u:hid,den@h/d").unwrap().get_host(), "h");
    }
}

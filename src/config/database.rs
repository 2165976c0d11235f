//! `DATABASE_URL`: parsed by sqlx, except for the URLs that sqlx misunderstands.

use std::net::Ipv6Addr;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::environment::Environment;
use super::error::ConfigError;
use super::settings::DATABASE_URL;

impl Environment {
    /// Reads the settings of Postgres only.
    pub fn database(mut self) -> Result<PgConnectOptions, ConfigError> {
        let database = self.read_database();
        self.finish(database)
    }

    pub(super) fn read_database(&mut self) -> Option<PgConnectOptions> {
        self.secret(
            &DATABASE_URL,
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
        return Err("names several hosts: use one name that always leads to the primary".into());
    }
    without_brackets(PgConnectOptions::from_str(url).map_err(|_| expected())?)
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

/// The effective options without the password. Variables of libpq may have filled in some.
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
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None if options.get_host().contains(':') => format!("[{}]", options.get_host()),
        None => options.get_host().to_owned(),
    };
    let database = options.get_database().unwrap_or(user);
    format!("postgres://{user}@{host}:{port}/{database}?sslmode={sslmode}")
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
    fn several_hosts_are_refused_with_a_reason() {
        for url in [
            "postgres://u:hidden@a,b/d",
            "postgres://u:hidden@a:5432,b:5432/d?target_session_attrs=read-write",
        ] {
            let refused = parse(url).unwrap_err();
            assert!(refused.starts_with("names several hosts"), "{refused}");
        }
        assert_eq!(parse("postgres://u:hid,den@h/d").unwrap().get_host(), "h");
    }
}

//! Checks whether the connections that leave this machine are encrypted and verified.

use std::net::IpAddr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::Finding;

/// The encryption of `DATABASE_URL`.
pub(super) fn postgres(options: &PgConnectOptions) -> Finding {
    const CHECK: &str = "postgres.encryption";
    let host = options.get_host();
    if options.get_socket().is_some() || is_this_machine(host) {
        return Finding::ok(CHECK, "connections stay on this machine");
    }
    let verify = "Set sslmode=verify-full in DATABASE_URL, and sslrootcert if the CA is your own (docs/security.md)";
    match options.get_ssl_mode() {
        PgSslMode::VerifyFull => Finding::ok(CHECK, "sslmode=verify-full"),
        PgSslMode::VerifyCa => Finding::warning(
            CHECK,
            format!(
                "sslmode=verify-ca accepts every server with a certificate of its CA or of a public CA as {host}"
            ),
            verify,
        ),
        PgSslMode::Require => Finding::warning(
            CHECK,
            format!("sslmode=require encrypts, but accepts every server as {host}"),
            verify,
        ),
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => Finding::warning(
            CHECK,
            format!("connections to {host} may be unencrypted"),
            verify,
        ),
    }
}

/// The encryption of `AMQP_URL`.
pub(super) fn rabbitmq((host, is_encrypted): (&str, bool)) -> Finding {
    const CHECK: &str = "rabbitmq.encryption";
    match (is_encrypted, is_this_machine(host)) {
        (true, _) => Finding::ok(CHECK, "amqps verifies the certificate"),
        (false, true) => Finding::ok(CHECK, "connections stay on this machine"),
        (false, false) => Finding::warning(
            CHECK,
            format!("connections to {host} are unencrypted, with user and password"),
            "Begin AMQP_URL with amqps:// and use the port for TLS (docs/security.md)",
        ),
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn only_verified_connections_leave_this_machine_without_a_warning() {
        for (url, state) in [
            ("postgres://u@127.0.0.1/d", State::Ok),
            ("postgres://u@localhost/d?sslmode=disable", State::Ok),
            ("postgres:///d?host=/var/run/postgresql", State::Ok),
            ("postgres://u@db.example/d?sslmode=verify-full", State::Ok),
            (
                "postgres://u@db.example/d?sslmode=verify-ca",
                State::Warning,
            ),
            ("postgres://u@db.example/d?sslmode=require", State::Warning),
            ("postgres://u@db.example/d", State::Warning),
            ("postgres://u@10.0.0.1/d?sslmode=disable", State::Warning),
        ] {
            assert_eq!(postgres(&url.parse().unwrap()).state, state, "{url}");
        }
        assert_eq!(rabbitmq(("::1", false)).state, State::Ok);
        assert_eq!(rabbitmq(("mq.example", true)).state, State::Ok);
        assert_eq!(rabbitmq(("mq.example", false)).state, State::Warning);
    }
}

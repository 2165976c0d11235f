//! Checks sessions, connections and transactions of Postgres.

use super::Finding;
use crate::store::checkup::{Checkup, ConnectionLimit, Guard, Sessions};

pub(super) fn sessions(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.sessions";
    match checkup.sessions {
        Sessions::Own => Finding::ok(CHECK, "each connection has its own server process"),
        Sessions::Shared {
            prepared_statements: true,
        } => Finding::ok(
            CHECK,
            "a pooler assigns a server process to each transaction, and keeps prepared statements. `shopbell migrate` needs \
             the address of Postgres itself",
        ),
        Sessions::Shared {
            prepared_statements: false,
        } => Finding::error(
            CHECK,
            "a pooler in transaction mode loses prepared statements, so most statements fail",
            "Use session mode, or PgBouncer 1.21 or newer with max_prepared_statements = 200 (docs/pooling.md)",
        ),
    }
}

/// Checks the settings that stop a forgotten transaction or a slow statement from locking a feed
/// without end. A pooler may drop them.
pub(super) fn guards(checkup: &Checkup) -> Vec<Finding> {
    let is_shared = checkup.sessions != Sessions::Own;
    let judge = |guard: &Guard| {
        let check = format!("postgres.session.{}", guard.setting);
        let is_off = ["0", "0ms", "0s"].contains(&guard.found.as_str());
        let holds = match guard.wanted {
            "off" => guard.found == "off",
            // In a shared session our limit cannot be set, so any limit of the operator counts.
            _ if is_shared => !is_off,
            wanted => is_same_time(&guard.found, wanted),
        };
        match holds {
            true => Finding::ok(check, &guard.found),
            false => Finding::warning(
                check,
                format!(
                    "a session of the service has {} instead of {}, because a pooler dropped the setting",
                    guard.found, guard.wanted
                ),
                format!(
                    "Run: alter role {} set {} = '{}'",
                    checkup.user, guard.setting, guard.wanted
                ),
            ),
        }
    };
    checkup.guards.iter().map(judge).collect()
}

/// Compares two times with units, so that `10000ms` equals `10s`.
fn is_same_time(found: &str, wanted: &str) -> bool {
    let milliseconds = |text: &str| match text.strip_suffix("ms") {
        Some(number) => number.parse::<u64>().ok(),
        None => text
            .strip_suffix('s')?
            .parse::<u64>()
            .ok()
            .map(|seconds| seconds * 1_000),
    };
    milliseconds(found).is_some() && milliseconds(found) == milliseconds(wanted)
}

/// Checks the limit with the fewest free connections, or a limit that is too low for one replica.
pub(super) fn connections(limits: &[ConnectionLimit], needed: i64) -> Option<Finding> {
    const CHECK: &str = "postgres.connections";
    let free = |limit: &&ConnectionLimit| limit.max - limit.taken;
    let too_low = limits
        .iter()
        .filter(|limit| limit.max < needed)
        .min_by_key(|limit| limit.max);
    let limit = too_low.or_else(|| limits.iter().min_by_key(free))?;
    let ConnectionLimit {
        setting,
        max,
        taken,
    } = limit;
    let found = format!(
        "{taken} of {max} connections are used ({setting}), and a replica uses at most {needed}"
    );
    let remedy = format!("Raise {setting}, or run fewer replicas");
    Some(if too_low.is_some() {
        Finding::error(CHECK, found, remedy)
    } else if free(&limit) < needed {
        Finding::warning(
            CHECK,
            format!("{found}, so another replica does not fit, for example in a rolling update"),
            remedy,
        )
    } else {
        Finding::ok(
            CHECK,
            format!(
                "{found}, so {} more replicas fit",
                free(&limit) / needed.max(1)
            ),
        )
    })
}

pub(super) fn idle_in_transaction(timeout: &str) -> Finding {
    const CHECK: &str = "postgres.idle_in_transaction_session_timeout";
    match timeout {
        "0" => Finding::ok(
            CHECK,
            "off; Shopbell sets it for its own sessions, but other programs may leave a transaction open",
        ),
        _ => Finding::ok(CHECK, timeout),
    }
}

pub(super) fn transactions(checkup: &Checkup) -> Vec<Finding> {
    const CHECK: &str = "postgres.transactions";
    if checkup.old_transactions.is_empty() {
        return vec![Finding::ok(
            CHECK,
            "no visible transaction has been open for more than five minutes",
        )];
    }
    let old = checkup.old_transactions.iter().map(|transaction| {
        let found = format!(
            "{} has been open for {} s and delays vacuum",
            transaction.whose, transaction.seconds
        );
        Finding::warning(
            CHECK,
            found,
            "End it with `select pg_terminate_backend(PID)` or `rollback prepared 'NAME'`",
        )
    });
    old.collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::State::{self, Error, Warning};
    use super::super::tests::check;
    use super::*;
    use crate::store::checkup::OldTransaction;

    const STATEMENT_TIMEOUT: &str = "postgres.session.statement_timeout";

    fn guards_with(statement: &str, idle: &str, jit: &str) -> Vec<Guard> {
        let guard = |setting, wanted, found: &str| Guard {
            setting,
            wanted,
            found: found.into(),
        };
        vec![
            guard("statement_timeout", "10s", statement),
            guard("idle_in_transaction_session_timeout", "10s", idle),
            guard("jit", "off", jit),
        ]
    }

    #[test]
    fn a_session_without_its_settings_is_a_warning() {
        check(
            |checkup| checkup.guards = guards_with("10000ms", "10000ms", "off"),
            &[],
        );
        check(
            |checkup| checkup.guards = guards_with("0ms", "10000ms", "off"),
            &[(STATEMENT_TIMEOUT, Warning)],
        );
        check(
            |checkup| checkup.guards = guards_with("10000ms", "10000ms", "on"),
            &[("postgres.session.jit", Warning)],
        );
    }

    #[test]
    fn shared_sessions_may_have_settings_of_the_operator() {
        let shared = |prepared_statements, guards, expected: &[_]| {
            check(
                |checkup| {
                    let sessions = Sessions::Shared {
                        prepared_statements,
                    };
                    (checkup.sessions, checkup.guards) = (sessions, guards);
                },
                expected,
            );
        };
        shared(true, guards_with("30000ms", "60000ms", "off"), &[]);
        shared(
            true,
            guards_with("0ms", "60000ms", "off"),
            &[(STATEMENT_TIMEOUT, Warning)],
        );
        shared(
            false,
            guards_with("30000ms", "60000ms", "off"),
            &[("postgres.sessions", Error)],
        );
    }

    #[test]
    fn an_old_transaction_is_a_warning() {
        let old = OldTransaction {
            whose: "pid 7 (psql, idle in transaction)".into(),
            seconds: 301,
        };
        check(
            |checkup| checkup.old_transactions = vec![old],
            &[("postgres.transactions", Warning)],
        );
    }

    fn limit(setting: &str, max: i64, taken: i64) -> ConnectionLimit {
        ConnectionLimit {
            setting: setting.into(),
            max,
            taken,
        }
    }

    #[test]
    fn the_limit_with_the_fewest_free_connections_counts() {
        let result = |limits: &[ConnectionLimit]| {
            connections(limits, 13).map(|finding| (finding.state, finding.found))
        };
        let expect = |limits: &[ConnectionLimit], state, begins: &str| {
            let (found_state, found) = result(limits).unwrap_or((State::Ok, String::new()));
            assert!(
                found_state == state && found.starts_with(begins),
                "{found_state:?}: {found}"
            );
        };
        let server = limit("max_connections", 97, 80);
        expect(
            std::slice::from_ref(&server),
            State::Ok,
            "80 of 97 connections are used (max_connections)",
        );
        // Most of the 80 connections do not count for the role.
        expect(
            &[server.clone(), limit("role", 30, 13)],
            State::Ok,
            "80 of 97 connections are used (max_connections)",
        );
        expect(
            &[server.clone(), limit("role", 30, 14)],
            State::Ok,
            "14 of 30 connections are used (role)",
        );
        expect(
            &[server.clone(), limit("database", 30, 20)],
            Warning,
            "20 of 30 connections are used (database)",
        );
        // A limit below the need of one replica is an error.
        expect(
            &[limit("max_connections", 97, 97), limit("role", 12, 0)],
            Error,
            "0 of 12 connections are used (role)",
        );
    }
}

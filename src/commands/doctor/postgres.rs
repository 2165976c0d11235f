//! Checks the state of Postgres.

mod durability;
mod replication;
mod sessions;

use sqlx::postgres::PgConnectOptions;

use super::Finding;
use crate::commands::terminal;
use crate::store::checkup::Checkup;

/// The oldest version that the SQL supports. `shopbell migrate` fails on older ones.
const MAJOR_MIN: i32 = 15;
/// A larger difference distorts `time`, the lifetime of tokens and measured latencies.
const CLOCK_APART_SECONDS_MAX: f64 = 2.0;

/// The finding if Postgres cannot be read.
pub(super) fn unreachable(options: &PgConnectOptions, error: &anyhow::Error) -> Finding {
    let (host, port) = (options.get_host(), options.get_port());
    let found = format!("{host}:{port}: {}", terminal::chain(error));
    let remedy = "Check that it is running, and that host, user, password and database in DATABASE_URL are correct";
    Finding::error("postgres", found, remedy)
}

/// Returns a finding for each check. `needed` is the maximum number of connections of one replica.
pub(super) fn findings(checkup: &Checkup, needed: u32) -> Vec<Finding> {
    let mut findings = vec![
        version(checkup),
        encoding(&checkup.encoding),
        sessions::sessions(checkup),
        writable(checkup),
        schema(checkup),
        durability::on(
            "fsync",
            &checkup.fsync,
            "after a crash of the machine, the database may be unreadable",
        ),
        durability::on(
            "full_page_writes",
            &checkup.full_page_writes,
            "after a crash of the machine, pages may be half written",
        ),
        durability::synchronous_commit(&checkup.synchronous_commit),
        replication::standbys(checkup),
        clock(checkup.clock_ahead_seconds),
        retention(checkup.feeds_held_back),
        sessions::idle_in_transaction(&checkup.idle_in_transaction_timeout),
    ];
    findings.extend(sessions::guards(checkup));
    findings.extend(sessions::connections(
        &checkup.connection_limits,
        i64::from(needed),
    ));
    findings.extend(sessions::transactions(checkup));
    findings.extend(replication::slots(checkup));
    findings
}

fn version(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.version";
    match checkup.major >= MAJOR_MIN {
        true => Finding::ok(CHECK, &checkup.version),
        false => Finding::error(
            CHECK,
            &checkup.version,
            format!("Upgrade Postgres to {MAJOR_MIN} or newer"),
        ),
    }
}

fn encoding(encoding: &str) -> Finding {
    const CHECK: &str = "postgres.encoding";
    match encoding {
        "UTF8" => Finding::ok(CHECK, encoding),
        _ => Finding::error(
            CHECK,
            format!("the encoding of the database is {encoding}, which cannot store every name"),
            "Create a database with `create database ... encoding 'UTF8' template template0`, and move the data there",
        ),
    }
}

fn writable(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.writable";
    match (checkup.in_recovery, checkup.read_only) {
        (true, _) => Finding::error(
            CHECK,
            "this server is a standby",
            "Set DATABASE_URL to the primary",
        ),
        (_, true) => Finding::error(
            CHECK,
            "transactions are read-only",
            "Set default_transaction_read_only = off for this server, database and user",
        ),
        _ => Finding::ok(CHECK, "it accepts writes"),
    }
}

fn schema(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.schema";
    let list = |versions: &[i64]| {
        versions
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (missing, newer) = (&checkup.missing_migrations, &checkup.newer_migrations);
    if !missing.is_empty() {
        return Finding::error(
            CHECK,
            format!("missing migrations: {}", list(missing)),
            "Run `shopbell migrate`",
        );
    }
    match newer.is_empty() {
        true => Finding::ok(CHECK, "all migrations have run"),
        false => Finding::ok(
            CHECK,
            format!(
                "all migrations have run, and newer ones ({}), which this version supports",
                list(newer)
            ),
        ),
    }
}

/// Devices that do not return are normal, so this is never a fault.
fn retention(feeds_held_back: i64) -> Finding {
    let text = match feeds_held_back {
        0 => "no old notification must stay longer than configured".to_owned(),
        feeds => format!(
            "{feeds} feeds have an old notification that must stay, because a device has not acked it or may still receive it (see docs/retention.md)"
        ),
    };
    Finding::ok("postgres.retention", text)
}

fn clock(ahead_seconds: f64) -> Finding {
    const CHECK: &str = "postgres.clock";
    if ahead_seconds.abs() <= CLOCK_APART_SECONDS_MAX {
        return Finding::ok(
            CHECK,
            format!(
                "{:.1} s from the clock of this machine",
                ahead_seconds.abs()
            ),
        );
    }
    let direction = if ahead_seconds > 0.0 {
        "ahead of"
    } else {
        "behind"
    };
    Finding::warning(
        CHECK,
        format!(
            "{:.1} s {direction} the clock of this machine",
            ahead_seconds.abs()
        ),
        "Synchronise both clocks with NTP, because expiry and measured latencies are wrong by this difference",
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::store::checkup::{ConnectionLimit, Receivers, Sessions};

    fn healthy() -> Checkup {
        Checkup {
            version: "15.18".into(),
            major: 15,
            user: "shopbell".into(),
            encoding: "UTF8".into(),
            sessions: Sessions::Own,
            guards: Vec::new(),
            in_recovery: false,
            read_only: false,
            fsync: "on".into(),
            full_page_writes: "on".into(),
            synchronous_commit: "on".into(),
            synchronous_standbys: String::new(),
            receivers: Receivers::default(),
            idle_in_transaction_timeout: "0".into(),
            clock_ahead_seconds: -0.2,
            connection_limits: vec![ConnectionLimit {
                setting: "max_connections".into(),
                max: 97,
                taken: 14,
            }],
            old_transactions: Vec::new(),
            idle_slots: Vec::new(),
            feeds_held_back: 2,
            missing_migrations: Vec::new(),
            newer_migrations: Vec::new(),
        }
    }

    /// Changes a healthy server, and expects exactly these bad findings.
    #[track_caller]
    pub(super) fn check(change: impl FnOnce(&mut Checkup), expected: &[(&str, State)]) {
        let mut checkup = healthy();
        change(&mut checkup);
        let findings = findings(&checkup, 13);
        let bad = findings.iter().filter(|finding| finding.state != State::Ok);
        let bad: Vec<_> = bad
            .map(|finding| (finding.check.as_str(), finding.state))
            .collect();
        assert_eq!(bad, expected, "{findings:?}");
    }

    #[test]
    fn a_healthy_server_has_no_bad_finding() {
        check(|_| {}, &[]);
        check(|checkup| checkup.newer_migrations = vec![9], &[]);
    }

    #[test]
    fn each_fault_of_the_server_is_one_finding() {
        use State::{Error, Warning};
        check(|checkup| checkup.major = 14, &[("postgres.version", Error)]);
        check(
            |checkup| checkup.in_recovery = true,
            &[("postgres.writable", Error)],
        );
        check(
            |checkup| checkup.read_only = true,
            &[("postgres.writable", Error)],
        );
        check(
            |checkup| checkup.encoding = "LATIN1".into(),
            &[("postgres.encoding", Error)],
        );
        check(
            |checkup| checkup.missing_migrations = vec![1, 2],
            &[("postgres.schema", Error)],
        );
        check(
            |checkup| checkup.clock_ahead_seconds = -2.5,
            &[("postgres.clock", Warning)],
        );
    }
}

//! What Postgres' answers mean.

use super::Finding;
use crate::commands::terminal;
use crate::store::checkup::{Checkup, ConnectionLimit, Guard, Kept, Receivers, Sessions};

/// What the SQL needs (`shopbell migrate` would fail on an older one).
const MAJOR_MIN: i32 = 15;
/// Clocks further apart than this make `time`, tokens and latencies hard to believe.
const CLOCK_APART_SECONDS_MAX: f64 = 2.0;

/// It could not be asked.
pub(super) fn away(error: &anyhow::Error) -> Finding {
    let remedy = "Is it running, and are host, user, password and database in DATABASE_URL right?";
    Finding::error("postgres", terminal::chain(error), remedy)
}

/// Judges what it answered, for replicas that take up to `needed` connections each.
pub(super) fn findings(checkup: &Checkup, needed: u32) -> Vec<Finding> {
    let mut findings = vec![
        version(checkup),
        encoding(&checkup.encoding),
        sessions(checkup),
        writable(checkup),
        schema(checkup),
        on(
            "fsync",
            &checkup.fsync,
            "a crash of the machine may leave a database that cannot be read",
        ),
        on(
            "full_page_writes",
            &checkup.full_page_writes,
            "a crash of the machine may leave pages that are half written",
        ),
        synchronous_commit(&checkup.synchronous_commit),
        standbys(checkup),
        clock(checkup.clock_ahead_seconds),
        idle_in_transaction(&checkup.idle_in_transaction_timeout),
    ];
    findings.extend(guards(checkup));
    findings.extend(connections(&checkup.connection_limits, i64::from(needed)));
    findings.extend(transactions(checkup));
    findings.extend(slots(checkup));
    findings
}

fn version(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.version";
    match checkup.major >= MAJOR_MIN {
        true => Finding::ok(CHECK, &checkup.version),
        false => Finding::error(
            CHECK,
            &checkup.version,
            format!("Upgrade it: {MAJOR_MIN} is the least"),
        ),
    }
}

fn encoding(encoding: &str) -> Finding {
    const CHECK: &str = "postgres.encoding";
    match encoding {
        "UTF8" => Finding::ok(CHECK, encoding),
        _ => Finding::error(
            CHECK,
            format!("the encoding of the database is {encoding}: it refuses or damages some names"),
            "Create one with `create database ... encoding 'UTF8' template template0`, and move the data there",
        ),
    }
}

fn sessions(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.sessions";
    match checkup.sessions {
        Sessions::Own => Finding::ok(CHECK, "each connection has a server process of its own"),
        Sessions::Shared {
            prepared_statements: true,
        } => Finding::ok(
            CHECK,
            "a pooler gives each transaction another server process, and keeps prepared statements; `shopbell migrate` needs \
             the address of Postgres itself",
        ),
        Sessions::Shared {
            prepared_statements: false,
        } => Finding::error(
            CHECK,
            "a pooler in transaction mode loses prepared statements: most statements fail",
            "Use session mode, or PgBouncer 1.21 or newer with max_prepared_statements = 200 (docs/pooling.md)",
        ),
    }
}

/// A guard that a pooler dropped is reported: without it a forgotten transaction or a slow statement holds a feed for ever.
fn guards(checkup: &Checkup) -> Vec<Finding> {
    let is_shared = checkup.sessions != Sessions::Own;
    let judge = |guard: &Guard| {
        let check = format!("postgres.session.{}", guard.setting);
        let is_off = ["0", "0ms", "0s"].contains(&guard.found.as_str());
        let holds = match guard.wanted {
            "off" => guard.found == "off",
            // Any limit of the operator will do where ours cannot be set.
            _ if is_shared => !is_off,
            wanted => is_same_time(&guard.found, wanted),
        };
        match holds {
            true => Finding::ok(check, &guard.found),
            false => Finding::warning(
                check,
                format!(
                    "a session of the service has {}, not {}: a pooler dropped it",
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

/// Whether `10000ms` is `10s`.
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

fn writable(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.writable";
    match (checkup.in_recovery, checkup.read_only) {
        (true, _) => Finding::error(
            CHECK,
            "this server is a standby",
            "Let DATABASE_URL name the primary",
        ),
        (_, true) => Finding::error(
            CHECK,
            "transactions are read-only",
            "Turn default_transaction_read_only off for this server, database and user",
        ),
        _ => Finding::ok(CHECK, "it takes writes"),
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
        true => Finding::ok(CHECK, "every migration is in place"),
        false => Finding::ok(
            CHECK,
            format!(
                "every migration is in place, and newer ones ({}): this version works on them",
                list(newer)
            ),
        ),
    }
}

fn on(setting: &str, value: &str, danger: &str) -> Finding {
    let check = format!("postgres.{setting}");
    match value {
        "on" => Finding::ok(check, "on"),
        _ => Finding::error(
            check,
            format!("{value}: {danger}"),
            format!("Set {setting} = on"),
        ),
    }
}

fn synchronous_commit(value: &str) -> Finding {
    const CHECK: &str = "postgres.synchronous_commit";
    match value {
        "off" => Finding::error(
            CHECK,
            "off: RabbitMQ is told that an order is stored before it is on disk, and a crash loses it",
            "Set it to on, for the server, the database and the user (acks do without by themselves)",
        ),
        "local" => Finding::warning(
            CHECK,
            "local: commits wait for this server's disk, but for no standby",
            "Set it to on where a standby is to take over",
        ),
        _ => Finding::ok(CHECK, value),
    }
}

fn standbys(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.standbys";
    let names = checkup.synchronous_standbys.as_str();
    let Receivers {
        standbys,
        synchronous,
        unseen,
    } = checkup.receivers;
    match names.is_empty() {
        // What cannot be seen must raise no alarm.
        _ if unseen > 0 => Finding::ok(
            CHECK,
            format!(
                "{unseen} receive the log, synchronous_standby_names is {names:?}; this user may see no more (grant it \
                 pg_read_all_stats)"
            ),
        ),
        true if standbys == 0 => Finding::ok(
            CHECK,
            "none: what is stored is as safe as this server's disk and your backups",
        ),
        true => Finding::warning(
            CHECK,
            format!(
                "{standbys} connected, but synchronous_standby_names is empty: a failover loses the last orders"
            ),
            "Name them in synchronous_standby_names; until then publish again after a failover (docs/backup.md)",
        ),
        false if synchronous == 0 => Finding::error(
            CHECK,
            format!(
                "synchronous_standby_names is {names:?}, but none of them is connected: every commit waits"
            ),
            "Bring a standby back, or take it out of synchronous_standby_names",
        ),
        false => Finding::ok(
            CHECK,
            format!("synchronous: {names}; {synchronous} connected"),
        ),
    }
}

fn clock(ahead_seconds: f64) -> Finding {
    const CHECK: &str = "postgres.clock";
    if ahead_seconds.abs() <= CLOCK_APART_SECONDS_MAX {
        return Finding::ok(
            CHECK,
            format!("{:.1} s from this machine's", ahead_seconds.abs()),
        );
    }
    let which = if ahead_seconds > 0.0 {
        "ahead of"
    } else {
        "behind"
    };
    Finding::warning(
        CHECK,
        format!("{:.1} s {which} this machine's", ahead_seconds.abs()),
        "Let NTP set both: expiry and measured latencies are off by as much",
    )
}

/// Of several limits that one counts which leaves the least room.
fn connections(limits: &[ConnectionLimit], needed: i64) -> Option<Finding> {
    const CHECK: &str = "postgres.connections";
    let room = |limit: &&ConnectionLimit| limit.max - limit.taken;
    let too_low = limits
        .iter()
        .filter(|limit| limit.max < needed)
        .min_by_key(|limit| limit.max);
    let limit = too_low.or_else(|| limits.iter().min_by_key(room))?;
    let ConnectionLimit {
        setting,
        max,
        taken,
    } = limit;
    let found = format!("{taken} of {max} are taken ({setting}); a replica takes up to {needed}");
    let remedy = format!("Raise {setting}, or run fewer replicas");
    Some(if too_low.is_some() {
        Finding::error(CHECK, found, remedy)
    } else if room(&limit) < needed {
        Finding::warning(
            CHECK,
            format!("{found}: there is no room for one more, as a rolling update needs"),
            remedy,
        )
    } else {
        Finding::ok(
            CHECK,
            format!(
                "{found}: there is room for {} more",
                room(&limit) / needed.max(1)
            ),
        )
    })
}

fn idle_in_transaction(timeout: &str) -> Finding {
    const CHECK: &str = "postgres.idle_in_transaction_session_timeout";
    match timeout {
        "0" => Finding::ok(
            CHECK,
            "off; Shopbell sets one for its own sessions, others may forget a transaction",
        ),
        _ => Finding::ok(CHECK, timeout),
    }
}

fn transactions(checkup: &Checkup) -> Vec<Finding> {
    const CHECK: &str = "postgres.transactions";
    if checkup.old_transactions.is_empty() {
        return vec![Finding::ok(
            CHECK,
            "none that we may see has been open for more than five minutes",
        )];
    }
    let old = checkup.old_transactions.iter().map(|transaction| {
        let found = format!(
            "{} has been open for {} s: vacuum is held back",
            transaction.whose, transaction.seconds
        );
        Finding::warning(
            CHECK,
            found,
            "End it: select pg_terminate_backend(PID), or rollback prepared 'NAME'",
        )
    });
    old.collect()
}

fn slots(checkup: &Checkup) -> Vec<Finding> {
    const CHECK: &str = "postgres.replication_slots";
    if checkup.idle_slots.is_empty() {
        return vec![Finding::ok(CHECK, "none is idle")];
    }
    let idle = checkup.idle_slots.iter().map(|slot| match slot.keeps {
        Kept::Bytes(bytes) => Finding::warning(
            CHECK,
            format!("nobody reads {}, and {} MiB of the log are kept for it", slot.name, bytes >> 20),
            "Bring its reader back, or drop it (pg_drop_replication_slot): the disk fills up",
        ),
        Kept::Lost => Finding::warning(
            CHECK,
            format!("{} is lost: nobody read it for so long that its log is gone, and none is kept for it", slot.name),
            "Drop it (pg_drop_replication_slot), and build its reader anew",
        ),
        Kept::Nothing => Finding::ok(CHECK, format!("{} keeps nothing: nobody has read it yet", slot.name)),
    });
    idle.collect()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::store::checkup::{IdleSlot, OldTransaction};

    fn limit(setting: &str, max: i64, taken: i64) -> ConnectionLimit {
        ConnectionLimit {
            setting: setting.into(),
            max,
            taken,
        }
    }

    const STATEMENT_TIMEOUT: &str = "postgres.session.statement_timeout";

    fn guards(statement: &str, idle: &str, jit: &str) -> Vec<Guard> {
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

    fn healthy() -> Checkup {
        Checkup {
            version: "15.18".into(),
            major: 15,
            user: "shopbell".into(),
            encoding: "UTF8".into(),
            sessions: Sessions::Own,
            guards: guards("10000ms", "10000ms", "off"),
            in_recovery: false,
            read_only: false,
            fsync: "on".into(),
            full_page_writes: "on".into(),
            synchronous_commit: "on".into(),
            synchronous_standbys: String::new(),
            receivers: Receivers::default(),
            idle_in_transaction_timeout: "0".into(),
            clock_ahead_seconds: -0.2,
            connection_limits: vec![limit("max_connections", 97, 14)],
            old_transactions: Vec::new(),
            idle_slots: Vec::new(),
            missing_migrations: Vec::new(),
            newer_migrations: Vec::new(),
        }
    }

    /// The one check that is not ok with this change, and how bad it is.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Checkup), expected: &[(&str, State)]) {
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
    fn each_thing_that_is_wrong_is_found_and_nothing_else() {
        use State::{Error, Warning};
        check(|_| {}, &[]);
        check(|checkup| checkup.newer_migrations = vec![9], &[]);
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
            |checkup| checkup.guards = guards("0ms", "10000ms", "off"),
            &[(STATEMENT_TIMEOUT, Warning)],
        );
        check(
            |checkup| checkup.guards = guards("10000ms", "10000ms", "on"),
            &[("postgres.session.jit", Warning)],
        );
        let shared = |prepared_statements, guards, expected: &[_]| {
            check(
                |checkup| {
                    (checkup.sessions, checkup.guards) = (
                        Sessions::Shared {
                            prepared_statements,
                        },
                        guards,
                    )
                },
                expected,
            );
        };
        shared(true, guards("30000ms", "60000ms", "off"), &[]);
        shared(
            true,
            guards("0ms", "60000ms", "off"),
            &[(STATEMENT_TIMEOUT, Warning)],
        );
        shared(
            false,
            guards("30000ms", "60000ms", "off"),
            &[("postgres.sessions", Error)],
        );
        check(
            |checkup| checkup.missing_migrations = vec![1, 2],
            &[("postgres.schema", Error)],
        );
        check(
            |checkup| checkup.fsync = "off".into(),
            &[("postgres.fsync", Error)],
        );
        check(
            |checkup| checkup.full_page_writes = "off".into(),
            &[("postgres.full_page_writes", Error)],
        );
        check(
            |checkup| checkup.synchronous_commit = "off".into(),
            &[("postgres.synchronous_commit", Error)],
        );
        check(
            |checkup| checkup.synchronous_commit = "local".into(),
            &[("postgres.synchronous_commit", Warning)],
        );
        let receivers = |standbys, synchronous, unseen| Receivers {
            standbys,
            synchronous,
            unseen,
        };
        check(
            |checkup| checkup.receivers = receivers(1, 0, 0),
            &[("postgres.standbys", Warning)],
        );
        check(|checkup| checkup.receivers = receivers(0, 0, 1), &[]);
        let named = |receivers, expected: &[_]| {
            let change = |checkup: &mut Checkup| {
                (checkup.synchronous_standbys, checkup.receivers) = ("standby_1".into(), receivers);
            };
            check(change, expected);
        };
        named(receivers(0, 0, 0), &[("postgres.standbys", Error)]);
        // Another standby is there, but nobody waits for that one.
        named(receivers(1, 0, 0), &[("postgres.standbys", Error)]);
        named(receivers(1, 1, 0), &[]);
        named(receivers(0, 0, 1), &[]);
        check(
            |checkup| checkup.clock_ahead_seconds = -2.5,
            &[("postgres.clock", Warning)],
        );
        let old = OldTransaction {
            whose: "pid 7 (psql, idle in transaction)".into(),
            seconds: 301,
        };
        check(
            |checkup| checkup.old_transactions = vec![old],
            &[("postgres.transactions", Warning)],
        );
        let slot = |keeps| {
            vec![IdleSlot {
                name: "standby_2".into(),
                keeps,
            }]
        };
        check(
            |checkup| checkup.idle_slots = slot(Kept::Bytes(1 << 30)),
            &[("postgres.replication_slots", Warning)],
        );
        check(
            |checkup| checkup.idle_slots = slot(Kept::Lost),
            &[("postgres.replication_slots", Warning)],
        );
        check(|checkup| checkup.idle_slots = slot(Kept::Nothing), &[]);
    }

    #[test]
    fn the_limit_with_the_least_room_counts() {
        let judge = |limits: &[ConnectionLimit]| {
            connections(limits, 13).map(|finding| (finding.state, finding.found))
        };
        let told = |limits: &[ConnectionLimit], state, begins: &str| {
            let (found_state, found) = judge(limits).unwrap_or((State::Ok, String::new()));
            assert!(
                found_state == state && found.starts_with(begins),
                "{found_state:?}: {found}"
            );
        };
        let server = limit("max_connections", 97, 80);
        told(
            std::slice::from_ref(&server),
            State::Ok,
            "80 of 97 are taken (max_connections)",
        );
        // Most of the 80 are others', and no reason to worry here.
        told(
            &[server.clone(), limit("role", 30, 13)],
            State::Ok,
            "80 of 97 are taken (max_connections)",
        );
        told(
            &[server.clone(), limit("role", 30, 14)],
            State::Ok,
            "14 of 30 are taken (role)",
        );
        told(
            &[server.clone(), limit("database", 30, 20)],
            State::Warning,
            "20 of 30 are taken (database)",
        );
        // It can never run, whatever the others leave.
        told(
            &[limit("max_connections", 97, 97), limit("role", 12, 0)],
            State::Error,
            "0 of 12 are taken (role)",
        );
    }
}

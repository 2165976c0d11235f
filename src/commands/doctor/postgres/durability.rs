//! Checks if commits of Postgres survive a crash of its machine.

use super::Finding;

/// Checks that a setting is on.
pub(super) fn on(setting: &str, value: &str, danger: &str) -> Finding {
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

pub(super) fn synchronous_commit(value: &str) -> Finding {
    const CHECK: &str = "postgres.synchronous_commit";
    match value {
        "off" => Finding::error(
            CHECK,
            "off: Shopbell acknowledges an order before it is on disk, so a crash loses it",
            "Set synchronous_commit = on for the server, the database and the user (Shopbell turns it off for acks only)",
        ),
        "local" => Finding::warning(
            CHECK,
            "local: commits wait for the disk of this server, but for no standby",
            "Set synchronous_commit = on if a standby must take over without loss",
        ),
        _ => Finding::ok(CHECK, value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::State::{Error, Warning};
    use super::super::tests::check;

    #[test]
    fn settings_that_lose_commits_are_errors() {
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
    }
}

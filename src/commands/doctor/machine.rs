//! What this machine allows a gateway.

use super::super::serve::{BACKLOG, CONNECTIONS_MAX, OPERATIONS_CONNECTIONS_MAX};
use super::Finding;
use crate::gateway::websocket::REFUSALS_MAX;

/// Files beside the clients' connections: to Postgres and RabbitMQ, the log, the runtime's own.
const FILES_BESIDE: usize = 256;

/// Looks at the limits that a process begins with here. Where they cannot be told, there is nothing to say.
pub(super) fn look(sessions_max: usize) -> Vec<Finding> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let backlog = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    let files = open_files_max(&limits).map(|max| open_files(max, sessions_max));
    let backlog = backlog.trim().parse().ok().map(listen_backlog);
    files.into_iter().chain(backlog).collect()
}

/// The hard limit: `serve` takes all that it may.
fn open_files_max(limits: &str) -> Option<usize> {
    let row = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match row.split_whitespace().nth(1)? {
        "unlimited" => Some(usize::MAX),
        number => number.parse().ok(),
    }
}

fn open_files(max: usize, sessions_max: usize) -> Finding {
    const CHECK: &str = "machine.open_files";
    let needed =
        sessions_max + CONNECTIONS_MAX + REFUSALS_MAX + OPERATIONS_CONNECTIONS_MAX + FILES_BESIDE;
    if max >= needed {
        return Finding::ok(
            CHECK,
            format!("a process started from here may open {max}, and may need {needed}"),
        );
    }
    Finding::warning(
        CHECK,
        format!(
            "a process started from here may open {max}, but SHOPBELL_MAX_SESSIONS={sessions_max} needs {needed}"
        ),
        "Raise the limit (LimitNOFILE, ulimit -n), or lower SHOPBELL_MAX_SESSIONS: beyond it clients are not accepted",
    )
}

fn listen_backlog(somaxconn: u32) -> Finding {
    const CHECK: &str = "machine.listen_backlog";
    if somaxconn >= BACKLOG {
        return Finding::ok(CHECK, format!("net.core.somaxconn is {somaxconn}"));
    }
    Finding::warning(
        CHECK,
        format!("net.core.somaxconn is {somaxconn}, less than the {BACKLOG} that serve asks for"),
        "Raise it: when all clients come back at once, those that find no place try again only after a second",
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn the_limit_that_counts_is_the_hard_one() {
        let row = |hard: &str| {
            format!(
                "Limit    Soft Limit  Hard Limit  Units\nMax open files    256    {hard}    files\n"
            )
        };
        assert_eq!(open_files_max(&row("1024")), Some(1_024));
        assert_eq!(open_files_max(&row("unlimited")), Some(usize::MAX));
        assert_eq!(open_files_max(""), None);
    }

    #[test]
    fn a_limit_must_have_room_for_all_sessions() {
        assert_eq!(open_files(1_024, 50_000).state, State::Warning);
        assert_eq!(open_files(1_048_576, 50_000).state, State::Ok);
        assert_eq!(
            (listen_backlog(128).state, listen_backlog(4_096).state),
            (State::Warning, State::Ok)
        );
    }
}

//! Checks the limits of this machine for a gateway.

use super::super::serve::{BACKLOG, CONNECTIONS_MAX, OPERATIONS_CONNECTIONS_MAX};
use super::Finding;
use crate::gateway::websocket::REFUSALS_MAX;

/// Open files other than client connections: those to Postgres and RabbitMQ, the log, and the
/// runtime.
const OTHER_FILES_MAX: usize = 256;

/// Tracked connections of a session: the kernel tracks one that has ended for two minutes more.
const TRACKED_TIMES: usize = 2;

/// Checks the limits of a process that starts from this shell. If the system does not have them,
/// returns nothing.
pub(super) fn findings(sessions_max: usize) -> Vec<Finding> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let tracked = kernel("net/netfilter/nf_conntrack_max");
    let (cookies, half_open) = (
        kernel("net/ipv4/tcp_syncookies"),
        kernel("net/ipv4/tcp_max_syn_backlog"),
    );
    [
        open_files_max(&limits).map(|max| open_files(max, sessions_max)),
        kernel("net/core/somaxconn").map(listen_backlog),
        cookies
            .zip(half_open)
            .map(|(cookies, max)| half_open_connections(cookies > 0, max)),
        // Without a firewall or address translation, the kernel tracks no connections.
        tracked.map(|max| tracked_connections(max, sessions_max)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Reads a setting of the kernel that is one number.
fn kernel(name: &str) -> Option<usize> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.trim().parse().ok()
}

/// Reads the hard limit, because `serve` raises its limit to that.
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
    let needed = sessions_max
        + CONNECTIONS_MAX
        + REFUSALS_MAX
        + OPERATIONS_CONNECTIONS_MAX
        + OTHER_FILES_MAX;
    if max >= needed {
        return Finding::ok(
            CHECK,
            format!("a process that starts here may open {max} files and needs at most {needed}"),
        );
    }
    Finding::warning(
        CHECK,
        format!(
            "a process that starts here may open {max} files, but SHOPBELL_MAX_SESSIONS={sessions_max} needs {needed}"
        ),
        "Raise the limit (LimitNOFILE, ulimit -n), or lower SHOPBELL_MAX_SESSIONS, because beyond the limit no client can connect",
    )
}

fn listen_backlog(somaxconn: usize) -> Finding {
    const CHECK: &str = "machine.listen_backlog";
    if somaxconn >= BACKLOG as usize {
        return Finding::ok(CHECK, format!("net.core.somaxconn is {somaxconn}"));
    }
    Finding::warning(
        CHECK,
        format!("net.core.somaxconn is {somaxconn}, but `serve` requests a backlog of {BACKLOG}"),
        "Raise it. If all clients reconnect at once, those beyond the backlog wait at least a second",
    )
}

/// If cookies are on, the kernel keeps nothing for a connection that is half open.
fn half_open_connections(has_cookies: bool, max: usize) -> Finding {
    const CHECK: &str = "machine.half_open_connections";
    if has_cookies {
        return Finding::ok(CHECK, "net.ipv4.tcp_syncookies is on");
    }
    let found = format!("net.ipv4.tcp_syncookies is off and tcp_max_syn_backlog is {max}");
    if max >= BACKLOG as usize {
        return Finding::ok(CHECK, found);
    }
    Finding::warning(
        CHECK,
        found,
        format!(
            "Turn tcp_syncookies on, or raise tcp_max_syn_backlog to {BACKLOG}. If all clients reconnect at once, those beyond it wait at least a second"
        ),
    )
}

fn tracked_connections(max: usize, sessions_max: usize) -> Finding {
    const CHECK: &str = "machine.tracked_connections";
    let needed = TRACKED_TIMES * (sessions_max + CONNECTIONS_MAX);
    if max >= needed {
        return Finding::ok(
            CHECK,
            format!("net.netfilter.nf_conntrack_max is {max}, and {needed} are enough"),
        );
    }
    Finding::warning(
        CHECK,
        format!(
            "net.netfilter.nf_conntrack_max is {max}, but SHOPBELL_MAX_SESSIONS={sessions_max} may need {needed}"
        ),
        "Raise it, or lower SHOPBELL_MAX_SESSIONS, because the kernel drops the packets of connections that it cannot track",
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn the_hard_limit_is_read() {
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
    fn a_limit_below_the_need_of_all_sessions_is_a_warning() {
        assert_eq!(open_files(1_024, 50_000).state, State::Warning);
        assert_eq!(open_files(1_048_576, 50_000).state, State::Ok);
        assert_eq!(
            (listen_backlog(128).state, listen_backlog(4_096).state),
            (State::Warning, State::Ok)
        );
    }

    #[test]
    fn limits_below_a_reconnect_of_all_sessions_are_warnings() {
        assert_eq!(tracked_connections(65_536, 50_000).state, State::Warning);
        assert_eq!(tracked_connections(262_144, 50_000).state, State::Ok);
        assert_eq!(half_open_connections(true, 128).state, State::Ok);
        assert_eq!(half_open_connections(false, 128).state, State::Warning);
        assert_eq!(half_open_connections(false, 4_096).state, State::Ok);
    }
}

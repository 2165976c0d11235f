//! Evidence that a fault broke something.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The state of an established connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// The present connections to a port of this machine: the ports of their clients.
pub fn connections(address: SocketAddr) -> BTreeSet<u16> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc can be read");
    let port = |end: &str| u16::from_str_radix(end.rsplit(':').next()?, 16).ok();
    let client = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let is_one = state == ESTABLISHED && port(local) == Some(address.port());
        is_one.then(|| port(remote))?
    };
    table.lines().filter_map(client).collect()
}

/// The number of these connections that are closed now.
pub fn gone(before: &BTreeSet<u16>, address: SocketAddr) -> u64 {
    count(&(before - &connections(address)))
}

pub fn count(connections: &BTreeSet<u16>) -> u64 {
    u64::try_from(connections.len()).expect("a port has 16 bits")
}

/// Whether a process has not ended.
pub fn is_running(process: u32) -> bool {
    state(process).is_some_and(|state| state != 'Z')
}

/// Whether SIGSTOP has stopped a process.
pub fn is_paused(process: u32) -> bool {
    state(process) == Some('T')
}

fn state(process: u32) -> Option<char> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))?;
    line.trim().chars().next()
}

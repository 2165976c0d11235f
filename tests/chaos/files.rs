//! The limit of open files of this process and its children.

use std::process::Command;

/// Raises the limit to at least `least`, up to the system's maximum.
pub fn allow(least: u64) {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("/proc has this process");
    let soft = limits.lines().find_map(|line| {
        line.strip_prefix("Max open files")?
            .split_whitespace()
            .next()
    });
    // "unlimited" is no number, and is enough.
    if soft
        .and_then(|soft| soft.parse().ok())
        .is_none_or(|soft: u64| soft >= least)
    {
        return;
    }
    // The standard library has no function for it, and unsafe code is forbidden.
    let mut prlimit = Command::new("prlimit");
    prlimit.args([
        format!("--pid={}", std::process::id()),
        format!("--nofile={least}:"),
    ]);
    let output = prlimit.output().expect("prlimit runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "this story has {least} files open; allow it that (ulimit -Hn): {errors}"
    );
}

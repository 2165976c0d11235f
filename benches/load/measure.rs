//! The cost of processes as the kernel counts it: CPU time, with that of their children, and
//! memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, anyhow};

/// Linux reports CPU time in hundredths of a second, independent of the kernel's own tick (proc(5),
/// `_SC_CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes of the server side with their names. Several may have the same name.
#[derive(Debug, Clone, Default)]
pub struct Processes(Vec<(&'static str, u32)>);

/// CPU-seconds used since a process began, by name.
#[derive(Debug, Clone, Default)]
pub struct Cpu(BTreeMap<&'static str, f64>);

impl Processes {
    /// Adds one, by its process id.
    pub fn with(mut self, name: &'static str, pid: u32) -> Self {
        self.0.push((name, pid));
        self
    }

    /// The CPU time of each until now, with the children it has and had.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let running = running()?;
        let mut cpu = BTreeMap::new();
        for (name, pid) in &self.0 {
            *cpu.entry(*name).or_default() += ticks(*pid, &running, true) / TICKS_PER_SECOND;
        }
        Ok(Cpu(cpu))
    }
}

impl Cpu {
    /// The CPU time since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let used =
            |(name, now): (&&'static str, &f64)| (*name, now - earlier.0.get(name).unwrap_or(&0.0));
        Self(self.0.iter().map(used).collect())
    }

    pub fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    pub fn each(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.0.iter().map(|(name, seconds)| (*name, *seconds))
    }

    pub fn sum(&self) -> f64 {
        self.0.values().sum()
    }
}

/// CPU-seconds of this process.
pub fn own_cpu_seconds() -> anyhow::Result<f64> {
    Ok(ticks(std::process::id(), &running()?, false) / TICKS_PER_SECOND)
}

/// The median time of a small write that is flushed to the disk of a directory. Each commit and each confirm waits for
/// one.
pub fn fdatasync_ms(directory: &Path) -> anyhow::Result<f64> {
    const WRITES: usize = 201;
    let mut file = tempfile(directory)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begun = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[WRITES / 2].as_secs_f64() * 1e3)
}

/// A file without a name.
fn tempfile(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("fdatasync");
    let file = File::create(&path).context("could not make a file for fdatasync")?;
    fs::remove_file(path)?;
    Ok(file)
}

/// Memory of a process in use now, in bytes.
pub fn rss_bytes(pid: u32) -> anyhow::Result<f64> {
    status_bytes(pid, "VmRSS:")
}

/// The share of a process in the memory that it maps (proc(5), `smaps_rollup`), in bytes.
pub fn pss_bytes(pid: u32) -> anyhow::Result<f64> {
    field_bytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Memory of the kernel in slabs and in buffers of TCP, in bytes.
pub fn kernel_bytes() -> anyhow::Result<f64> {
    const PAGE_BYTES: f64 = 4096.0;
    let sockets = fs::read_to_string("/proc/net/sockstat").context("no figures of sockets")?;
    let pages = sockets
        .lines()
        .find_map(|line| line.strip_prefix("TCP:")?.split(" mem ").nth(1));
    let pages: f64 = pages.context("no memory of TCP")?.trim().parse()?;
    Ok(field_bytes("/proc/meminfo", "Slab:")? + pages * PAGE_BYTES)
}

/// Its peak memory since it began, or since [`reset_peak_rss`].
pub fn peak_rss_bytes(pid: u32) -> anyhow::Result<f64> {
    status_bytes(pid, "VmHWM:")
}

/// Begins a new peak (proc(5), `clear_refs`).
pub fn reset_peak_rss(pid: u32) -> anyhow::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("could not reset the peak of memory")
}

fn status_bytes(pid: u32, field: &str) -> anyhow::Result<f64> {
    field_bytes(&format!("/proc/{pid}/status"), field)
}

fn field_bytes(file: &str, field: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(file).with_context(|| format!("could not read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes: f64 = line
        .and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .ok_or_else(|| anyhow!("{file} has no {field}"))?;
    Ok(kibibytes * 1024.0)
}

/// One running process.
struct Running {
    pid: u32,
    parent: u32,
    own_ticks: f64,
    /// Of children that ended and were waited for.
    ended_children_ticks: f64,
}

fn running() -> anyhow::Result<Vec<Running>> {
    let ids =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.filter_map(read).collect())
}

/// Nothing if the process has ended meanwhile.
fn read(pid: u32) -> Option<Running> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets that may hold any character. The rest is numbers.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Running {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        own_ticks: number(11)? + number(12)?,
        ended_children_ticks: number(13)? + number(14)?,
    })
}

fn ticks(pid: u32, running: &[Running], with_children: bool) -> f64 {
    let own: f64 = running
        .iter()
        .filter(|process| process.pid == pid)
        .map(|process| {
            process.own_ticks
                + if with_children {
                    process.ended_children_ticks
                } else {
                    0.0
                }
        })
        .sum();
    let children = running
        .iter()
        .filter(|process| with_children && process.parent == pid);
    own + children
        .map(|child| ticks(child.pid, running, true))
        .sum::<f64>()
}

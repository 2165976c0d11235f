//! Metrics of the process under the names that every Prometheus client uses. Only Linux has the source, `/proc`; elsewhere
//! there are no such metrics.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// `USER_HZ`, the clock tick of the kernel: 100 on all architectures of Rust's Linux targets.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self` for each scrape.
#[derive(Debug)]
pub struct Process {
    /// Seconds since 1970.
    started_at: f64,
}

impl Process {
    /// A process that starts now.
    pub fn starting() -> Self {
        let started_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        Self { started_at }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(seconds) = stat.as_deref().and_then(cpu_seconds) {
            let (name, help) = ("process_cpu_seconds", "User and system CPU time in seconds");
            let counter = ConstCounter::new(seconds);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory in bytes",
                bytes_of_kilobytes(&status, "VmRSS:"),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory in bytes",
                bytes_of_kilobytes(&status, "VmSize:"),
            ),
            (
                "process_threads",
                "Number of threads",
                number(&status, "Threads:"),
            ),
            ("process_open_fds", "Open files and sockets", open_files()),
            (
                "process_max_fds",
                "Limit of open files",
                number(&limits, "Max open files"),
            ),
            (
                "process_start_time_seconds",
                "Start time in seconds since 1970",
                Some(self.started_at),
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
            }
        }
        Ok(())
    }
}

/// Linux 6.2 and newer report the number as the size of the folder. Older kernels need a count.
fn open_files() -> Option<f64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        0 => fs::read_dir(FOLDER).ok().map(|open| open.count() as f64),
        open => Some(open as f64),
    }
}

/// Fields 14 and 15 of `/proc/self/stat`; the second is the name in brackets, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

fn bytes_of_kilobytes(status: &str, name: &str) -> Option<f64> {
    number(status, name).map(|kilobytes| kilobytes * 1024.0)
}

/// The first number of the line that begins with this name.
fn number(lines: &str, name: &str) -> Option<f64> {
    lines
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_kernel_are_parsed() {
        let stat =
            "7 (shop (bell) x) S 1 7 7 0 -1 4194560 300 0 0 0 250 150 0 0 20 0 5 0 100 2000 300";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(
            bytes_of_kilobytes("VmSize:\t  2048 kB\nVmRSS:\t    10 kB\n", "VmRSS:"),
            Some(10_240.0)
        );
        assert_eq!(
            number(
                "Max open files            1024                 524288               files",
                "Max open files"
            ),
            Some(1024.0)
        );
        assert_eq!(number("Max open files unlimited", "Max open files"), None);
    }
}

//! The log of a replica. It is bounded, and shown if a story fails.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::Value;

/// The last lines show why a story failed.
const LINES_MAX: usize = 2_000;

/// The last lines of a replica, across its restarts, and every line of a panic.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    panics: Vec<String>,
    copy: Option<File>,
}

impl Log {
    /// Reads `stderr` to its end on a thread of its own.
    pub fn follow(&self, stderr: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let Ok(line) = line else { break };
                log.push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }

    /// Writes the kept lines and every later one to this file.
    #[allow(
        dead_code,
        reason = "only the chaos stories use it, and both test binaries share this file"
    )]
    pub fn copy_to(&self, mut file: File) {
        self.with(|lines| {
            for line in &lines.last {
                writeln!(file, "{line}").ok();
            }
            lines.copy = Some(file);
        });
    }

    /// The lines of panics.
    pub fn panics(&self) -> Vec<String> {
        self.with(|lines| lines.panics.clone())
    }

    /// The values of a field in all events of this level, in their order.
    pub fn fields(&self, level: &str, field: &str) -> Vec<String> {
        let value = |line: &String| {
            let event: BTreeMap<String, Value> = serde_json::from_str(line).ok()?;
            let is_of_level = event.get("level")? == level;
            let value = event.get(field).filter(|_| is_of_level)?;
            Some(
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned),
            )
        };
        self.with(|lines| lines.last.iter().filter_map(value).collect())
    }

    /// All lines that were kept.
    pub fn text(&self) -> String {
        self.with(|lines| {
            lines
                .last
                .iter()
                .map(|line| format!("    {line}\n"))
                .collect()
        })
    }

    fn push(&self, line: String) {
        self.with(|lines| {
            if line.contains("panicked") && lines.panics.len() < LINES_MAX {
                lines.panics.push(line.clone());
            }
            if let Some(file) = &mut lines.copy {
                writeln!(file, "{line}").ok();
            }
            if lines.last.len() == LINES_MAX {
                lines.last.pop_front();
            }
            lines.last.push_back(line);
        });
    }

    fn with<T>(&self, read: impl FnOnce(&mut Lines) -> T) -> T {
        // A poisoned log is still shown, because it contains the panic.
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

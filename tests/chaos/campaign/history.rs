//! The history of a run: the records of all recorders, one JSON object a line, with one clock.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// The start of every secret of a merchant.
const SECRET: &str = "canary-";
/// Oddities that a failed run shows.
const ODDITIES_MAX: usize = 20;
/// Hexadecimal digits after it.
const SECRET_DIGITS: usize = 24;

/// The directory of a run. The checker needs nothing else.
pub struct History {
    folder: PathBuf,
    began: Instant,
    began_at: OffsetDateTime,
    publishes: Mutex<BufWriter<File>>,
    sessions: Mutex<BufWriter<File>>,
    faults: Mutex<BufWriter<File>>,
    samples: Mutex<BufWriter<File>>,
    log: Mutex<File>,
    /// Frames that the protocol excludes, and panics.
    oddities: Mutex<Vec<String>>,
}

/// The files of the history.
#[derive(Debug, Clone, Copy)]
pub enum Book {
    Publishes,
    Sessions,
    Faults,
    Samples,
}

impl History {
    /// An empty history in this new directory.
    pub fn begin(folder: PathBuf) -> Self {
        std::fs::create_dir_all(folder.join("database")).expect("a directory can be made");
        let file = |name: &str| {
            let file = File::create(folder.join(name)).expect("a history can be written");
            Mutex::new(BufWriter::new(file))
        };
        Self {
            publishes: file("publishes.jsonl"),
            sessions: file("sessions.jsonl"),
            faults: file("faults.jsonl"),
            samples: file("samples.jsonl"),
            began: Instant::now(),
            began_at: OffsetDateTime::now_utc(),
            log: Mutex::new(File::create(folder.join("run.log")).expect("a log can be written")),
            oddities: Mutex::default(),
            folder,
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The start of the run.
    pub fn began_at(&self) -> OffsetDateTime {
        self.began_at
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a run is short")
    }

    /// The moment of the run as a date.
    pub fn date(&self, moment: u64) -> OffsetDateTime {
        self.began_at + Duration::microseconds(i64::try_from(moment).expect("a run is short"))
    }

    /// Writes one line. `fields` is a JSON object.
    pub fn note(&self, book: Book, kind: &str, mut fields: Value) {
        let book = match book {
            Book::Publishes => &self.publishes,
            Book::Sessions => &self.sessions,
            Book::Faults => &self.faults,
            Book::Samples => &self.samples,
        };
        // The time is read under the lock, so that each file is in order.
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        fields["t"] = self.now().into();
        fields["kind"] = kind.into();
        writeln!(book, "{fields}").expect("the history can be written");
    }

    /// Writes a whole file of the directory.
    pub fn write(&self, name: &str, content: &Value) {
        let text = serde_json::to_string_pretty(content).expect("JSON can be written");
        std::fs::write(self.folder.join(name), text).expect("a file can be written");
    }

    /// Writes the buffered lines.
    pub fn flush(&self) {
        for book in [&self.publishes, &self.sessions, &self.faults, &self.samples] {
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            book.flush().expect("the history can be written");
        }
    }

    /// Prints a line for people, and keeps it in `run.log`.
    pub fn say(&self, text: &str) {
        let line = format!("{:>7.1} s  {text}", self.began.elapsed().as_secs_f64());
        eprintln!("{line}");
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(log, "{line}").ok();
    }

    /// Records a frame that the protocol excludes, or a panic. The checker does not judge these, and
    /// the run fails.
    pub fn object(&self, text: String) {
        self.say(&text);
        let mut oddities = self.oddities.lock().unwrap_or_else(PoisonError::into_inner);
        oddities.push(text);
    }

    /// The first of them.
    pub fn oddities(&self) -> Vec<String> {
        let oddities = self.oddities.lock().unwrap_or_else(PoisonError::into_inner);
        oddities.iter().take(ODDITIES_MAX).cloned().collect()
    }

    /// Notes that a log contains a text that no log may contain.
    pub fn note_leak(&self, replica: &str, text: &str) {
        self.note(
            Book::Samples,
            "log_leak",
            json!({"replica": replica, "text": text}),
        );
    }

    /// Notes how many lines of a log were searched for such a text.
    pub fn note_searched(&self, replica: &str, lines: usize) {
        self.note(
            Book::Samples,
            "logs_searched",
            json!({"replica": replica, "lines": lines}),
        );
    }
}

/// A new secret.
pub fn secret(random: &mut fastrand::Rng) -> String {
    let digits: String = format!("{:032x}", random.u128(..))
        .chars()
        .take(SECRET_DIGITS)
        .collect();
    format!("{SECRET}{digits}")
}

/// Every text that has the form of a secret.
pub fn secrets_in(text: &str) -> Vec<&str> {
    let length = SECRET.len() + SECRET_DIGITS;
    text.match_indices(SECRET)
        .filter_map(|(start, _)| text.get(start..start + length))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_in_any_text() {
        let mut random = fastrand::Rng::with_seed(1);
        let (one, other) = (secret(&mut random), secret(&mut random));
        let text = format!("a \"{one}\" and {other}, canary-short");
        assert_eq!(secrets_in(&text), [one.as_str(), other.as_str()]);
    }
}

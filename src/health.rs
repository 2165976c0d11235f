//! What works right now, told by the parts that know, for `/readyz`.

use std::sync::atomic::{AtomicBool, Ordering};

/// The state of one replica.
#[derive(Debug, Default)]
pub struct Health {
    /// Ingest consumes, or stands by.
    pub ingest: Part,
    /// Hints are received.
    pub fanout: Part,
    /// RabbitMQ took no hints the last time, as in an alarm.
    pub hints_refused: AtomicBool,
    /// The replica is leaving.
    pub draining: AtomicBool,
}

/// Whether one part works.
#[derive(Debug, Default)]
pub struct Part(AtomicBool);

impl Part {
    /// It works until the answer is dropped, by whatever way its task ends.
    pub fn up(&self) -> Up<'_> {
        self.0.store(true, Ordering::Relaxed);
        Up(self)
    }

    /// Whether it works.
    pub fn is_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A part that works.
#[derive(Debug)]
pub struct Up<'a>(&'a Part);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

//! The state of the relay, which the operations port reports.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The work of this relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// It has no connection to the outbox.
    Away,
    /// Another relay publishes, and this one takes over when the other ends.
    Standby,
    /// It publishes.
    Active,
}

/// Whether the last publishes were confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publishing {
    /// They were, or there was none.
    Ok,
    /// RabbitMQ blocks publishers because of an alarm.
    Blocked,
    /// They failed.
    Failing,
}

/// The state of a relay, with the last error.
#[derive(Debug)]
pub struct State(Mutex<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    duty: Duty,
    publishing: Publishing,
    is_draining: bool,
    error: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            duty: Duty::Away,
            publishing: Publishing::Ok,
            is_draining: false,
            error: None,
        }))
    }
}

impl State {
    /// The duty, the state of publishing, whether the relay stops, and the last error of both.
    pub fn read(&self) -> (Duty, Publishing, bool, Option<String>) {
        let inner = self.lock().clone();
        (inner.duty, inner.publishing, inner.is_draining, inner.error)
    }

    /// The relay stops.
    pub fn drain(&self) {
        self.lock().is_draining = true;
    }

    pub(super) fn is_on(&self, duty: Duty) {
        let mut inner = self.lock();
        inner.duty = duty;
        if inner.publishing == Publishing::Ok {
            inner.error = None;
        }
    }

    pub(super) fn lost_the_outbox(&self, error: String) {
        let mut inner = self.lock();
        (inner.duty, inner.error) = (Duty::Away, Some(error));
    }

    pub(super) fn published(&self) {
        let mut inner = self.lock();
        (inner.publishing, inner.error) = (Publishing::Ok, None);
    }

    pub(super) fn failed(&self, publishing: Publishing, error: String) {
        let mut inner = self.lock();
        (inner.publishing, inner.error) = (publishing, Some(error));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

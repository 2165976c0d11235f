//! The connections whose last statement was answered, so that the next caller needs no round trip.
//!
//! sqlx pings each connection that returns to its pool. A connection that is ready does not return:
//! the next caller gets it. No connection becomes ready while a caller waits for the pool of sqlx,
//! because only a returned connection wakes it. Does no I/O.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Connections `C`, newest last.
#[derive(Debug)]
pub(super) struct Ready<C> {
    state: Mutex<State<C>>,
}

#[derive(Debug)]
struct State<C> {
    connections: Vec<C>,
    /// Callers that wait for the pool of sqlx.
    waiting: usize,
    is_closed: bool,
}

impl<C> Default for Ready<C> {
    fn default() -> Self {
        let state = State {
            connections: Vec::new(),
            waiting: 0,
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
        }
    }
}

impl<C> Ready<C> {
    /// Takes the newest connection that is usable, and gives up the others that it meets. If there is
    /// none, returns the mark of a caller who waits for the pool of sqlx.
    pub(super) fn take(&self, is_usable: impl Fn(&C) -> bool) -> Result<C, Waiting<'_, C>> {
        loop {
            // A connection that is given up is dropped without the lock.
            let mut state = self.lock();
            let Some(connection) = state.connections.pop() else {
                state.waiting += 1;
                return Err(Waiting(self));
            };
            drop(state);
            if is_usable(&connection) {
                return Ok(connection);
            }
        }
    }

    /// Keeps a connection for the next caller, or returns it if it must return to the pool of sqlx.
    pub(super) fn keep(&self, connection: C) -> Result<(), C> {
        let mut state = self.lock();
        if state.is_closed || state.waiting > 0 {
            return Err(connection);
        }
        state.connections.push(connection);
        Ok(())
    }

    /// Keeps no more connections, and returns those that were kept.
    pub(super) fn close(&self) -> Vec<C> {
        let mut state = self.lock();
        state.is_closed = true;
        std::mem::take(&mut state.connections)
    }

    /// The number of connections that are kept.
    pub(super) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that waits for the pool of sqlx, until it is dropped.
pub(super) struct Waiting<'a, C>(&'a Ready<C>);

impl<C> Drop for Waiting<'_, C> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(connections: &[u32]) -> Ready<u32> {
        let ready = Ready::default();
        for connection in connections {
            assert_eq!(ready.keep(*connection), Ok(()));
        }
        ready
    }

    #[test]
    fn the_newest_usable_connection_is_taken_and_the_others_are_given_up() {
        let ready = with(&[1, 2, 3]);
        assert_eq!(ready.take(|connection| *connection != 3).ok(), Some(2));
        assert_eq!(ready.len(), 1);
        assert!(ready.take(|_| false).is_err());
        assert_eq!(ready.len(), 0);
    }

    #[test]
    fn no_connection_is_kept_while_a_caller_waits() {
        let ready = with(&[]);
        let waiting = ready.take(|_| true);
        assert!(waiting.is_err());
        assert_eq!(ready.keep(1), Err(1));
        drop(waiting);
        assert_eq!(ready.keep(1), Ok(()));
        assert_eq!(ready.take(|_| true).ok(), Some(1));
    }

    #[test]
    fn no_connection_is_kept_after_the_close() {
        let ready = with(&[1, 2]);
        assert_eq!(ready.close(), [1, 2]);
        assert_eq!(ready.keep(3), Err(3));
        assert!(ready.take(|_| true).is_err());
    }
}

//! The places of refused pages. A page keeps its connection until it has read its close.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gateway::rates::TooFast;
use crate::gateway::refusal::Refusal;

/// Most refused pages that get a close at the same time. Each takes up to two seconds. Further
/// pages get an HTTP status.
pub const REFUSALS_MAX: usize = 512;
/// Most of these places for addresses that are beyond a rate. One address could otherwise take all.
const REFUSALS_OF_ADDRESSES_MAX: usize = 64;

/// The free places.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    of_addresses: Arc<Semaphore>,
}

/// The place of one page. It is free again when the value is dropped.
#[derive(Debug)]
pub struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_address: Option<OwnedSemaphorePermit>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(REFUSALS_MAX)),
            of_addresses: Arc::new(Semaphore::new(REFUSALS_OF_ADDRESSES_MAX)),
        }
    }
}

impl Places {
    /// Takes a place for a page that gets this refusal.
    pub fn take(&self, refusal: &Refusal) -> Option<Place> {
        let of_address = match refusal {
            Refusal::TooManyRequests(TooFast::Address | TooFast::FailedTokens) => {
                Some(self.of_addresses.clone().try_acquire_owned().ok()?)
            }
            _ => None,
        };
        Some(Place {
            _of_all: self.all.clone().try_acquire_owned().ok()?,
            _of_address: of_address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(places: &Places, refusal: &Refusal) -> Vec<Place> {
        std::iter::from_fn(|| places.take(refusal)).collect()
    }

    #[test]
    fn addresses_beyond_a_rate_leave_places_for_other_pages() {
        let places = Places::default();
        let of_address = Refusal::TooManyRequests(TooFast::Address);
        let of_guesses = Refusal::TooManyRequests(TooFast::FailedTokens);
        let of_addresses = taken(&places, &of_address);
        assert_eq!(of_addresses.len(), REFUSALS_OF_ADDRESSES_MAX);
        assert!(places.take(&of_guesses).is_none());
        let others = taken(&places, &Refusal::Draining);
        assert_eq!(others.len(), REFUSALS_MAX - REFUSALS_OF_ADDRESSES_MAX);
        drop(of_addresses);
        assert!(places.take(&of_guesses).is_some());
        drop(others);
        let subscribers = taken(&places, &Refusal::TooManyRequests(TooFast::Subscriber));
        assert_eq!(subscribers.len(), REFUSALS_MAX);
        assert!(places.take(&of_address).is_none());
    }
}

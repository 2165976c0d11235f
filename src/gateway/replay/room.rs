//! The memory of pages: a budget for the pages that are read and not yet written, of all sessions of
//! a replica.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::model::page::{Entry, Page};
use crate::store::pages::PAGE_BYTES_MAX;

/// Room that a page takes before its size is known.
const RESERVED_BYTES: usize = PAGE_BYTES_MAX as usize;
/// Approximate size of an entry beside its frame.
const ENTRY_BYTES: usize = 200;

/// Counts the bytes of pages against a budget.
#[derive(Debug)]
pub(super) struct Room {
    bytes_max: usize,
    taken: AtomicUsize,
    released: Notify,
}

/// Bytes of a [`Room`]. They are released if this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

/// A page in memory. Whoever sends its notifications holds it until they are written.
#[derive(Debug)]
pub struct PageInRoom {
    page: Page,
    _taken: Taken,
}

impl Room {
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            taken: AtomicUsize::new(0),
            released: Notify::new(),
        })
    }

    /// Number of pages that have room. If no page is in memory, one always has.
    pub(super) fn pages(&self) -> usize {
        let taken = self.taken.load(Ordering::Acquire);
        let left = self.bytes_max.saturating_sub(taken) / RESERVED_BYTES;
        if taken == 0 { left.max(1) } else { left }
    }

    /// Whether more than half of the budget is in use.
    pub(super) fn is_short(&self) -> bool {
        self.taken.load(Ordering::Acquire) > self.bytes_max / 2
    }

    /// Returns when bytes were released since the last call. One task may wait.
    pub(super) async fn released(&self) {
        self.released.notified().await;
    }

    /// Reserves room for pages that are about to be read.
    pub(super) fn reserve(self: &Arc<Self>, pages: usize) -> Taken {
        self.take(pages * RESERVED_BYTES)
    }

    /// Takes the room of a page that was read.
    pub(super) fn hold(self: &Arc<Self>, page: Page) -> PageInRoom {
        let frame = |entry: &Entry| match entry {
            Entry::Notification(notification) => notification.frame.len(),
            Entry::Skipped { .. } => 0,
        };
        let frames: usize = page.entries.iter().map(frame).sum();
        let states: usize = page.states.iter().map(|state| state.frame.len()).sum();
        let count = page.entries.len() + page.states.len();
        PageInRoom {
            _taken: self.take(frames + states + count * ENTRY_BYTES),
            page,
        }
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Taken {
        self.taken.fetch_add(bytes, Ordering::AcqRel);
        Taken {
            room: self.clone(),
            bytes,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::AcqRel);
        self.room.released.notify_one();
    }
}

impl Deref for PageInRoom {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::feed::{Feed, Seq};

    #[test]
    fn pages_have_room_up_to_the_budget() {
        let room = Room::new(4 * RESERVED_BYTES);
        assert_eq!(room.pages(), 4);
        let reserved = room.reserve(3);
        assert_eq!((room.pages(), room.is_short()), (1, true));
        let last = room.reserve(1);
        assert_eq!(room.pages(), 0);
        drop(reserved);
        assert!(!room.is_short());
        assert_eq!(room.pages(), 3);
        drop(last);
        assert_eq!(room.pages(), 4);
    }

    #[test]
    fn one_page_has_room_in_the_smallest_budget() {
        let room = Room::new(1);
        assert_eq!(room.pages(), 1);
        let _reserved = room.reserve(1);
        assert_eq!(room.pages(), 0);
    }

    #[test]
    fn a_page_that_is_held_takes_its_own_size() {
        let room = Room::new(2 * RESERVED_BYTES);
        let reserved = room.reserve(2);
        let page = Page::new(Feed::parse("m").unwrap(), Seq::ZERO);
        let held = Arc::new(room.hold(page));
        drop(reserved);
        assert!(room.released().now_or_never().is_some());
        let shared = held.clone();
        drop(held);
        assert_eq!((room.pages(), shared.last), (2, Seq::ZERO));
    }
}

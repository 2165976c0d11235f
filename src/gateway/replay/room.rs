//! The memory of pages: a budget for the pages that are read and not yet written, of all sessions of
//! a replica.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use crate::model::page::{Entry, Page};
use crate::store::pages::PAGE_BYTES_MAX;

/// Least room that a page takes before its size is known. A page may need more, because its last event
/// is read whole, and because of the other fields of its entries.
const RESERVED_BYTES_MIN: usize = PAGE_BYTES_MAX as usize;
/// The most room that a page takes before its size is known, as a part of the budget. One slow client
/// that holds a page must not keep others from reading, whatever the size of the largest page.
const RESERVED_PART_MAX: usize = 8;
/// With each page, the size of the largest page counts less by this part. So one large event is
/// forgotten after some hundred pages.
const FORGOTTEN_PART: usize = 64;
/// Approximate size of an entry beside its frame.
const ENTRY_BYTES: usize = 200;

/// Counts the bytes of pages against a budget.
#[derive(Debug)]
pub(super) struct Room {
    bytes_max: usize,
    taken: AtomicUsize,
    /// Bytes of the largest page lately.
    largest: AtomicUsize,
    released: Notify,
    /// Shows the taken bytes.
    gauge: Gauge,
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
    pub(super) fn new(bytes_max: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            taken: AtomicUsize::new(0),
            largest: AtomicUsize::new(0),
            released: Notify::new(),
            gauge,
        })
    }

    /// Number of pages that have room. If no page is in memory, one always has.
    pub(super) fn pages(&self) -> usize {
        let taken = self.taken.load(Ordering::Acquire);
        let left = self.bytes_max.saturating_sub(taken) / self.page_bytes();
        if taken == 0 { left.max(1) } else { left }
    }

    /// Room that a page takes before its size is known: the size of the largest page lately.
    fn page_bytes(&self) -> usize {
        let largest = self.largest.load(Ordering::Acquire);
        largest
            .min(self.bytes_max / RESERVED_PART_MAX)
            .max(RESERVED_BYTES_MIN)
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
        self.take(pages * self.page_bytes())
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
        let bytes = frames + states + count * ENTRY_BYTES;
        self.note_size(bytes);
        PageInRoom {
            _taken: self.take(bytes),
            page,
        }
    }

    /// Records the size of a page that was read.
    fn note_size(&self, bytes: usize) {
        let largest = |largest: usize| bytes.max(largest - largest / FORGOTTEN_PART);
        self.largest
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
                Some(largest(before))
            })
            .ok();
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Taken {
        self.taken.fetch_add(bytes, Ordering::AcqRel);
        self.gauge.inc_by(bytes as i64);
        Taken {
            room: self.clone(),
            bytes,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::AcqRel);
        self.room.gauge.dec_by(self.bytes as i64);
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
        let room = Room::new(4 * RESERVED_BYTES_MIN, Gauge::default());
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
        let room = Room::new(1, Gauge::default());
        assert_eq!(room.pages(), 1);
        let _reserved = room.reserve(1);
        assert_eq!(room.pages(), 0);
    }

    #[test]
    fn a_page_reserves_the_size_of_the_largest_page_lately() {
        const MIB: usize = 1024 * 1024;
        let room = Room::new(64 * MIB, Gauge::default());
        assert_eq!(room.pages(), 256);
        room.note_size(4 * MIB);
        assert_eq!(room.pages(), 16);
        let reserved = room.reserve(2);
        assert_eq!(room.gauge.get(), 8 * MIB as i64);
        drop(reserved);
        room.note_size(16 * MIB);
        assert_eq!(room.pages(), 8, "one page never needs most of the budget");
        for _ in 0..1_000 {
            room.note_size(1_000);
        }
        assert_eq!(room.pages(), 256);
    }

    #[test]
    fn a_page_that_is_held_takes_its_own_size() {
        let room = Room::new(2 * RESERVED_BYTES_MIN, Gauge::default());
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

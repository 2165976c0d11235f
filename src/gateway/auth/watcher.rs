//! The feeds whose presence a token may read.

use super::{Grant, Recipients};
use crate::model::feed::Feed;

/// The rights of a token that asks for presence. It has at least one of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// The feeds that it reads.
    pub(super) grant: Option<Grant>,
    /// The recipients to whom it may publish.
    pub(super) recipients: Option<Recipients>,
    pub(super) broadcast_feed: Feed,
}

impl Watcher {
    /// Whether the token may read the presence of a feed.
    pub fn allows(&self, feed: &Feed) -> bool {
        let reads = |grant: &Grant| grant.feeds.contains(feed);
        let publishes = |recipients: &Recipients| recipients.allow(feed, &self.broadcast_feed);
        self.grant.as_ref().is_some_and(reads) || self.recipients.as_ref().is_some_and(publishes)
    }

    /// The grant of a token that may only read. A publisher has no rate of its own.
    pub fn reader(&self) -> Option<&Grant> {
        self.grant.as_ref().filter(|_| self.recipients.is_none())
    }
}

//! Where a session begins in a feed.

use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::notification::Newest;

/// Where a session begins in a feed.
#[derive(Debug, Clone)]
pub struct Start {
    /// The feed.
    pub feed: Feed,
    /// The subscriber's cursor.
    pub acked: Seq,
    /// Everything after this is sent.
    pub after: Seq,
    /// The newest number stored.
    pub last: Seq,
    /// Every change after this is sent.
    pub version: Version,
    /// The newest change stored.
    pub newest_version: Version,
    /// Read by everyone, so that what one says of it is not taken for all.
    pub shared: bool,
}

/// Where a client says that it is in a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptByClient {
    /// It has every notification up to here.
    pub after: Option<Place<Seq>>,
    /// It has every change up to here.
    pub version: Option<Place<Version>>,
}

/// A number that a client kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place<N> {
    /// The number.
    pub number: N,
    /// The epoch that it was kept with; older clients keep none.
    pub epoch: Option<Epoch>,
}

impl<N: Copy + Ord> Place<N> {
    /// Where to begin. A place of another epoch is not used, nor one past the newest number, which cannot be of this epoch:
    /// then `otherwise`. Without an epoch a place past the newest number is the newest.
    fn begin(self, epoch: &Epoch, newest: N, otherwise: N) -> N {
        match self.epoch {
            None => self.number.min(newest),
            Some(kept) if kept == *epoch && self.number <= newest => self.number,
            Some(_) => otherwise,
        }
    }
}

impl Start {
    /// Begins after the cursor, and with what changes from now on; or after the places that the client keeps itself.
    pub fn new(
        feed: Feed,
        epoch: &Epoch,
        acked: Seq,
        newest: Newest,
        kept: KeptByClient,
        shared: bool,
    ) -> Self {
        // A cursor above the newest number would hide the notifications that get the numbers up to there.
        let acked = acked.min(newest.seq);
        let version = |place: Place<Version>| place.begin(epoch, newest.version, newest.version);
        Self {
            feed,
            acked,
            after: kept
                .after
                .map_or(acked, |place| place.begin(epoch, newest.seq, acked)),
            last: newest.seq,
            version: kept.version.map_or(newest.version, version),
            newest_version: newest.version,
            shared,
        }
    }
}

//! The numbers after which a session begins in a feed. Pure.

use crate::model::feed::{Epoch, Feed, Newest, Seq, Version};

/// The begin of a session in a feed.
#[derive(Debug, Clone)]
pub struct Start {
    /// The feed.
    pub feed: Feed,
    /// The subscriber's cursor.
    pub acked: Seq,
    /// The session sends the notifications after this number.
    pub after: Seq,
    /// The newest number stored.
    pub last: Seq,
    /// The session sends the marks after this version.
    pub version: Version,
    /// The newest version stored.
    pub newest_version: Version,
    /// Everyone reads the feed, so the client may not mark its notifications.
    pub shared: bool,
}

/// The numbers of a feed that a client kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptByClient {
    /// The client has all notifications up to this number.
    pub after: Option<KeptNumber<Seq>>,
    /// The client has all marks up to this version.
    pub version: Option<KeptNumber<Version>>,
}

/// A number with its epoch, as a client kept it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptNumber<N> {
    /// The number.
    pub number: N,
    /// The epoch of the number. Older clients keep none.
    pub epoch: Option<Epoch>,
}

impl<N: Copy + Ord> KeptNumber<N> {
    /// The number to begin after. If the number is of another epoch, or above the newest number of
    /// its epoch, it is `otherwise`. Without an epoch, it is the newest number at most.
    fn begin(self, epoch: &Epoch, newest: N, otherwise: N) -> N {
        match self.epoch {
            None => self.number.min(newest),
            Some(kept) if kept == *epoch && self.number <= newest => self.number,
            Some(_) => otherwise,
        }
    }
}

impl Start {
    /// Begins after the numbers that the client kept. Without them, it begins after the cursor and
    /// with marks from now on.
    pub fn new(
        feed: Feed,
        epoch: &Epoch,
        acked: Seq,
        newest: Newest,
        kept: KeptByClient,
        shared: bool,
    ) -> Self {
        // A cursor above the newest number would hide the next notifications.
        let acked = acked.min(newest.seq);
        let version = |kept: KeptNumber<Version>| kept.begin(epoch, newest.version, newest.version);
        Self {
            feed,
            acked,
            after: kept
                .after
                .map_or(acked, |kept| kept.begin(epoch, newest.seq, acked)),
            last: newest.seq,
            version: kept.version.map_or(newest.version, version),
            newest_version: newest.version,
            shared,
        }
    }
}

//! Where the client stands in each feed: whether a number is the next one, was seen before, or leaves a gap.

use std::collections::BTreeMap;

use crate::feed::{Feed, Seq};

/// The numbers do not fit together: the promise is broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// Numbers are missing.
    #[error("a gap in {feed}: after #{seen} came #{came}, and nobody said that what lies between is skipped")]
    Gap { feed: String, seen: i64, came: i64 },
    /// The service knows less than it did.
    #[error("{feed} ended at #{last} when we came back, but had reached #{seen} before: was the database restored?")]
    WentBack { feed: String, seen: i64, last: i64 },
    /// A frame for a feed that `welcome` does not name.
    #[error("a frame for {0}, which is not a feed of this session")]
    Foreign(String),
}

/// One feed.
#[derive(Debug)]
struct Place {
    /// Where the first session began.
    start: i64,
    /// Everything up to this was seen, or told to be skipped.
    seen: i64,
    /// What this session was told that we have.
    acked: i64,
}

/// All feeds.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Where to begin, as the command line says.
    wanted: BTreeMap<String, i64>,
    places: BTreeMap<String, Place>,
}

impl Places {
    pub(super) fn new(after: &[(Feed, Seq)]) -> Self {
        let wanted = after.iter().map(|(feed, seq)| (feed.to_string(), seq.get())).collect();
        Self { wanted, places: BTreeMap::new() }
    }

    /// Where the next session is to begin: where we stand, in the feeds that we know.
    pub(super) fn starts(&self) -> BTreeMap<String, i64> {
        let mut starts = self.wanted.clone();
        starts.extend(self.places.iter().map(|(feed, place)| (feed.clone(), place.seen)));
        starts
    }

    /// A session began: everything after `cursor` comes, and `last` is the newest there is.
    pub(super) fn begin(&mut self, feed: &str, cursor: i64, last: i64) -> Result<(), Broken> {
        // A cursor past the end is one that the command line made up: what comes is what comes next.
        let cursor = cursor.min(last);
        let place = self.places.entry(feed.to_owned()).or_insert(Place { start: cursor, seen: cursor, acked: cursor });
        let seen = place.seen;
        // What the last session was told may be lost with it: it is told again.
        place.acked = place.start;
        if last < seen {
            return Err(Broken::WentBack { feed: feed.to_owned(), seen, last });
        }
        self.check(feed, cursor)
    }

    /// Numbers came. Says whether they are new.
    pub(super) fn advance(&mut self, feed: &str, from: i64, through: i64) -> Result<bool, Broken> {
        let place = self.places.get_mut(feed).ok_or_else(|| Broken::Foreign(feed.to_owned()))?;
        if from > place.seen.saturating_add(1) {
            return Err(Broken::Gap { feed: feed.to_owned(), seen: place.seen, came: from });
        }
        let new = through > place.seen;
        place.seen = place.seen.max(through);
        Ok(new)
    }

    /// Everything up to this was sent, the service says.
    pub(super) fn check(&self, feed: &str, sent: i64) -> Result<(), Broken> {
        match self.places.get(feed) {
            Some(place) if sent > place.seen => {
                Err(Broken::Gap { feed: feed.to_owned(), seen: place.seen, came: sent.saturating_add(1) })
            }
            Some(_) => Ok(()),
            None => Err(Broken::Foreign(feed.to_owned())),
        }
    }

    /// What this session was not told yet that we have.
    pub(super) fn take_acks(&mut self) -> Vec<(String, i64)> {
        let due = self.places.iter_mut().filter(|(_, place)| place.seen > place.acked);
        due.map(|(feed, place)| {
            place.acked = place.seen;
            (feed.clone(), place.seen)
        })
        .collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn at_two() -> Places {
        let mut places = Places::default();
        places.begin("m", 2, 10).unwrap();
        places
    }

    #[test]
    fn numbers_are_seen_once_and_without_a_gap() {
        let mut places = at_two();
        assert_eq!(places.advance("m", 3, 3), Ok(true));
        assert_eq!(places.advance("m", 4, 6), Ok(true), "skipped");
        assert_eq!(places.advance("m", 6, 6), Ok(false), "seen before");
        assert_eq!(places.advance("m", 8, 8), Err(Broken::Gap { feed: "m".into(), seen: 6, came: 8 }));
        assert_eq!(places.advance("x", 1, 1), Err(Broken::Foreign("x".into())));
        assert_eq!(places.check("m", 6), Ok(()));
        assert!(places.check("m", 7).is_err(), "sent, says the heartbeat, but it did not come");
    }

    #[test]
    fn what_was_seen_is_acknowledged_once_a_session() {
        let mut places = at_two();
        assert!(places.take_acks().is_empty());
        places.advance("m", 3, 5).unwrap();
        assert_eq!(places.take_acks(), [("m".into(), 5)]);
        assert!(places.take_acks().is_empty());
        places.begin("m", 5, 10).unwrap();
        assert_eq!(places.take_acks(), [("m".into(), 5)], "the ack may have been lost with the session");
    }

    #[test]
    fn a_session_goes_on_where_the_last_one_ended() {
        let mut places = Places::new(&[(Feed::parse("m").unwrap(), Seq::new(1).unwrap())]);
        assert_eq!(places.starts(), [("m".into(), 1)].into());
        places.begin("m", 1, 10).unwrap();
        places.advance("m", 2, 3).unwrap();
        assert_eq!(places.starts(), [("m".into(), 3)].into());
        assert_eq!(places.begin("m", 2, 10), Ok(()), "the service sends some again");
        assert!(matches!(places.begin("m", 4, 10), Err(Broken::Gap { .. })));
        assert!(matches!(places.begin("m", 2, 2), Err(Broken::WentBack { .. })));
    }

    #[test]
    fn a_place_past_the_end_is_the_end() {
        let mut places = Places::default();
        places.begin("m", 100, 10).unwrap();
        assert_eq!(places.advance("m", 11, 11), Ok(true));
    }
}

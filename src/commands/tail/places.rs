//! Where the client stands in each feed: whether a number is the next one, was seen before, or leaves a gap.

use std::collections::BTreeMap;

use super::After;

/// The numbers do not fit together: the promise is broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// Numbers are missing.
    #[error(
        "a gap in {feed}: after #{seen} came #{came}, and nobody said that what lies between is skipped"
    )]
    Gap { feed: String, seen: i64, came: i64 },
    /// The service knows less than it did.
    #[error(
        "{feed} ended at #{last} when we came back, but had reached #{seen} before: was the database restored?"
    )]
    WentBack { feed: String, seen: i64, last: i64 },
    /// A frame for a feed that `welcome` does not name.
    #[error("a frame for {0}, which is not a feed of this session")]
    Foreign(String),
}

/// One feed.
#[derive(Debug)]
struct Place {
    /// The epoch of its numbers; a service before epochs names none.
    epoch: Option<String>,
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
    /// Where to begin, as the command line says: `SEQ` or `SEQ:EPOCH`.
    wanted: BTreeMap<String, String>,
    places: BTreeMap<String, Place>,
}

impl Places {
    pub(super) fn new(after: &[After]) -> Self {
        let wanted = |after: &After| {
            (
                after.feed.to_string(),
                written(after.seq.get(), after.epoch.as_deref()),
            )
        };
        let wanted = after.iter().map(wanted).collect();
        Self {
            wanted,
            places: BTreeMap::new(),
        }
    }

    /// Where the next session is to begin: where we stand, in the feeds that we know, as `SEQ` or `SEQ:EPOCH`.
    pub(super) fn starts(&self) -> BTreeMap<String, String> {
        let mut starts = self.wanted.clone();
        let place = |(feed, place): (&String, &Place)| {
            (feed.clone(), written(place.seen, place.epoch.as_deref()))
        };
        starts.extend(self.places.iter().map(place));
        starts
    }

    /// A session began: everything after `cursor` comes, and `last` is the newest there is. Returns whether the numbers are of
    /// another epoch than before: then the place in the feed is forgotten.
    pub(super) fn begin(
        &mut self,
        feed: &str,
        cursor: i64,
        last: i64,
        epoch: Option<&str>,
    ) -> Result<bool, Broken> {
        // A cursor past the end is one that the command line made up: what comes is what comes next.
        let cursor = cursor.min(last);
        let new = || Place {
            epoch: epoch.map(Into::into),
            start: cursor,
            seen: cursor,
            acked: cursor,
        };
        let place = self.places.entry(feed.to_owned()).or_insert_with(new);
        if place.epoch.is_some() && place.epoch.as_deref() != epoch {
            *place = new();
            return Ok(true);
        }
        let seen = place.seen;
        // What the last session was told may be lost with it: it is told again.
        place.acked = place.start;
        if last < seen {
            return Err(Broken::WentBack {
                feed: feed.to_owned(),
                seen,
                last,
            });
        }
        self.check(feed, cursor).map(|()| false)
    }

    /// Numbers came. Says whether they are new.
    pub(super) fn advance(&mut self, feed: &str, from: i64, through: i64) -> Result<bool, Broken> {
        let place = self
            .places
            .get_mut(feed)
            .ok_or_else(|| Broken::Foreign(feed.to_owned()))?;
        if from > place.seen.saturating_add(1) {
            return Err(Broken::Gap {
                feed: feed.to_owned(),
                seen: place.seen,
                came: from,
            });
        }
        let new = through > place.seen;
        place.seen = place.seen.max(through);
        Ok(new)
    }

    /// Everything up to this was sent, the service says.
    pub(super) fn check(&self, feed: &str, sent: i64) -> Result<(), Broken> {
        match self.places.get(feed) {
            Some(place) if sent > place.seen => Err(Broken::Gap {
                feed: feed.to_owned(),
                seen: place.seen,
                came: sent.saturating_add(1),
            }),
            Some(_) => Ok(()),
            None => Err(Broken::Foreign(feed.to_owned())),
        }
    }

    /// What this session was not told yet that we have.
    pub(super) fn take_acks(&mut self) -> Vec<(String, i64)> {
        let due = self
            .places
            .iter_mut()
            .filter(|(_, place)| place.seen > place.acked);
        due.map(|(feed, place)| {
            place.acked = place.seen;
            (feed.clone(), place.seen)
        })
        .collect()
    }
}

fn written(seq: i64, epoch: Option<&str>) -> String {
    epoch.map_or_else(|| seq.to_string(), |epoch| format!("{seq}:{epoch}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const E1: Option<&str> = Some("e1");

    fn at_two() -> Places {
        let mut places = Places::default();
        places.begin("m", 2, 10, E1).unwrap();
        places
    }

    #[test]
    fn numbers_are_seen_once_and_without_a_gap() {
        let mut places = at_two();
        assert_eq!(places.advance("m", 3, 3), Ok(true));
        assert_eq!(places.advance("m", 4, 6), Ok(true), "skipped");
        assert_eq!(places.advance("m", 6, 6), Ok(false), "seen before");
        assert_eq!(
            places.advance("m", 8, 8),
            Err(Broken::Gap {
                feed: "m".into(),
                seen: 6,
                came: 8
            })
        );
        assert_eq!(places.advance("x", 1, 1), Err(Broken::Foreign("x".into())));
        assert_eq!(places.check("m", 6), Ok(()));
        assert!(
            places.check("m", 7).is_err(),
            "sent, says the heartbeat, but it did not come"
        );
    }

    #[test]
    fn what_was_seen_is_acknowledged_once_a_session() {
        let mut places = at_two();
        assert!(places.take_acks().is_empty());
        places.advance("m", 3, 5).unwrap();
        assert_eq!(places.take_acks(), [("m".into(), 5)]);
        assert!(places.take_acks().is_empty());
        places.begin("m", 5, 10, E1).unwrap();
        assert_eq!(
            places.take_acks(),
            [("m".into(), 5)],
            "the ack may have been lost with the session"
        );
    }

    #[test]
    fn a_session_goes_on_where_the_last_one_ended() {
        let mut places = Places::new(&["m:1".parse().unwrap()]);
        assert_eq!(places.starts(), [("m".into(), "1".into())].into());
        places.begin("m", 1, 10, E1).unwrap();
        places.advance("m", 2, 3).unwrap();
        assert_eq!(places.starts(), [("m".into(), "3:e1".into())].into());
        assert_eq!(
            places.begin("m", 2, 10, E1),
            Ok(false),
            "the service sends some again"
        );
        assert!(matches!(
            places.begin("m", 4, 10, E1),
            Err(Broken::Gap { .. })
        ));
        assert!(matches!(
            places.begin("m", 2, 2, E1),
            Err(Broken::WentBack { .. })
        ));
    }

    #[test]
    fn a_place_past_the_end_is_the_end() {
        let mut places = Places::default();
        places.begin("m", 100, 10, E1).unwrap();
        assert_eq!(places.advance("m", 11, 11), Ok(true));
    }

    #[test]
    fn a_place_of_another_epoch_is_forgotten() {
        let mut places = Places::new(&["m:7:e0".parse().unwrap()]);
        assert_eq!(places.starts(), [("m".into(), "7:e0".into())].into());
        assert_eq!(places.begin("m", 2, 10, E1), Ok(false), "the first session");
        places.advance("m", 3, 9).unwrap();
        assert_eq!(places.begin("m", 4, 5, Some("e2")), Ok(true));
        assert_eq!(places.starts(), [("m".into(), "4:e2".into())].into());
        assert!(places.take_acks().is_empty());
        assert_eq!(places.advance("m", 5, 5), Ok(true));
        let mut places = Places::default();
        places.begin("m", 2, 10, None).unwrap();
        assert_eq!(
            places.starts(),
            [("m".into(), "2".into())].into(),
            "a service before epochs"
        );
        assert_eq!(places.begin("m", 2, 10, E1), Ok(false), "it was upgraded");
    }
}

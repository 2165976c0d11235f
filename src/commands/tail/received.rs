//! The numbers that the client has received in each feed. Finds repeated numbers and gaps.

use std::collections::BTreeMap;

use super::After;

/// Numbers that contradict the contract.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NumbersError {
    /// Numbers are missing.
    #[error(
        "a gap in {feed}: after #{seen} the service sent #{received}, without a skipped frame for the numbers between"
    )]
    Gap {
        feed: String,
        seen: i64,
        received: i64,
    },
    /// The feed is shorter than before, in the same epoch.
    #[error(
        "{feed} ended at #{last} after a reconnect, but had reached #{seen} before: was the database restored?"
    )]
    WentBack { feed: String, seen: i64, last: i64 },
    /// A frame for a feed that `welcome` does not name.
    #[error("a frame for {0}, which is not a feed of this session")]
    UnknownFeed(String),
}

/// The numbers of one feed.
#[derive(Debug)]
struct FeedNumbers {
    /// The epoch of the numbers. A service from before epochs sends none.
    epoch: Option<String>,
    /// The cursor at the first session.
    start: i64,
    /// Every number up to this one was received or skipped.
    seen: i64,
    /// The highest ack that was sent in this session.
    acked: i64,
}

/// The numbers of all feeds.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// The values of `--after` by feed: `SEQ` or `SEQ:EPOCH`.
    after: BTreeMap<String, String>,
    feeds: BTreeMap<String, FeedNumbers>,
}

impl Received {
    pub(super) fn new(after: &[After]) -> Self {
        let entry = |after: &After| {
            (
                after.feed.to_string(),
                start_text(after.seq.get(), after.epoch.as_deref()),
            )
        };
        Self {
            after: after.iter().map(entry).collect(),
            feeds: BTreeMap::new(),
        }
    }

    /// The numbers after which the next session begins, by feed: `SEQ` or `SEQ:EPOCH`.
    pub(super) fn starts(&self) -> BTreeMap<String, String> {
        let mut starts = self.after.clone();
        let entry = |(feed, numbers): (&String, &FeedNumbers)| {
            let start = start_text(numbers.seen, numbers.epoch.as_deref());
            (feed.clone(), start)
        };
        starts.extend(self.feeds.iter().map(entry));
        starts
    }

    /// Begins a session that will receive every number after `cursor`; `last` is the newest of the
    /// feed. Returns `true` if the epoch has changed, which makes the numbers from before invalid.
    pub(super) fn begin_session(
        &mut self,
        feed: &str,
        cursor: i64,
        last: i64,
        epoch: Option<&str>,
    ) -> Result<bool, NumbersError> {
        // `--after` may be higher than the last number. The session then receives the next number.
        let cursor = cursor.min(last);
        let new = || FeedNumbers {
            epoch: epoch.map(Into::into),
            start: cursor,
            seen: cursor,
            acked: cursor,
        };
        let numbers = self.feeds.entry(feed.to_owned()).or_insert_with(new);
        if numbers.epoch.is_some() && numbers.epoch.as_deref() != epoch {
            *numbers = new();
            return Ok(true);
        }
        let seen = numbers.seen;
        // The acks of the last session may be lost, so they are sent again.
        numbers.acked = numbers.start;
        if last < seen {
            return Err(NumbersError::WentBack {
                feed: feed.to_owned(),
                seen,
                last,
            });
        }
        self.check_sent(feed, cursor).map(|()| false)
    }

    /// Records numbers that were received or skipped. Returns whether some of them are new.
    pub(super) fn receive(
        &mut self,
        feed: &str,
        from: i64,
        through: i64,
    ) -> Result<bool, NumbersError> {
        let numbers = self
            .feeds
            .get_mut(feed)
            .ok_or_else(|| NumbersError::UnknownFeed(feed.to_owned()))?;
        if from > numbers.seen.saturating_add(1) {
            return Err(NumbersError::Gap {
                feed: feed.to_owned(),
                seen: numbers.seen,
                received: from,
            });
        }
        let is_new = through > numbers.seen;
        numbers.seen = numbers.seen.max(through);
        Ok(is_new)
    }

    /// Checks that every number that the service has sent was received.
    pub(super) fn check_sent(&self, feed: &str, sent: i64) -> Result<(), NumbersError> {
        match self.feeds.get(feed) {
            Some(numbers) if sent > numbers.seen => Err(NumbersError::Gap {
                feed: feed.to_owned(),
                seen: numbers.seen,
                received: sent.saturating_add(1),
            }),
            Some(_) => Ok(()),
            None => Err(NumbersError::UnknownFeed(feed.to_owned())),
        }
    }

    /// Returns the acks that this session has not sent yet: feed and number.
    pub(super) fn take_acks(&mut self) -> Vec<(String, i64)> {
        let due = self
            .feeds
            .iter_mut()
            .filter(|(_, numbers)| numbers.seen > numbers.acked);
        due.map(|(feed, numbers)| {
            numbers.acked = numbers.seen;
            (feed.clone(), numbers.seen)
        })
        .collect()
    }
}

fn start_text(seq: i64, epoch: Option<&str>) -> String {
    epoch.map_or_else(|| seq.to_string(), |epoch| format!("{seq}:{epoch}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const E1: Option<&str> = Some("e1");

    fn received_two() -> Received {
        let mut received = Received::default();
        received.begin_session("m", 2, 10, E1).unwrap();
        received
    }

    #[test]
    fn repeated_numbers_are_not_new_and_gaps_are_errors() {
        let mut received = received_two();
        assert_eq!(received.receive("m", 3, 3), Ok(true));
        assert_eq!(received.receive("m", 4, 6), Ok(true), "skipped");
        assert_eq!(received.receive("m", 6, 6), Ok(false), "seen before");
        assert_eq!(
            received.receive("m", 8, 8),
            Err(NumbersError::Gap {
                feed: "m".into(),
                seen: 6,
                received: 8
            })
        );
        assert_eq!(
            received.receive("x", 1, 1),
            Err(NumbersError::UnknownFeed("x".into()))
        );
        assert_eq!(received.check_sent("m", 6), Ok(()));
        assert!(
            received.check_sent("m", 7).is_err(),
            "the heartbeat counts a number that was not received"
        );
    }

    #[test]
    fn each_session_acks_received_numbers_once() {
        let mut received = received_two();
        assert!(received.take_acks().is_empty());
        received.receive("m", 3, 5).unwrap();
        assert_eq!(received.take_acks(), [("m".into(), 5)]);
        assert!(received.take_acks().is_empty());
        received.begin_session("m", 5, 10, E1).unwrap();
        assert_eq!(
            received.take_acks(),
            [("m".into(), 5)],
            "the ack may have been lost with the session"
        );
    }

    #[test]
    fn a_session_continues_after_the_last_received_number() {
        let mut received = Received::new(&["m:1".parse().unwrap()]);
        assert_eq!(received.starts(), [("m".into(), "1".into())].into());
        received.begin_session("m", 1, 10, E1).unwrap();
        received.receive("m", 2, 3).unwrap();
        assert_eq!(received.starts(), [("m".into(), "3:e1".into())].into());
        assert_eq!(
            received.begin_session("m", 2, 10, E1),
            Ok(false),
            "the service may repeat numbers"
        );
        assert!(matches!(
            received.begin_session("m", 4, 10, E1),
            Err(NumbersError::Gap { .. })
        ));
        assert!(matches!(
            received.begin_session("m", 2, 2, E1),
            Err(NumbersError::WentBack { .. })
        ));
    }

    #[test]
    fn a_start_after_the_last_number_waits_for_the_next_one() {
        let mut received = Received::default();
        received.begin_session("m", 100, 10, E1).unwrap();
        assert_eq!(received.receive("m", 11, 11), Ok(true));
    }

    #[test]
    fn a_new_epoch_replaces_the_received_numbers() {
        let mut received = Received::new(&["m:7:e0".parse().unwrap()]);
        assert_eq!(received.starts(), [("m".into(), "7:e0".into())].into());
        assert_eq!(
            received.begin_session("m", 2, 10, E1),
            Ok(false),
            "the first session"
        );
        received.receive("m", 3, 9).unwrap();
        assert_eq!(received.begin_session("m", 4, 5, Some("e2")), Ok(true));
        assert_eq!(received.starts(), [("m".into(), "4:e2".into())].into());
        assert!(received.take_acks().is_empty());
        assert_eq!(received.receive("m", 5, 5), Ok(true));
        let mut received = Received::default();
        received.begin_session("m", 2, 10, None).unwrap();
        assert_eq!(
            received.starts(),
            [("m".into(), "2".into())].into(),
            "a service from before epochs"
        );
        assert_eq!(
            received.begin_session("m", 2, 10, E1),
            Ok(false),
            "the service was upgraded"
        );
    }
}

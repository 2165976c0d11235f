//! The order in which submissions are written. Subscribers take turns, so a subscriber with many
//! submissions delays only itself. No I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::MARKS_PER_WRITE_MAX;
use super::submission::Submission;
use crate::model::feed::{Feed, Subscriber};

/// Most submissions that wait. If more come, they are refused as busy.
const WAITING_MAX: usize = 4_096;
/// Most submissions of one subscriber that wait: those of eight sessions that each send as many as
/// they may.
const WAITING_PER_SUBSCRIBER_MAX: usize = 512;
/// Most numbers in one write, because it locks all its feeds until it ends.
const NUMBERS_PER_WRITE_MAX: usize = 1_000;

/// The submissions that wait. Those of one session and feed are written in their order.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Subscribers with submissions; the next one is first.
    turns: VecDeque<Subscriber>,
    waiting: BTreeMap<Subscriber, VecDeque<Submission>>,
    count: usize,
    /// Feeds that are being written. A second write would wait for the lock of the first one.
    busy: BTreeSet<Feed>,
    through_is_next: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A write of named numbers, together with others.
    Named,
    /// A write of all numbers up to one, without others, because it takes long.
    Through,
    /// A write apart from the others, because its feed was locked or it failed.
    Apart,
    /// The same, at a later time.
    Later,
}

impl Queues {
    /// Adds a new submission. Returns it if too many wait.
    pub(super) fn push(&mut self, submission: Submission) -> Option<Submission> {
        let of_subscriber = self
            .waiting
            .get(&submission.request.subscriber)
            .map_or(0, VecDeque::len);
        if self.count >= WAITING_MAX || of_subscriber >= WAITING_PER_SUBSCRIBER_MAX {
            return Some(submission);
        }
        self.queue_of(&submission).push_back(submission);
        None
    }

    /// Adds submissions that are to be written again. They come before later submissions of their
    /// sessions.
    pub(super) fn put_back(&mut self, submissions: Vec<Submission>) {
        for submission in submissions.into_iter().rev() {
            self.queue_of(&submission).push_front(submission);
        }
    }

    /// Adds a submission whose first part is stored. The rest comes after the others of its
    /// session.
    pub(super) fn push_continued(&mut self, mut submission: Submission) {
        submission.is_continued = true;
        self.queue_of(&submission).push_back(submission);
    }

    /// Takes the submissions of the next write. Their feeds are busy until [`Queues::end_write`].
    pub(super) fn take(&mut self, now: Instant) -> Option<Vec<Submission>> {
        let kinds = match self.through_is_next {
            true => [Kind::Through, Kind::Named],
            false => [Kind::Named, Kind::Through],
        };
        kinds.into_iter().find_map(|kind| {
            let submissions = match kind {
                Kind::Named => self.take_many(kind, None, now),
                _ => self.take_one(kind, None, now).into_iter().collect(),
            };
            self.through_is_next = kind == Kind::Named;
            self.begin_write(submissions)
        })
    }

    /// Takes the submissions of the next write that may wait for a lock: all of one feed, or one
    /// that failed.
    pub(super) fn take_apart(&mut self, now: Instant) -> Option<Vec<Submission>> {
        let first = self.take_one(Kind::Apart, None, now)?;
        let mut submissions = vec![first];
        if submissions.iter().all(Submission::may_share) {
            let feed = submissions[0].request.feed.clone();
            submissions.extend(self.take_many(Kind::Apart, Some(&feed), now));
        }
        self.begin_write(submissions)
    }

    pub(super) fn end_write(&mut self, feeds: &[Feed]) {
        for feed in feeds {
            self.busy.remove(feed);
        }
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        let submissions = self.waiting.values().flatten();
        submissions
            .filter(|submission| !self.busy.contains(&submission.request.feed))
            .filter_map(|submission| submission.retry_at)
            .min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn begin_write(&mut self, submissions: Vec<Submission>) -> Option<Vec<Submission>> {
        self.busy.extend(
            submissions
                .iter()
                .map(|submission| submission.request.feed.clone()),
        );
        (!submissions.is_empty()).then_some(submissions)
    }

    /// Takes one submission of each subscriber in turn, until none is left or the write is full.
    fn take_many(&mut self, kind: Kind, feed: Option<&Feed>, now: Instant) -> Vec<Submission> {
        let (mut taken, mut numbers) = (Vec::new(), 0);
        while taken.len() < MARKS_PER_WRITE_MAX
            && numbers < NUMBERS_PER_WRITE_MAX
            && let Some(submission) = self.take_one(kind, feed, now)
        {
            numbers += submission.numbers();
            taken.push(submission);
        }
        taken
    }

    /// Takes one submission of the first subscriber that has one. The subscribers before it keep
    /// their turn.
    fn take_one(&mut self, kind: Kind, feed: Option<&Feed>, now: Instant) -> Option<Submission> {
        let is_wanted = |submission: &Submission| {
            submission.kind(now) == kind
                && !self.busy.contains(&submission.request.feed)
                && feed
                    .is_none_or(|feed| *feed == submission.request.feed && submission.may_share())
        };
        let place =
            |subscriber| Some((next(self.waiting.get(subscriber)?, is_wanted)?, subscriber));
        let (turn, (place, subscriber)) = self
            .turns
            .iter()
            .enumerate()
            .find_map(|(turn, subscriber)| Some((turn, place(subscriber)?)))?;
        let subscriber = subscriber.clone();
        let queue = self.waiting.get_mut(&subscriber)?;
        let submission = queue.remove(place);
        self.count -= usize::from(submission.is_some());
        self.turns.remove(turn);
        match queue.is_empty() {
            true => _ = self.waiting.remove(&subscriber),
            false => self.turns.push_back(subscriber),
        }
        submission
    }

    fn queue_of(&mut self, submission: &Submission) -> &mut VecDeque<Submission> {
        let subscriber = &submission.request.subscriber;
        self.count += 1;
        if !self.waiting.contains_key(subscriber) {
            self.turns.push_back(subscriber.clone());
        }
        self.waiting.entry(subscriber.clone()).or_default()
    }
}

fn next(queue: &VecDeque<Submission>, is_wanted: impl Fn(&Submission) -> bool) -> Option<usize> {
    let mut before: Vec<&Submission> = Vec::new();
    for (place, submission) in queue.iter().enumerate() {
        let is_first = !before
            .iter()
            .any(|earlier| earlier.is_of_session_and_feed(submission));
        if is_first && is_wanted(submission) {
            return Some(place);
        }
        if is_first && !submission.is_continued {
            before.push(submission);
        }
    }
    None
}

impl Submission {
    fn kind(&self, now: Instant) -> Kind {
        match self.retry_at {
            Some(at) if at <= now => Kind::Apart,
            Some(_) => Kind::Later,
            None if self.is_through() => Kind::Through,
            None => Kind::Named,
        }
    }

    /// Whether it may be written together with others.
    fn may_share(&self) -> bool {
        !self.is_alone && !self.is_through()
    }

    fn is_of_session_and_feed(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inbox, &other.inbox) && self.request.feed == other.request.feed
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fanout::hub::Inbox;
    use crate::model::feed::{Epoch, Seq};
    use crate::model::mark::{Mark, Targets};
    use crate::store::marks::MarkRequest;

    #[test]
    fn a_subscriber_with_many_submissions_delays_no_other() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let (loud, quiet) = (Arc::default(), Arc::default());
        for seq in 1..=500 {
            assert!(queues.push(handle("loud", &loud, "a", &[seq])).is_none());
        }
        for seq in 1..=2 {
            assert!(queues.push(handle("quiet", &quiet, "b", &[seq])).is_none());
        }
        let taken = seqs(&queues.take(now).unwrap());
        assert_eq!(
            (taken.len(), &taken[..5]),
            (MARKS_PER_WRITE_MAX, &[1, 1, 2, 2, 3][..])
        );
        assert_eq!(queues.count, 502 - MARKS_PER_WRITE_MAX);
    }

    #[test]
    fn one_write_has_a_bounded_number_of_seqs() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let session = Arc::default();
        for _ in 0..10 {
            assert!(queues.push(handle("a", &session, "a", &[7; 256])).is_none());
        }
        assert_eq!(queues.take(now).unwrap().len(), 4);
    }

    #[test]
    fn a_read_through_takes_turns_with_all_other_submissions() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let (a, b) = (Arc::default(), Arc::default());
        assert!(queues.push(through("a", &a, "a", 1)).is_none());
        assert!(queues.push(through("a", &a, "a", 2)).is_none());
        assert!(queues.push(through("b", &b, "b", 3)).is_none());
        let mut order = Vec::new();
        for step in 0..6 {
            assert!(
                queues
                    .push(handle("c", &Arc::default(), "c", &[10 + step]))
                    .is_none()
            );
            let mut submissions = queues.take(now).unwrap();
            order.extend(seqs(&submissions));
            queues.end_write(&feeds(&submissions));
            if submissions[0].is_through() {
                queues.push_continued(submissions.remove(0));
            }
        }
        assert_eq!(
            order,
            [10, 1, 11, 12, 3, 13, 14, 2],
            "an unfinished read goes behind the others of its subscriber"
        );
    }

    #[test]
    fn submissions_of_one_session_and_feed_keep_their_order() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let (phone, till) = (Arc::default(), Arc::default());
        assert!(queues.push(through("a", &phone, "a", 100)).is_none());
        assert!(queues.push(handle("a", &phone, "a", &[1])).is_none());
        assert!(queues.push(handle("a", &phone, "b", &[2])).is_none());
        assert!(queues.push(handle("a", &till, "a", &[3])).is_none());
        let named = queues.take(now).unwrap();
        assert_eq!(
            seqs(&named),
            [2, 3],
            "1 comes after the read of its session"
        );
        queues.end_write(&feeds(&named));
        let mut read = queues.take(now).unwrap();
        assert_eq!(seqs(&read), [100]);
        assert!(queues.take(now).is_none(), "its feed is busy");
        queues.end_write(&feeds(&read));
        queues.push_continued(read.remove(0));
        assert_eq!(
            seqs(&queues.take(now).unwrap()),
            [1],
            "after its first part"
        );
    }

    #[test]
    fn a_failed_submission_keeps_its_place_and_delays_no_other() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        let (a, b) = (Arc::default(), Arc::default());
        for seq in 1..=3 {
            assert!(queues.push(handle("a", &a, "a", &[seq])).is_none());
        }
        let mut submissions = queues.take(now).unwrap();
        queues.end_write(&feeds(&submissions));
        submissions
            .iter_mut()
            .for_each(|submission| submission.retry_at = Some(later));
        queues.put_back(submissions);
        assert!(queues.push(handle("b", &b, "b", &[4])).is_none());
        assert!(queues.push(handle("b", &b, "a", &[5])).is_none());
        assert!(queues.take_apart(now).is_none());
        assert_eq!(queues.next_retry(), Some(later));
        assert_eq!(seqs(&queues.take_apart(later).unwrap()), [1, 2, 3]);
        assert_eq!(queues.next_retry(), None, "their feed is busy");
        assert_eq!(seqs(&queues.take(later).unwrap()), [4]);
    }

    #[test]
    fn too_many_submissions_of_one_subscriber_are_refused() {
        let mut queues = Queues::default();
        let sent = (0..600)
            .filter(|seq| {
                queues
                    .push(handle("a", &Arc::default(), "a", &[*seq]))
                    .is_none()
            })
            .count();
        assert_eq!(sent, WAITING_PER_SUBSCRIBER_MAX);
        assert!(
            queues
                .push(handle("b", &Arc::default(), "a", &[1]))
                .is_none()
        );
        for number in 0..WAITING_MAX {
            _ = queues.push(handle(&number.to_string(), &Arc::default(), "a", &[1]));
        }
        assert_eq!(queues.count, WAITING_MAX);
    }

    fn handle(subscriber: &str, session: &Arc<Inbox>, feed: &str, seqs: &[i64]) -> Submission {
        submission(subscriber, session, feed, Mark::Handled(seqs.to_vec()))
    }

    fn through(subscriber: &str, session: &Arc<Inbox>, feed: &str, seq: i64) -> Submission {
        submission(
            subscriber,
            session,
            feed,
            Mark::Read(Targets::Through(Seq::new(seq).unwrap())),
        )
    }

    fn submission(subscriber: &str, session: &Arc<Inbox>, feed: &str, mark: Mark) -> Submission {
        let (feed, subscriber) = (
            Feed::parse(feed).unwrap(),
            Subscriber::parse(subscriber).unwrap(),
        );
        Submission::new(
            MarkRequest {
                feed,
                subscriber,
                mark,
            },
            Epoch::parse("e1").unwrap(),
            session.clone(),
        )
    }

    fn seqs(submissions: &[Submission]) -> Vec<i64> {
        let seq = |submission: &Submission| match &submission.request.mark {
            Mark::Read(Targets::Seqs(seqs)) | Mark::Handled(seqs) => seqs[0],
            Mark::Read(Targets::Through(through)) => through.get(),
        };
        submissions.iter().map(seq).collect()
    }

    fn feeds(submissions: &[Submission]) -> Vec<Feed> {
        submissions
            .iter()
            .map(|submission| submission.request.feed.clone())
            .collect()
    }
}

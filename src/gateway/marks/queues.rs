//! Which requests are written next. Subscribers take turns, so one who sends many requests waits behind them alone. No I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{MARKS_PER_WRITE_MAX, Request};
use crate::model::feed::{Feed, Subscriber};

/// Most requests that wait, of all sessions; past that they are refused as busy.
const WAITING_MAX: usize = 4_096;
/// Most requests that wait of one subscriber: some sessions that each send as many as they may.
const WAITING_PER_SUBSCRIBER_MAX: usize = 512;
/// Most numbers that one write names: it locks the feeds of all its requests until it ends.
const NUMBERS_PER_WRITE_MAX: usize = 1_000;

/// The requests that wait. Those of one session about one feed are written in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Subscribers with requests; the next one first.
    turns: VecDeque<Subscriber>,
    waiting: BTreeMap<Subscriber, VecDeque<Request>>,
    count: usize,
    /// Feeds of the writes under way: a second write would wait for the first one's lock.
    busy: BTreeSet<Feed>,
    through_is_next: bool,
}

/// What kind of write a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of the numbers that it names; together with others.
    Named,
    /// Of all numbers up to one; by itself, because it takes long.
    Through,
    /// Its feed was locked, or it failed: beside the others, so that it holds up none of them.
    Apart,
    /// The same, and not yet.
    Later,
}

impl Queues {
    /// Takes a new request, or gives it back if too many wait.
    pub(super) fn push(&mut self, request: Request) -> Option<Request> {
        let of_subscriber = self
            .waiting
            .get(&request.answer.subscriber)
            .map_or(0, VecDeque::len);
        if self.count >= WAITING_MAX || of_subscriber >= WAITING_PER_SUBSCRIBER_MAX {
            return Some(request);
        }
        self.queue_of(&request).push_back(request);
        None
    }

    /// Takes back requests of a write that has ended, in the order in which they were taken: to be tried again before
    /// whatever their sessions asked for later.
    pub(super) fn put_back(&mut self, requests: Vec<Request>) {
        for request in requests.into_iter().rev() {
            self.queue_of(&request).push_front(request);
        }
    }

    /// Takes back a request that goes on after its session's others.
    pub(super) fn go_on(&mut self, mut request: Request) {
        request.goes_on = true;
        self.queue_of(&request).push_back(request);
    }

    /// The requests of the next write. Their feeds are busy until [`Queues::ended`].
    pub(super) fn take(&mut self, now: Instant) -> Option<Vec<Request>> {
        let kinds = match self.through_is_next {
            true => [Kind::Through, Kind::Named],
            false => [Kind::Named, Kind::Through],
        };
        kinds.into_iter().find_map(|kind| {
            let requests = match kind {
                Kind::Named => self.take_many(kind, None, now),
                _ => self.take_one(kind, None, now).into_iter().collect(),
            };
            self.through_is_next = kind == Kind::Named;
            self.begun(requests)
        })
    }

    /// The requests of the next write that may wait for a lock: all of one feed, or one that failed before.
    pub(super) fn take_apart(&mut self, now: Instant) -> Option<Vec<Request>> {
        let first = self.take_one(Kind::Apart, None, now)?;
        let mut requests = vec![first];
        if requests.iter().all(Request::may_share) {
            let feed = requests[0].answer.feed.clone();
            requests.extend(self.take_many(Kind::Apart, Some(&feed), now));
        }
        self.begun(requests)
    }

    /// The write of these feeds has ended.
    pub(super) fn ended(&mut self, feeds: &[Feed]) {
        for feed in feeds {
            self.busy.remove(feed);
        }
    }

    /// When a request is to be tried again, if none can be taken before.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let requests = self.waiting.values().flatten();
        requests
            .filter(|request| !self.busy.contains(&request.answer.feed))
            .filter_map(|request| request.retry_at)
            .min()
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn begun(&mut self, requests: Vec<Request>) -> Option<Vec<Request>> {
        self.busy
            .extend(requests.iter().map(|request| request.answer.feed.clone()));
        (!requests.is_empty()).then_some(requests)
    }

    /// One of each subscriber in turn, and again, until none is left or it is enough for one write.
    fn take_many(&mut self, kind: Kind, feed: Option<&Feed>, now: Instant) -> Vec<Request> {
        let (mut taken, mut numbers) = (Vec::new(), 0);
        while taken.len() < MARKS_PER_WRITE_MAX
            && numbers < NUMBERS_PER_WRITE_MAX
            && let Some(request) = self.take_one(kind, feed, now)
        {
            numbers += request.numbers();
            taken.push(request);
        }
        taken
    }

    /// One of the first subscriber that has one; those before it keep their turn.
    fn take_one(&mut self, kind: Kind, feed: Option<&Feed>, now: Instant) -> Option<Request> {
        let is_wanted = |request: &Request| {
            request.kind(now) == kind
                && !self.busy.contains(&request.answer.feed)
                && feed.is_none_or(|feed| *feed == request.answer.feed && request.may_share())
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
        let request = queue.remove(place);
        self.count -= usize::from(request.is_some());
        self.turns.remove(turn);
        match queue.is_empty() {
            true => _ = self.waiting.remove(&subscriber),
            false => self.turns.push_back(subscriber),
        }
        request
    }

    /// Counts it in, and gives the queue of its subscriber.
    fn queue_of(&mut self, request: &Request) -> &mut VecDeque<Request> {
        let subscriber = &request.answer.subscriber;
        self.count += 1;
        if !self.waiting.contains_key(subscriber) {
            self.turns.push_back(subscriber.clone());
        }
        self.waiting.entry(subscriber.clone()).or_default()
    }
}

/// The place of the first that is wanted and for which no other of its session and feed must be written before.
fn next(queue: &VecDeque<Request>, is_wanted: impl Fn(&Request) -> bool) -> Option<usize> {
    let mut before: Vec<&Request> = Vec::new();
    for (place, request) in queue.iter().enumerate() {
        let is_first = !before
            .iter()
            .any(|earlier| earlier.is_of_session_and_feed(request));
        if is_first && is_wanted(request) {
            return Some(place);
        }
        if is_first && !request.goes_on {
            before.push(request);
        }
    }
    None
}

impl Request {
    fn kind(&self, now: Instant) -> Kind {
        match self.retry_at {
            Some(at) if at <= now => Kind::Apart,
            Some(_) => Kind::Later,
            None if self.is_through() => Kind::Through,
            None => Kind::Named,
        }
    }

    /// Whether one write may do it together with others.
    fn may_share(&self) -> bool {
        !self.is_alone && !self.is_through()
    }

    fn is_of_session_and_feed(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.asked_by, &other.asked_by) && self.answer.feed == other.answer.feed
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
    fn subscribers_take_turns_however_many_requests_one_has() {
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
    fn one_write_names_a_bounded_number_of_notifications() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let session = Arc::default();
        for _ in 0..10 {
            assert!(queues.push(handle("a", &session, "a", &[7; 256])).is_none());
        }
        assert_eq!(queues.take(now).unwrap().len(), 4);
    }

    #[test]
    fn a_read_through_takes_turns_with_named_numbers_and_other_subscribers() {
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
            let mut requests = queues.take(now).unwrap();
            order.extend(seqs(&requests));
            queues.ended(&feeds(&requests));
            if requests[0].is_through() {
                queues.go_on(requests.remove(0));
            }
        }
        assert_eq!(
            order,
            [10, 1, 11, 12, 3, 13, 14, 2],
            "an unfinished one goes to the back of its subscriber's"
        );
    }

    #[test]
    fn requests_of_one_session_and_feed_keep_their_order() {
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
        queues.ended(&feeds(&named));
        let mut read = queues.take(now).unwrap();
        assert_eq!(seqs(&read), [100]);
        assert!(queues.take(now).is_none(), "its feed is busy");
        queues.ended(&feeds(&read));
        queues.go_on(read.remove(0));
        assert_eq!(
            seqs(&queues.take(now).unwrap()),
            [1],
            "after its first part"
        );
    }

    #[test]
    fn a_request_that_is_tried_again_keeps_its_place_and_holds_up_no_other() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        let (a, b) = (Arc::default(), Arc::default());
        for seq in 1..=3 {
            assert!(queues.push(handle("a", &a, "a", &[seq])).is_none());
        }
        let mut requests = queues.take(now).unwrap();
        queues.ended(&feeds(&requests));
        requests
            .iter_mut()
            .for_each(|request| request.retry_at = Some(later));
        queues.put_back(requests);
        assert!(queues.push(handle("b", &b, "b", &[4])).is_none());
        assert!(queues.push(handle("b", &b, "a", &[5])).is_none());
        assert!(queues.take_apart(now).is_none());
        assert_eq!(queues.next_retry(), Some(later));
        assert_eq!(seqs(&queues.take_apart(later).unwrap()), [1, 2, 3]);
        assert_eq!(queues.next_retry(), None, "their feed is busy");
        assert_eq!(seqs(&queues.take(later).unwrap()), [4]);
    }

    #[test]
    fn too_many_requests_of_one_subscriber_are_refused_and_others_are_not() {
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

    fn handle(subscriber: &str, session: &Arc<Inbox>, feed: &str, seqs: &[i64]) -> Request {
        request(subscriber, session, feed, Mark::Handled(seqs.to_vec()))
    }

    fn through(subscriber: &str, session: &Arc<Inbox>, feed: &str, seq: i64) -> Request {
        request(
            subscriber,
            session,
            feed,
            Mark::Read(Targets::Through(Seq::new(seq).unwrap())),
        )
    }

    fn request(subscriber: &str, session: &Arc<Inbox>, feed: &str, mark: Mark) -> Request {
        let (feed, subscriber) = (
            Feed::parse(feed).unwrap(),
            Subscriber::parse(subscriber).unwrap(),
        );
        Request::new(
            MarkRequest {
                feed,
                subscriber,
                mark,
            },
            Epoch::parse("e1").unwrap(),
            session.clone(),
        )
    }

    /// The first number of each.
    fn seqs(requests: &[Request]) -> Vec<i64> {
        let seq = |request: &Request| match &request.answer.mark {
            Mark::Read(Targets::Seqs(seqs)) | Mark::Handled(seqs) => seqs[0],
            Mark::Read(Targets::Through(through)) => through.get(),
        };
        requests.iter().map(seq).collect()
    }

    fn feeds(requests: &[Request]) -> Vec<Feed> {
        requests
            .iter()
            .map(|request| request.answer.feed.clone())
            .collect()
    }
}

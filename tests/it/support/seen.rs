//! The promise, checked on every frame of every session in every story.

use std::collections::{BTreeMap, VecDeque};

use super::frames::{CaughtUp, Frame, Heartbeat, Notification, Skipped, State, Welcome};

/// The frames that one session received so far. It panics if a number comes twice, out of order, or
/// after a gap without `skipped`. It also panics at a foreign feed, and if more than the window is
/// outstanding.
pub struct Seen {
    who: String,
    window: usize,
    feeds: BTreeMap<String, Place>,
}

/// The place of the session in a feed.
#[derive(Debug)]
struct Place {
    /// The number that must come next.
    next: u64,
    /// The last one stored when the session connected.
    last_at_welcome: u64,
    /// The last version that the session received.
    version: u64,
    /// Sent, and not acknowledged by this client.
    outstanding: VecDeque<u64>,
    caught_up: Option<u64>,
}

impl Seen {
    /// The start of a session. `after` and `versions` are the client's own places, by feed.
    pub fn new(
        who: &str,
        welcome: &Welcome,
        after: &BTreeMap<String, u64>,
        versions: &BTreeMap<String, u64>,
    ) -> Self {
        let feeds = welcome.feeds.iter().map(|state| {
            let cursor = after.get(&state.feed).copied().unwrap_or(state.cursor);
            let version = versions.get(&state.feed).copied().unwrap_or(state.version);
            let (last_at_welcome, outstanding) = (state.last, VecDeque::new());
            let place = Place {
                next: cursor + 1,
                last_at_welcome,
                version,
                outstanding,
                caught_up: None,
            };
            (state.feed.clone(), place)
        });
        Self {
            who: who.to_owned(),
            window: welcome.window,
            feeds: feeds.collect(),
        }
    }

    /// Checks a received frame.
    pub fn on_frame(&mut self, frame: &Frame) {
        match frame {
            Frame::Welcome(_) => panic!("{}: a second welcome", self.who),
            Frame::Notification(notification) => self.on_notification(notification),
            Frame::Skipped(skipped) => self.on_skipped(skipped),
            Frame::CaughtUp(caught_up) => self.on_caught_up(caught_up),
            Frame::Heartbeat(heartbeat) => self.on_heartbeat(heartbeat),
            Frame::State(state) => self.on_state(state),
            Frame::Goaway(_) | Frame::Pong | Frame::Error(_) => {}
        }
    }

    /// The client acknowledges `feed` up to `seq`.
    pub fn on_ack(&mut self, feed: &str, seq: u64) {
        if let Some(place) = self.feeds.get_mut(feed) {
            place.outstanding.retain(|outstanding| *outstanding > seq);
        }
    }

    /// The last number in `feed` that arrived or was skipped.
    pub fn through(&self, feed: &str) -> u64 {
        self.feeds
            .get(feed)
            .unwrap_or_else(|| panic!("{}: no feed {feed} in the welcome", self.who))
            .next
            - 1
    }

    /// The last received version of `feed`.
    pub fn version(&self, feed: &str) -> u64 {
        self.feeds.get(feed).map_or(0, |place| place.version)
    }

    /// The `seq` of the feed's `caught_up`, if it arrived.
    pub fn caught_up(&self, feed: &str) -> Option<u64> {
        self.feeds.get(feed).and_then(|place| place.caught_up)
    }

    /// The number of notifications that are sent and not acknowledged.
    pub fn outstanding(&self) -> usize {
        self.feeds
            .values()
            .map(|place| place.outstanding.len())
            .sum()
    }

    fn on_state(&mut self, state: &State) {
        let who = self.who.clone();
        let place = self.place(&state.feed);
        if let Some(version) = state.version {
            let expected = place.version + 1;
            place.version = version;
            assert_eq!(
                version, expected,
                "{who}: change {expected} was due and this came: {state:?}"
            );
        }
    }

    fn on_notification(&mut self, notification: &Notification) {
        let place = self.place(&notification.feed);
        let expected = place.next;
        place.next = notification.seq + 1;
        place.outstanding.push_back(notification.seq);
        let (who, feed) = (&self.who, &notification.feed);
        assert_eq!(
            notification.seq, expected,
            "{who}: in {feed}, {expected} was due and this came: {notification:?}"
        );
        let outstanding = self.outstanding();
        assert!(
            outstanding <= self.window,
            "{who}: {outstanding} outstanding, the window is {}",
            self.window
        );
    }

    fn on_skipped(&mut self, skipped: &Skipped) {
        let place = self.place(&skipped.feed);
        let expected = place.next;
        place.next = skipped.through + 1;
        assert!(
            skipped.from == expected && skipped.through >= expected,
            "{}: {expected} was due: {skipped:?}",
            self.who
        );
    }

    fn on_caught_up(&mut self, caught_up: &CaughtUp) {
        let place = self.place(&caught_up.feed);
        let (before, sent, stored) = (
            place.caught_up.replace(caught_up.seq),
            place.next - 1,
            place.last_at_welcome,
        );
        assert_eq!(before, None, "{}: a second {caught_up:?}", self.who);
        let truthful = stored <= sent && caught_up.seq <= sent;
        assert!(
            truthful,
            "{}: {caught_up:?}, but {sent} sent of the {stored} stored at the welcome",
            self.who
        );
    }

    fn on_heartbeat(&self, heartbeat: &Heartbeat) {
        for (feed, sent) in &heartbeat.sent {
            let place = self
                .feeds
                .get(feed)
                .unwrap_or_else(|| panic!("{}: foreign feed: {heartbeat:?}", self.who));
            assert!(
                *sent < place.next,
                "{}: {heartbeat:?}, but {} is due next in {feed}",
                self.who,
                place.next
            );
        }
    }

    fn place(&mut self, feed: &str) -> &mut Place {
        let who = &self.who;
        self.feeds
            .get_mut(feed)
            .unwrap_or_else(|| panic!("{who}: the feed {feed} is none of the welcome's"))
    }
}

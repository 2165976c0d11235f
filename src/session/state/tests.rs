//! The session by script, and the promise as properties over any order of what can happen to it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::notification::NotificationFields;

const WINDOW: usize = 4;

fn seq(number: i64) -> Seq {
    Seq::new(number).unwrap()
}

fn feed() -> Feed {
    Feed::parse("m").unwrap()
}

fn wall() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap()
}

fn notification(number: i64) -> Arc<Notification> {
    expiring(number, None)
}

fn expiring(number: i64, expires_at: Option<OffsetDateTime>) -> Arc<Notification> {
    Arc::new(Notification::render(&NotificationFields {
        feed: &feed(),
        seq: seq(number),
        id: "e",
        source: "/s",
        event: "t",
        time: wall(),
        data: None,
        collapse_key: None,
        expires_at,
        read_at: None,
        handled_at: None,
        handled_by: None,
    }))
}

fn page(after: i64, through: i64, last: i64) -> Page {
    let mut page = Page::new(feed(), seq(after));
    page.last = seq(last);
    (after + 1..=through).for_each(|number| page.push(notification(number)));
    page.close();
    page
}

fn session_at(now: Instant, acked: i64, last: i64) -> Session {
    let rules = Rules { window: WINDOW, heartbeat: Duration::from_secs(10) };
    let starts = vec![Start::new(feed(), seq(acked), seq(last), None)];
    Session::new(rules, starts, Ends { token: now + Duration::from_secs(3_600), age: None }, now)
}

fn session(acked: i64, last: i64) -> Session {
    session_at(Instant::now(), acked, last)
}

fn ack(session: &mut Session, number: i64) {
    session.on_frame(ClientFrame::Ack { feed: "m".into(), seq: number }, Instant::now());
}

/// The outputs as short words: `3` a notification, `skip 3-5 expired`, `caught_up 5`, `read 3`, `ack 3`, `close 4401`.
fn words(session: &mut Session) -> Vec<String> {
    let frame = |text: &str| {
        let frame: serde_json::Value = serde_json::from_str(text).unwrap();
        match frame["type"].as_str().unwrap() {
            "notification" => frame["seq"].to_string(),
            "skipped" => format!("skip {}-{} {}", frame["from"], frame["through"], frame["reason"].as_str().unwrap()),
            "caught_up" => format!("caught_up {}", frame["seq"]),
            "error" => format!("error {}", frame["code"].as_str().unwrap()),
            other => other.into(),
        }
    };
    let word = |output| match output {
        Output::Notification(text) | Output::Send(text) => frame(&text),
        Output::Ping => "ping_control".into(),
        Output::Read { after, wanted, .. } => format!("read {wanted} after {after}"),
        Output::Ack { seq, .. } => format!("ack {seq}"),
        Output::Verify { .. } => "verify".into(),
        Output::Close(close) => format!("close {}", close.code()),
    };
    session.take_outputs().into_iter().map(word).collect()
}

#[test]
fn a_feed_without_backlog_is_caught_up_at_once_and_hints_are_sent_as_they_are() {
    let mut session = session(5, 5);
    assert_eq!(words(&mut session), ["caught_up 5"]);
    session.on_hints(vec![notification(6), notification(7)], wall());
    assert_eq!(words(&mut session), ["6", "7"]);
}

#[test]
fn a_backlog_is_read_in_pages_as_far_as_the_window_goes() {
    let mut session = session(0, 6);
    assert_eq!(words(&mut session), ["read 4 after 0"]);
    session.on_page(&page(0, 6, 6), wall());
    assert_eq!(words(&mut session), ["1", "2", "3", "4"]);
    ack(&mut session, 1);
    assert_eq!(words(&mut session), ["ack 1", "read 1 after 4"]);
    ack(&mut session, 3);
    assert_eq!(words(&mut session), ["ack 3"], "one read at a time");
    session.on_page(&page(4, 6, 6), wall());
    assert_eq!(words(&mut session), ["5", "6", "caught_up 6"]);
}

#[test]
fn a_gap_is_read_and_what_came_meanwhile_is_not_read_again() {
    let mut session = session(0, 0);
    words(&mut session);
    session.on_hints(vec![notification(2)], wall());
    assert_eq!(words(&mut session), ["read 2 after 0"], "1 was lost");
    session.on_hints(vec![notification(3)], wall());
    assert_eq!(words(&mut session), [""; 0], "one read at a time");
    session.on_page(&page(0, 1, 1), wall());
    assert_eq!(words(&mut session), ["1", "2", "3"]);
}

#[test]
fn a_number_is_never_sent_twice() {
    let mut session = session(0, 2);
    words(&mut session);
    session.on_hints(vec![notification(1), notification(2)], wall());
    assert_eq!(words(&mut session), ["1", "2", "caught_up 2"], "the hints were faster than the page");
    session.on_page(&page(0, 2, 2), wall());
    session.on_hints(vec![notification(1), notification(2)], wall());
    assert_eq!(words(&mut session), [""; 0]);
}

#[test]
fn what_expired_is_skipped_live_too() {
    let mut session = session(0, 0);
    words(&mut session);
    session.on_hints(vec![expiring(1, Some(wall())), notification(2)], wall());
    assert_eq!(words(&mut session), ["skip 1-1 expired", "2"]);
}

#[test]
fn skipped_numbers_need_no_room_in_the_window() {
    let mut session = session(0, 9);
    words(&mut session);
    let mut page = Page::new(feed(), seq(0));
    page.last = seq(9);
    (1..=8).for_each(|number| page.skip(seq(number), SkipReason::Collapsed));
    page.push(notification(9));
    session.on_page(&page, wall());
    assert_eq!(words(&mut session), ["skip 1-8 collapsed", "9", "caught_up 9"]);
}

#[test]
fn an_ack_is_only_for_what_was_sent() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_hints(vec![notification(4)], wall());
    words(&mut session);
    for (number, said) in [(5, "error ack_not_sent"), (-1, "error ack_not_sent"), (4, "ack 4")] {
        ack(&mut session, number);
        assert_eq!(words(&mut session), [said]);
    }
    ack(&mut session, 4);
    ack(&mut session, 2);
    assert_eq!(words(&mut session), [""; 0], "an ack of what is acknowledged says nothing new");
    session.on_frame(ClientFrame::Ack { feed: "other".into(), seq: 1 }, Instant::now());
    assert_eq!(words(&mut session), ["error unknown_feed"]);
}

#[test]
fn a_client_that_claims_more_than_is_stored_gets_what_comes() {
    let now = Instant::now();
    let rules = Rules { window: WINDOW, heartbeat: Duration::from_secs(10) };
    let starts = vec![Start::new(feed(), seq(0), seq(7), Some(seq(90)))];
    let mut session = Session::new(rules, starts, Ends { token: now + Duration::from_secs(60), age: None }, now);
    assert_eq!(words(&mut session), ["caught_up 7"]);
    session.on_hints(vec![notification(8)], wall());
    assert_eq!(words(&mut session), ["8"]);
}

#[test]
fn numbers_that_the_database_does_not_have_are_not_asked_for_again_and_again() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_newest(&feed(), seq(9));
    assert_eq!(words(&mut session), ["read 4 after 3"]);
    session.on_page(&page(3, 3, 3), wall());
    assert_eq!(words(&mut session), [""; 0], "there is nothing after 3");

    session.on_newest(&feed(), seq(9));
    assert_eq!(words(&mut session), ["read 4 after 3"]);
    session.on_newest(&feed(), seq(10));
    session.on_page(&page(3, 3, 3), wall());
    assert_eq!(words(&mut session), ["read 4 after 3"], "what was announced since the question is asked for");
}

#[test]
fn a_database_that_was_set_back_ends_the_session() {
    let mut session = session(3, 5);
    words(&mut session);
    session.on_page(&page(3, 3, 2), wall());
    assert_eq!(words(&mut session), ["close 1011"]);
}

#[test]
fn timers_beat_and_end() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut session = session_at(start, 0, 0);
    words(&mut session);
    assert_eq!(session.deadline(), after(10));
    session.on_tick(after(10));
    assert_eq!(words(&mut session), ["heartbeat", "ping_control"]);
    session.on_control(after(15));
    session.on_tick(after(44));
    assert_eq!(words(&mut session), ["heartbeat", "ping_control"], "it was heard 29 seconds ago");
    session.on_tick(after(45));
    assert_eq!(words(&mut session), ["close 4408"]);

    let mut session = session_at(start, 0, 0);
    words(&mut session);
    session.on_tick(after(3_600));
    assert_eq!(words(&mut session), ["close 4401"]);

    let mut session = session_at(start, 0, 0);
    words(&mut session);
    session.on_verified(Ok(after(9_000)));
    session.on_control(after(3_590));
    session.on_tick(after(3_600));
    assert_eq!(words(&mut session), ["heartbeat", "ping_control"], "a fresh token keeps the session");
}

#[test]
fn too_many_frames_end_the_session() {
    let now = Instant::now();
    let mut session = session_at(now, 0, 0);
    words(&mut session);
    let sent = (0..10_000).find(|_| {
        session.on_frame(ClientFrame::Ping, now);
        words(&mut session) == ["close 4429"]
    });
    assert!(sent.is_some_and(|sent| sent >= FRAMES_SAVED_MAX as usize));
}

/// What can happen to a session and its feed.
#[derive(Debug, Clone)]
enum Happening {
    /// So many are stored; each hint arrives or is lost.
    Stored(Vec<bool>),
    /// The page that was asked for comes.
    Page,
    /// The client acknowledges this part (in percent) of what it has.
    Ack(i64),
    /// The sweep looks.
    Sweep,
    /// An old hint comes again.
    Again(i64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        proptest::collection::vec(any::<bool>(), 1..6).prop_map(Happening::Stored),
        Just(Happening::Page),
        (0..=100_i64).prop_map(Happening::Ack),
        Just(Happening::Sweep),
        (1..30_i64).prop_map(Happening::Again),
    ]
}

/// A client and a database around a session, which check every output against the promise.
struct World {
    session: Session,
    stored: i64,
    asked: Option<i64>,
    received: i64,
    acked: i64,
    skipped: BTreeSet<i64>,
}

impl World {
    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Stored(arrivals) => {
                for arrives in arrivals {
                    self.stored += 1;
                    if arrives {
                        self.session.on_hints(vec![self.expiring_every_fifth(self.stored)], wall());
                    }
                }
            }
            Happening::Page => self.answer(),
            Happening::Ack(percent) => {
                let number = self.acked + (self.received - self.acked) * percent / 100;
                ack(&mut self.session, number);
                self.acked = number;
            }
            Happening::Sweep => self.session.on_newest(&feed(), seq(self.stored)),
            Happening::Again(number) if number <= self.stored => {
                self.session.on_hints(vec![self.expiring_every_fifth(number)], wall());
            }
            Happening::Again(_) => {}
        }
        self.check_outputs();
    }

    fn answer(&mut self) {
        if let Some(after) = self.asked.take() {
            let mut page = Page::new(feed(), seq(after));
            page.last = seq(self.stored);
            for number in after + 1..=self.stored.min(after + 7) {
                match number % 5 {
                    0 => page.skip(seq(number), SkipReason::Expired),
                    _ => page.push(notification(number)),
                }
            }
            page.close();
            self.session.on_page(&page, wall());
        }
    }

    fn expiring_every_fifth(&self, number: i64) -> Arc<Notification> {
        expiring(number, (number % 5 == 0).then(wall))
    }

    fn check_outputs(&mut self) {
        for word in words(&mut self.session) {
            if let Ok(number) = word.parse::<i64>() {
                assert_eq!(number, self.received + 1, "in order, without a gap, none twice");
                assert_ne!(number % 5, 0, "what expired is not sent");
                self.received = number;
            } else if let Some(asked) = word.strip_prefix("read ") {
                assert!(self.asked.is_none(), "one page at a time");
                self.asked = asked.rsplit(' ').next().unwrap().parse().ok();
                assert_eq!(self.asked, Some(self.received), "reads on from what it sent");
            } else if let Some(range) = word.strip_prefix("skip ") {
                let (from, through) = range.split(' ').next().unwrap().split_once('-').unwrap();
                let (from, through) = (from.parse::<i64>().unwrap(), through.parse::<i64>().unwrap());
                assert_eq!(from, self.received + 1);
                assert!((from..=through).all(|number| number % 5 == 0), "only what expired is skipped");
                self.skipped.extend(from..=through);
                self.received = through;
            } else {
                assert!(word.starts_with("ack ") || word.starts_with("caught_up "), "{word}");
            }
            let outstanding = (self.acked + 1..=self.received).filter(|number| !self.skipped.contains(number)).count();
            assert!(outstanding <= WINDOW, "{outstanding} are outstanding");
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_everything_stored_is_sent_once_and_in_order(
        stored in 0..20_i64,
        happenings in proptest::collection::vec(happening(), 0..60),
    ) {
        let mut world = World {
            session: session(0, stored),
            stored,
            asked: None,
            received: 0,
            acked: 0,
            skipped: BTreeSet::new(),
        };
        world.check_outputs();
        happenings.into_iter().for_each(|happening| world.happen(happening));
        // Then the world is kind: pages come, acks come, the sweep looks. Nothing may be stuck.
        for _ in 0..=world.stored {
            [Happening::Sweep, Happening::Page, Happening::Ack(100)].into_iter().for_each(|kind| world.happen(kind));
        }
        prop_assert_eq!(world.received, world.stored, "all of it arrived");
    }
}

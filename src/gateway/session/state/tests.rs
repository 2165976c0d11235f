//! The session by script.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod properties;

use super::*;
use crate::model::mark::{Counts, Marked};
use crate::model::notification::NotificationFields;

const WINDOW: usize = 4;

fn seq(number: i64) -> Seq {
    Seq::new(number).unwrap()
}

fn version(number: i64) -> Version {
    Version::new(number).unwrap()
}

fn epoch() -> Epoch {
    Epoch::parse("e1").unwrap()
}

/// A place that a client kept.
fn place<N>(number: N, epoch: Option<Epoch>) -> Option<Place<N>> {
    Some(Place { number, epoch })
}

fn stored(last: i64, newest_version: i64) -> Newest {
    Newest {
        seq: seq(last),
        version: version(newest_version),
    }
}

/// Somebody handled this one.
fn change(number: i64, highest: i64) -> Arc<StateFrame> {
    let counts = Counts {
        unread: 0,
        unhandled: 0,
        last: seq(highest),
    };
    let handled = Marked::Handled {
        at: wall(),
        by: Some("anna".into()),
    };
    Arc::new(StateFrame::new(
        feed(),
        version(number),
        &Targets::Seqs(vec![highest]),
        &handled,
        counts,
    ))
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
        progress: None,
        expires_at,
        read_at: None,
        handled_at: None,
        handled_by: None,
    }))
}

fn page(after: i64, through: i64, last: i64) -> Page {
    let mut page = Page::new(feed(), seq(after));
    page.epoch = Some(epoch());
    page.last = seq(last);
    (after + 1..=through).for_each(|number| page.push(notification(number)));
    page.close();
    page
}

fn session_at(now: Instant, acked: i64, last: i64) -> Session {
    begin(
        now,
        Start::new(
            feed(),
            &epoch(),
            seq(acked),
            stored(last, 0),
            KeptByClient::default(),
            false,
        ),
    )
}

/// One that begins after people said something already.
fn session_after(acked: i64, last: i64, newest_version: i64) -> Session {
    let newest = stored(last, newest_version);
    begin(
        Instant::now(),
        Start::new(
            feed(),
            &epoch(),
            seq(acked),
            newest,
            KeptByClient::default(),
            false,
        ),
    )
}

fn begin(now: Instant, start: Start) -> Session {
    let rules = Rules {
        window: WINDOW,
        heartbeat: Duration::from_secs(10),
    };
    let ends = Ends {
        token: now + Duration::from_secs(3_600),
        age: None,
        epoch_retry_ms: 7,
    };
    Session::new(rules, epoch(), vec![start], ends, now)
}

fn session(acked: i64, last: i64) -> Session {
    session_at(Instant::now(), acked, last)
}

fn ack(session: &mut Session, number: i64) {
    session.on_frame(
        ClientFrame::Ack {
            feed: "m".into(),
            seq: number,
        },
        Instant::now(),
    );
}

/// The outputs as short words: `3` a notification, `skip 3-5 expired`, `caught_up 5`, `read 3`, `ack 3`, `close 4401`.
fn words(session: &mut Session) -> Vec<String> {
    let frame = |text: &str| {
        let frame: serde_json::Value = serde_json::from_str(text).unwrap();
        match frame["type"].as_str().unwrap() {
            "notification" if frame["id"] == "handled" => format!("{} handled", frame["seq"]),
            "notification" => frame["seq"].to_string(),
            "skipped" => format!(
                "skip {}-{} {}",
                frame["from"],
                frame["through"],
                frame["reason"].as_str().unwrap()
            ),
            "caught_up" => format!("caught_up {}", frame["seq"]),
            "state" => format!("state {}", frame["version"]),
            "error" => format!("error {}", frame["code"].as_str().unwrap()),
            other => other.into(),
        }
    };
    let word = |output| {
        Some(match output {
            Output::Notification(notification) => frame(&notification.frame),
            Output::Send(text) => frame(&text),
            Output::Ping => "ping_control".into(),
            Output::Read {
                after,
                wanted,
                changes_after: None,
                ..
            } => format!("read {wanted} after {after}"),
            Output::Read {
                after,
                wanted,
                changes_after: Some(version),
                ..
            } => {
                format!(
                    "read {wanted} after {after} and changes after {}",
                    version.get()
                )
            }
            Output::Say { said, .. } => format!("say {said:?}"),
            // Told by a test of its own.
            Output::Acknowledged(_) => return None,
            Output::Ack { seq, .. } => format!("ack {seq}"),
            Output::Doubt => "doubt".into(),
            Output::Verify { .. } => "verify".into(),
            Output::Close(close) => format!("close {}", close.code()),
        })
    };
    session
        .take_outputs()
        .into_iter()
        .filter_map(word)
        .collect()
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
fn each_notification_is_told_once_to_be_acknowledged_with_its_time() {
    let mut session = session(0, 0);
    session.on_hints((1..=4).map(notification).collect(), wall());
    session.take_outputs();
    assert!(session.is_window_full(), "the window is full");
    let acknowledged = |session: &mut Session| {
        let outputs = session.take_outputs().into_iter();
        outputs
            .filter_map(|output| {
                if let Output::Acknowledged(sent) = output {
                    Some(sent)
                } else {
                    None
                }
            })
            .collect::<Vec<_>>()
    };
    for (through, numbers) in [(3, vec![1, 2, 3]), (3, vec![]), (4, vec![4])] {
        ack(&mut session, through);
        let expected: Vec<_> = numbers
            .into_iter()
            .map(|number| Sent {
                seq: seq(number),
                time: Some(wall()),
                origin: None,
            })
            .collect();
        assert_eq!(acknowledged(&mut session), expected);
    }
    assert!(!session.is_window_full());
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
    assert_eq!(
        words(&mut session),
        ["1", "2", "caught_up 2"],
        "the hints were faster than the page"
    );
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
    let mut page = page(0, 0, 0);
    page.last = seq(9);
    (1..=8).for_each(|number| page.skip(seq(number), SkipReason::Collapsed));
    page.push(notification(9));
    session.on_page(&page, wall());
    assert_eq!(
        words(&mut session),
        ["skip 1-8 collapsed", "9", "caught_up 9"]
    );
}

#[test]
fn an_ack_is_only_for_what_was_sent() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_hints(vec![notification(4)], wall());
    words(&mut session);
    for (number, said) in [
        (5, "error ack_not_sent"),
        (-1, "error ack_not_sent"),
        (4, "ack 4"),
    ] {
        ack(&mut session, number);
        assert_eq!(words(&mut session), [said]);
    }
    ack(&mut session, 4);
    ack(&mut session, 2);
    assert_eq!(
        words(&mut session),
        [""; 0],
        "an ack of what is acknowledged says nothing new"
    );
    session.on_frame(
        ClientFrame::Ack {
            feed: "other".into(),
            seq: 1,
        },
        Instant::now(),
    );
    assert_eq!(words(&mut session), ["error unknown_feed"]);
}

#[test]
fn a_client_that_claims_more_than_is_stored_gets_what_comes() {
    let kept = KeptByClient {
        after: place(seq(90), None),
        version: place(version(9), None),
    };
    let mut session = begin(
        Instant::now(),
        Start::new(feed(), &epoch(), seq(0), stored(7, 2), kept, false),
    );
    assert_eq!(words(&mut session), ["caught_up 7"]);
    session.on_hints(vec![notification(8)], wall());
    session.on_changes(&[change(3, 8)]);
    assert_eq!(words(&mut session), ["8", "state 3"]);
}

#[test]
fn numbers_that_the_database_does_not_have_are_not_asked_for_again_and_again() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_newest(&feed(), stored(9, 0));
    assert_eq!(words(&mut session), ["read 4 after 3"]);
    session.on_page(&page(3, 3, 3), wall());
    assert_eq!(words(&mut session), [""; 0], "there is nothing after 3");

    session.on_newest(&feed(), stored(9, 0));
    assert_eq!(words(&mut session), ["read 4 after 3"]);
    session.on_newest(&feed(), stored(10, 0));
    session.on_page(&page(3, 3, 3), wall());
    assert_eq!(
        words(&mut session),
        ["read 4 after 3"],
        "what was announced since the question is asked for"
    );
}

#[test]
fn a_place_is_used_only_in_its_own_epoch() {
    let other = Epoch::parse("e0").unwrap();
    let cases = [
        (
            place(seq(5), Some(epoch())),
            place(version(1), Some(epoch())),
            (5, 1),
        ),
        (
            place(seq(5), Some(other.clone())),
            place(version(1), Some(other)),
            (3, 2),
        ),
        (
            place(seq(8), Some(epoch())),
            place(version(3), Some(epoch())),
            (3, 2),
        ),
        (place(seq(5), None), place(version(1), None), (5, 1)),
        (None, None, (3, 2)),
    ];
    for (after, version, begins) in cases {
        let kept = KeptByClient { after, version };
        let start = Start::new(feed(), &epoch(), seq(3), stored(7, 2), kept.clone(), false);
        assert_eq!((start.after.get(), start.version.get()), begins, "{kept:?}");
    }
}

#[test]
fn a_cursor_above_the_newest_number_hides_nothing() {
    let mut session = begin(
        Instant::now(),
        Start::new(
            feed(),
            &epoch(),
            seq(9),
            stored(7, 0),
            KeptByClient::default(),
            false,
        ),
    );
    assert_eq!(words(&mut session), ["caught_up 7"]);
    session.on_hints(vec![notification(8)], wall());
    assert_eq!(words(&mut session), ["8"]);
}

#[test]
fn a_database_that_was_set_back_ends_the_session_and_is_doubted() {
    let mut session = session(3, 5);
    words(&mut session);
    session.on_page(&page(3, 3, 2), wall());
    assert_eq!(words(&mut session), ["doubt", "close 4410"]);
}

#[test]
fn a_canarys_feed_that_was_forgotten_ends_its_session_without_a_doubt() {
    let canary = Feed::parse("shopbell-canary/1").unwrap();
    let start = Start::new(
        canary.clone(),
        &epoch(),
        seq(3),
        stored(5, 0),
        KeptByClient::default(),
        false,
    );
    let mut session = begin(Instant::now(), start);
    words(&mut session);
    let mut page = page(3, 3, 2);
    page.feed = canary;
    session.on_page(&page, wall());
    assert_eq!(words(&mut session), ["close 4410"]);
}

#[test]
fn a_page_of_another_epoch_ends_the_session() {
    for epoch in [None, Some(Epoch::parse("e2").unwrap())] {
        let mut session = session(3, 5);
        words(&mut session);
        let mut page = page(3, 5, 5);
        page.epoch = epoch;
        session.on_page(&page, wall());
        assert_eq!(
            words(&mut session),
            ["close 4410"],
            "it is no reason to doubt the database"
        );
    }
}

#[test]
fn another_epoch_ends_the_session_after_its_own_wait() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_epoch(&epoch());
    assert_eq!(words(&mut session), [""; 0]);
    session.on_epoch(&Epoch::parse("e2").unwrap());
    assert_eq!(
        session.take_outputs(),
        [Output::Close(Close::EpochChanged { retry_after_ms: 7 })]
    );
}

#[test]
fn changes_are_sent_in_order_and_a_gap_is_read() {
    let mut session = session(5, 5);
    words(&mut session);
    session.on_changes(&[change(1, 4)]);
    assert_eq!(words(&mut session), ["state 1"]);
    session.on_changes(&[change(3, 4), change(1, 4)]);
    assert_eq!(
        words(&mut session),
        ["read 0 after 5 and changes after 1"],
        "2 was lost"
    );
    let mut answer = page(5, 5, 5);
    answer.version = version(3);
    answer.changes = vec![change(2, 1), change(3, 4)];
    session.on_page(&answer, wall());
    session.on_changes(&[change(2, 1), change(3, 4)]);
    assert_eq!(words(&mut session), ["state 2", "state 3"], "each once");
    session.on_newest(&feed(), stored(5, 4));
    assert_eq!(
        words(&mut session),
        ["read 0 after 5 and changes after 3"],
        "the sweep found it"
    );
    session.on_page(&answer, wall());
    assert_eq!(
        words(&mut session),
        [""; 0],
        "it is not stored: it is not asked for again and again"
    );
}

#[test]
fn a_client_that_keeps_its_place_gets_the_changes_after_it_and_sees_where_they_are_not_kept_any_more()
 {
    let kept = KeptByClient {
        after: place(seq(5), None),
        version: place(version(2), None),
    };
    let mut session = begin(
        Instant::now(),
        Start::new(feed(), &epoch(), seq(5), stored(5, 9), kept, false),
    );
    assert_eq!(
        words(&mut session),
        ["caught_up 5", "read 0 after 5 and changes after 2"]
    );
    let mut answer = page(5, 5, 5);
    answer.version = version(9);
    answer.changes = vec![change(8, 1), change(9, 4)];
    session.on_page(&answer, wall());
    assert_eq!(
        words(&mut session),
        ["state 8", "state 9"],
        "3 to 7 are gone"
    );
}

#[test]
fn a_notification_is_never_sent_as_it_was_before_a_change_that_was_sent() {
    let mut session = session(0, 1);
    assert_eq!(words(&mut session), ["read 1 after 0"]);
    session.on_changes(&[change(1, 2)]);
    assert_eq!(words(&mut session), ["state 1"]);
    session.on_hints(
        vec![notification(1), notification(2), notification(3)],
        wall(),
    );
    assert_eq!(
        words(&mut session),
        [""; 0],
        "these hints may be older than the change"
    );
    session.on_page(&page(0, 2, 2), wall());
    assert_eq!(
        words(&mut session),
        ["read 3 after 0"],
        "this page is older"
    );
    let mut newer = page(0, 2, 3);
    newer.version = version(1);
    session.on_page(&newer, wall());
    assert_eq!(words(&mut session), ["1", "2", "3", "caught_up 3"]);

    let mut session = self::session(0, 1);
    session.on_hints(vec![notification(2)], wall());
    session.on_changes(&[change(1, 2)]);
    assert_eq!(words(&mut session), ["read 1 after 0", "state 1"]);
    let mut short = page(0, 1, 2);
    short.version = version(1);
    session.on_page(&short, wall());
    assert_eq!(
        words(&mut session),
        ["1", "caught_up 1", "read 1 after 1"],
        "the hint that was kept is older"
    );
}

#[test]
fn a_hint_that_is_older_than_what_people_said_before_the_session_began_is_not_sent() {
    let mut session = begin(
        Instant::now(),
        Start::new(
            feed(),
            &epoch(),
            seq(9),
            stored(10, 5),
            KeptByClient::default(),
            false,
        ),
    );
    assert_eq!(words(&mut session), ["read 1 after 9"]);
    session.on_hints(vec![notification(10)], wall());
    assert_eq!(
        words(&mut session),
        [""; 0],
        "10 may have been handled since"
    );
    let mut answer = page(9, 10, 10);
    answer.version = version(5);
    session.on_page(&answer, wall());
    session.on_hints(vec![notification(11)], wall());
    assert_eq!(words(&mut session), ["10", "caught_up 10", "11"]);
}

#[test]
fn changes_that_are_gone_from_the_database_are_not_asked_for_again_and_again() {
    let kept = KeptByClient {
        after: None,
        version: place(version(2), None),
    };
    let mut session = begin(
        Instant::now(),
        Start::new(feed(), &epoch(), seq(5), stored(5, 9), kept, false),
    );
    assert_eq!(
        words(&mut session),
        ["caught_up 5", "read 0 after 5 and changes after 2"]
    );
    let mut answer = page(5, 5, 5);
    answer.version = version(9);
    session.on_page(&answer, wall());
    assert_eq!(words(&mut session), [""; 0]);
    session.on_changes(&[change(10, 4)]);
    assert_eq!(words(&mut session), ["state 10"], "the client sees the gap");
}

#[test]
fn a_person_may_answer_within_bounds() {
    let read = |seqs: Option<Vec<i64>>, through| ClientFrame::Read {
        feed: "m".into(),
        seqs,
        through,
    };
    let said = |session: &mut Session, frame| {
        session.on_frame(frame, Instant::now());
        words(session).join(", ")
    };
    let mut session = session(5, 5);
    words(&mut session);
    assert_eq!(
        said(&mut session, read(Some(vec![4, 5]), None)),
        "say Read(Seqs([4, 5]))"
    );
    assert_eq!(
        said(&mut session, read(None, Some(3))),
        "say Read(Through(Seq(3)))"
    );
    let handle = |feed: &str, seqs| ClientFrame::Handle {
        feed: feed.into(),
        seqs,
    };
    assert_eq!(said(&mut session, handle("m", vec![5])), "say Handled([5])");
    assert_eq!(
        said(&mut session, handle("other", vec![5])),
        "error unknown_feed"
    );
    assert_eq!(
        said(&mut session, handle("m", vec![5; SEQS_PER_FRAME_MAX + 1])),
        "error too_many_seqs"
    );
    for _ in 3..SAID_WAITING_MAX {
        assert_eq!(said(&mut session, handle("m", vec![1])), "say Handled([1])");
    }
    assert_eq!(said(&mut session, handle("m", vec![1])), "error busy");
    session.on_replies(vec![vec![], vec![r#"{"type":"pong"}"#.into()]]);
    assert_eq!(words(&mut session), ["pong"]);
    assert_eq!(
        said(&mut session, handle("m", vec![1])),
        "say Handled([1])",
        "two were answered"
    );
    assert_eq!(said(&mut session, read(None, None)), "close 4500");
}

#[test]
fn nobody_answers_for_everyone() {
    let mut session = begin(
        Instant::now(),
        Start::new(
            feed(),
            &epoch(),
            seq(0),
            stored(0, 0),
            KeptByClient::default(),
            true,
        ),
    );
    words(&mut session);
    session.on_frame(
        ClientFrame::Handle {
            feed: "m".into(),
            seqs: vec![1],
        },
        Instant::now(),
    );
    assert_eq!(words(&mut session), ["error read_only"]);
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
    assert_eq!(
        words(&mut session),
        ["heartbeat", "ping_control"],
        "it was heard 29 seconds ago"
    );
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
    assert_eq!(
        words(&mut session),
        ["heartbeat", "ping_control"],
        "a fresh token keeps the session"
    );
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

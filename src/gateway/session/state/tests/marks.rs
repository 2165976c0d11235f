//! Marks: those of the client, and those that are sent to it.

use super::super::frames::{MARKS_WAITING_MAX, SEQS_PER_FRAME_MAX};
use super::*;

#[test]
fn marks_are_sent_in_order_and_a_gap_is_read() {
    let mut session = session(5, 5);
    words(&mut session);
    session.on_states(&[state_frame(1, 4)]);
    assert_eq!(words(&mut session), ["state 1"]);
    session.on_states(&[state_frame(3, 4), state_frame(1, 4)]);
    assert_eq!(
        words(&mut session),
        ["read 0 after 5 and states after 1"],
        "2 was lost"
    );
    let mut newer = page(5, 5, 5);
    newer.version = version(3);
    newer.states = vec![state_frame(2, 1), state_frame(3, 4)];
    session.on_page(&newer, wall());
    session.on_states(&[state_frame(2, 1), state_frame(3, 4)]);
    assert_eq!(words(&mut session), ["state 2", "state 3"], "each once");
    session.on_newest(&feed(), stored(5, 4));
    assert_eq!(
        words(&mut session),
        ["read 0 after 5 and states after 3"],
        "the sweep found 4"
    );
    session.on_page(&newer, wall());
    assert_eq!(
        words(&mut session),
        [""; 0],
        "4 is not stored and not read again"
    );
}

#[test]
fn a_client_gets_the_marks_after_its_version_and_sees_a_gap() {
    let kept = KeptByClient {
        after: kept(seq(5), None),
        version: kept(version(2), None),
    };
    let mut session = begin(
        Instant::now(),
        Start::new(feed(), &epoch(), seq(5), stored(5, 9), kept, false),
    );
    assert_eq!(
        words(&mut session),
        ["caught_up 5", "read 0 after 5 and states after 2"]
    );
    let mut newer = page(5, 5, 5);
    newer.version = version(9);
    newer.states = vec![state_frame(8, 1), state_frame(9, 4)];
    session.on_page(&newer, wall());
    assert_eq!(
        words(&mut session),
        ["state 8", "state 9"],
        "3 to 7 were deleted"
    );
}

#[test]
fn no_notification_is_sent_as_it_was_before_a_mark_that_was_sent() {
    let mut session = session(0, 1);
    assert_eq!(words(&mut session), ["read 1 after 0"]);
    session.on_states(&[state_frame(1, 2)]);
    assert_eq!(words(&mut session), ["state 1"]);
    session.on_hints(
        vec![notification(1), notification(2), notification(3)],
        wall(),
    );
    assert_eq!(
        words(&mut session),
        [""; 0],
        "these hints may be older than the mark"
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
    session.on_states(&[state_frame(1, 2)]);
    assert_eq!(words(&mut session), ["read 1 after 0", "state 1"]);
    let mut short = page(0, 1, 2);
    short.version = version(1);
    session.on_page(&short, wall());
    assert_eq!(
        words(&mut session),
        ["1", "caught_up 1", "read 1 after 1"],
        "the kept hint is older"
    );
}

#[test]
fn a_hint_that_may_be_older_than_a_mark_is_not_sent() {
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
    assert_eq!(words(&mut session), [""; 0], "10 may be handled since then");
    let mut newer = page(9, 10, 10);
    newer.version = version(5);
    session.on_page(&newer, wall());
    session.on_hints(vec![notification(11)], wall());
    assert_eq!(words(&mut session), ["10", "caught_up 10", "11"]);
}

#[test]
fn marks_that_were_deleted_are_read_only_once() {
    let kept = KeptByClient {
        after: None,
        version: kept(version(2), None),
    };
    let mut session = begin(
        Instant::now(),
        Start::new(feed(), &epoch(), seq(5), stored(5, 9), kept, false),
    );
    assert_eq!(
        words(&mut session),
        ["caught_up 5", "read 0 after 5 and states after 2"]
    );
    let mut newer = page(5, 5, 5);
    newer.version = version(9);
    session.on_page(&newer, wall());
    assert_eq!(words(&mut session), [""; 0]);
    session.on_states(&[state_frame(10, 4)]);
    assert_eq!(words(&mut session), ["state 10"], "the client sees the gap");
}

#[test]
fn marks_are_accepted_within_bounds() {
    let read = |seqs: Option<Vec<i64>>, through| ClientFrame::Read {
        feed: "m".into(),
        seqs,
        through,
    };
    let mark = |session: &mut Session, frame| {
        session.on_frame(frame, Instant::now());
        words(session).join(", ")
    };
    let mut session = session(5, 5);
    words(&mut session);
    assert_eq!(
        mark(&mut session, read(Some(vec![4, 5]), None)),
        "mark Read(Seqs([4, 5]))"
    );
    assert_eq!(
        mark(&mut session, read(None, Some(3))),
        "mark Read(Through(Seq(3)))"
    );
    let handle = |feed: &str, seqs| ClientFrame::Handle {
        feed: feed.into(),
        seqs,
    };
    assert_eq!(
        mark(&mut session, handle("m", vec![5])),
        "mark Handled([5])"
    );
    assert_eq!(
        mark(&mut session, handle("other", vec![5])),
        "error unknown_feed"
    );
    assert_eq!(
        mark(&mut session, handle("m", vec![5; SEQS_PER_FRAME_MAX + 1])),
        "error too_many_seqs"
    );
    let most = mark(&mut session, handle("m", vec![5; SEQS_PER_FRAME_MAX]));
    assert!(most.starts_with("mark Handled([5, "), "{most}");
    for _ in 4..MARKS_WAITING_MAX {
        assert_eq!(
            mark(&mut session, handle("m", vec![1])),
            "mark Handled([1])"
        );
    }
    assert_eq!(mark(&mut session, handle("m", vec![1])), "error busy");
    session.on_replies(vec![vec![], vec![r#"{"type":"pong"}"#.into()]]);
    assert_eq!(words(&mut session), ["pong"]);
    assert_eq!(
        mark(&mut session, handle("m", vec![1])),
        "mark Handled([1])",
        "two replies came"
    );
    assert_eq!(mark(&mut session, read(None, None)), "close 4500");
}

#[test]
fn a_shared_feed_cannot_be_marked() {
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

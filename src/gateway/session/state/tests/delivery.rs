//! Notifications: hints, pages, gaps, skipped numbers and acks.

use super::*;

#[test]
fn a_feed_without_a_gap_is_caught_up_and_its_hints_are_sent() {
    let mut session = session(5, 5);
    assert_eq!(words(&mut session), ["caught_up 5"]);
    session.on_hints(vec![notification(6), notification(7)], wall());
    assert_eq!(words(&mut session), ["6", "7"]);
}

#[test]
fn missing_notifications_are_read_in_pages_up_to_the_window() {
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
fn each_notification_is_acknowledged_once_with_its_time() {
    let mut session = session(0, 0);
    session.on_hints((1..=4).map(notification).collect(), wall());
    session.take_outputs();
    assert!(session.is_window_full(), "the window is full");
    let acknowledged = |session: &mut Session| {
        let outputs = session.take_outputs().into_iter();
        outputs
            .filter_map(|output| {
                if let Output::Perform(Effect::Acknowledged(sent)) = output {
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
                trace: None,
            })
            .collect();
        assert_eq!(acknowledged(&mut session), expected);
    }
    assert!(!session.is_window_full());
}

#[test]
fn a_gap_is_read_and_hints_that_came_meanwhile_are_kept() {
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
        "the hints came before the page"
    );
    session.on_page(&page(0, 2, 2), wall());
    session.on_hints(vec![notification(1), notification(2)], wall());
    assert_eq!(words(&mut session), [""; 0]);
}

#[test]
fn an_expired_hint_is_skipped() {
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
fn an_ack_of_a_number_that_was_not_sent_is_an_error() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_hints(vec![notification(4)], wall());
    words(&mut session);
    for (number, expected) in [
        (5, "error ack_not_sent"),
        (-1, "error ack_not_sent"),
        (4, "ack 4"),
    ] {
        ack(&mut session, number);
        assert_eq!(words(&mut session), [expected]);
    }
    ack(&mut session, 4);
    ack(&mut session, 2);
    assert_eq!(
        words(&mut session),
        [""; 0],
        "a repeated or lower ack has no effect"
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
fn a_client_with_numbers_above_the_newest_gets_new_notifications() {
    let kept = KeptByClient {
        after: kept(seq(90), None),
        version: kept(version(9), None),
    };
    let mut session = begin(
        Instant::now(),
        Start::new(feed(), &epoch(), seq(0), stored(7, 2), kept, false),
    );
    assert_eq!(words(&mut session), ["caught_up 7"]);
    session.on_hints(vec![notification(8)], wall());
    session.on_states(&[state_frame(3, 8)]);
    assert_eq!(words(&mut session), ["8", "state 3"]);
}

#[test]
fn numbers_that_are_not_stored_are_read_only_once() {
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
        "a number that came during the read is read"
    );
}

#[test]
fn a_cursor_above_the_newest_number_hides_no_notification() {
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

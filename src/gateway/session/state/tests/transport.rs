//! Sessions over HTTP: acks by requests, and polls.

use super::*;

fn over(transport: Transport, now: Instant, acked: i64, last: i64) -> Session {
    let newest = stored(last, 0);
    let kept = KeptByClient::default();
    let start = Start::new(feed(), &epoch(), seq(acked), newest, kept, false);
    begin_over(transport, now, start)
}

fn stream(acked: i64, last: i64) -> Session {
    over(Transport::Stream, Instant::now(), acked, last)
}

fn hint(session: &mut Session, numbers: std::ops::RangeInclusive<i64>) {
    session.on_hints(numbers.map(notification).collect(), wall());
}

#[test]
fn a_stream_reads_its_cursors_until_all_is_acked() {
    let mut session = stream(0, 0);
    assert_eq!(words(&mut session), ["caught_up 0"]);
    hint(&mut session, 1..=2);
    assert_eq!(words(&mut session), ["1", "2", "cursors after 100"]);
    session.on_cursors(&[]);
    assert_eq!(words(&mut session), ["cursors after 200"]);
    session.on_cursors(&[seq(1)]);
    assert_eq!(words(&mut session), ["cursors after 100"]);
    session.on_cursors(&[seq(9)]);
    assert_eq!((words(&mut session), session.outstanding()), (vec![], 0));
    hint(&mut session, 3..=3);
    assert_eq!(words(&mut session), ["3", "cursors after 100"]);
}

#[test]
fn an_idle_stream_reads_nothing_and_a_silent_client_costs_few_reads() {
    let mut session = stream(0, 0);
    words(&mut session);
    hint(&mut session, 1..=1);
    words(&mut session);
    (0..10).for_each(|_| session.on_cursors(&[seq(0)]));
    assert_eq!(words(&mut session).last().unwrap(), "cursors after 10000");
    hint(&mut session, 2..=4);
    let full = ["2", "3", "4", "cursors after 1000"];
    assert_eq!(words(&mut session), full, "the window is full");
    session.on_cursors(&[seq(0)]);
    assert_eq!(words(&mut session), ["cursors after 1000"]);
}

#[test]
fn an_ack_elsewhere_makes_room_in_the_window() {
    let mut session = stream(0, 9);
    assert_eq!(words(&mut session), ["read 4 after 0"]);
    session.on_page(&page(0, 4, 9), wall());
    assert_eq!(
        words(&mut session),
        ["1", "2", "3", "4", "cursors after 100"]
    );
    session.on_cursors(&[seq(3)]);
    assert_eq!(words(&mut session), ["read 3 after 4", "cursors after 100"]);
}

#[test]
fn the_client_of_a_stream_is_never_silent() {
    let start = Instant::now();
    let mut session = over(Transport::Stream, start, 0, 0);
    words(&mut session);
    session.on_tick(start + Duration::from_secs(1_000));
    assert_eq!(words(&mut session), ["heartbeat", "ping_control"]);
}

#[test]
fn a_poll_ends_after_its_first_news_or_at_its_time() {
    let start = Instant::now();
    let until = start + Duration::from_secs(5);
    let poll = |last| over(Transport::Poll { until }, start, 0, last);
    let mut session = poll(0);
    assert_eq!(words(&mut session), ["caught_up 0"]);
    assert_eq!(session.deadline(), until);
    session.on_tick(until);
    assert_eq!(words(&mut session), ["close 1000"]);

    let mut session = poll(0);
    words(&mut session);
    hint(&mut session, 1..=2);
    assert_eq!(words(&mut session), ["1", "2", "close 1000"]);

    let mut session = poll(0);
    words(&mut session);
    session.on_states(&[state_frame(1, 1)]);
    assert_eq!(words(&mut session), ["state 1", "close 1000"]);
}

#[test]
fn a_poll_waits_for_the_page_that_it_reads() {
    let start = Instant::now();
    let mut session = over(Transport::Poll { until: start }, start, 0, 9);
    assert_eq!(words(&mut session), ["read 4 after 0"]);
    assert!(session.deadline() > start, "it would spin");
    session.on_tick(start);
    assert!(words(&mut session).is_empty());
    session.on_page(&page(0, 4, 9), wall());
    assert_eq!(words(&mut session), ["1", "2", "3", "4", "close 1000"]);
}

//! Timers and the bound on frames.

use super::super::allowance::{FRAMES_PER_AUTH, FRAMES_SAVED_MAX};
use super::*;

#[test]
fn timers_send_heartbeats_and_end_the_session() {
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
fn a_refused_token_is_an_error_and_too_many_end_the_session() {
    let mut session = session_at(Instant::now(), 0, 0);
    words(&mut session);
    session.on_verified(Err(Unverified::Refused("wrong".into())));
    assert_eq!(words(&mut session), ["error token_refused"]);
    let retry_after_ms = 2_000;
    session.on_verified(Err(Unverified::TooMany { retry_after_ms }));
    assert_eq!(words(&mut session), ["close 4429"]);
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

#[test]
fn tokens_that_follow_each_other_fast_end_the_session() {
    let start = Instant::now();
    let mut session = session_at(start, 0, 0);
    words(&mut session);
    let mut auth_at = |now| {
        let token = String::new();
        session.on_frame(ClientFrame::Auth { token }, now);
        words(&mut session)
    };
    let checked = (0..10_000)
        .take_while(|_| auth_at(start) == ["verify"])
        .count();
    assert!(checked >= (FRAMES_SAVED_MAX / FRAMES_PER_AUTH) as usize);
    assert!(checked < 100, "{checked} tokens were checked");

    let mut session = session_at(start, 0, 0);
    words(&mut session);
    for seconds in 0..1_000 {
        let (token, now) = (String::new(), start + Duration::from_secs(seconds));
        session.on_frame(ClientFrame::Auth { token }, now);
        assert_eq!(words(&mut session), ["verify"], "one a second");
    }
}

//! Tests of the session by script: inputs, then the outputs as short words.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod delivery;
mod epochs;
mod limits;
mod marks;
mod properties;
mod transport;

use super::*;
use crate::model::feed::Version;
use crate::model::mark::{Counts, Marked, Targets};
use crate::model::notification::NotificationFields;
use crate::model::protocol::ClientFrame;

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

fn kept<N>(number: N, epoch: Option<Epoch>) -> Option<KeptNumber<N>> {
    Some(KeptNumber { number, epoch })
}

fn stored(last: i64, newest_version: i64) -> Newest {
    Newest {
        seq: seq(last),
        version: version(newest_version),
    }
}

/// The mark of `version` that handles the notification `highest`.
fn state_frame(version: i64, highest: i64) -> Arc<StateFrame> {
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
        self::version(version),
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

/// A session that begins after marks up to `newest_version`.
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
    begin_over(Transport::WebSocket, now, start)
}

fn begin_over(transport: Transport, now: Instant, start: Start) -> Session {
    let rules = Rules {
        window: WINDOW,
        heartbeat: Duration::from_secs(10),
        transport,
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

/// The outputs as short words: `3` is a notification; others are `skip 3-5 expired`, `caught_up 5`,
/// `read 3`, `ack 3`.
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
    let effect = |effect| match effect {
        Effect::Read {
            after,
            wanted,
            states_after,
            ..
        } => {
            let states = states_after
                .map(|version| format!(" and states after {}", version.get()))
                .unwrap_or_default();
            Some(format!("read {wanted} after {after}{states}"))
        }
        Effect::Mark { mark, .. } => Some(format!("mark {mark:?}")),
        // It has its own test.
        Effect::Acknowledged(_) => None,
        Effect::ReadCursors { after } => Some(format!("cursors after {}", after.as_millis())),
        Effect::Ack { seq, .. } => Some(format!("ack {seq}")),
        Effect::Doubt => Some("doubt".into()),
        Effect::Verify { .. } => Some("verify".into()),
        Effect::DeviceState(state) => Some(format!("can ring: {}", state.can_ring.as_str())),
    };
    let word = |output| match output {
        Output::Send(Frame::Notification(notification)) => Some(frame(&notification.frame)),
        Output::Send(Frame::Text(text)) => Some(frame(&text)),
        Output::Send(Frame::Ping) => Some("ping_control".into()),
        Output::Perform(output) => effect(output),
        Output::Close(close) => Some(format!("close {}", close.code())),
    };
    session
        .take_outputs()
        .into_iter()
        .filter_map(word)
        .collect()
}

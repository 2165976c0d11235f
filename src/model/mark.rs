//! Marks: notifications that a person read or handled, and the `state` frame that reports them.
//!
//! Marks are only added: a read notification stays read, and the first person who handled a
//! notification stays its handler. So a `state` frame may arrive twice. The version of the feed
//! shows a missing one.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::feed::{Feed, Seq, Version};
use crate::model::frame_text::FrameText;
use crate::model::protocol::ServerFrame;

/// A stored mark as a `state` frame, rendered once and shared by all sessions that send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFrame {
    /// The feed.
    pub feed: Feed,
    /// The number of the mark in the feed.
    pub version: Version,
    /// The highest notification that is marked.
    pub highest: Seq,
    /// The `state` frame.
    pub frame: FrameText,
}

/// The notifications of a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// These numbers.
    Seqs(Vec<i64>),
    /// All numbers up to this one.
    Through(Seq),
}

/// A mark as a client requests it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// The person read these notifications. An empty list requests only the counts of the feed.
    Read(Targets),
    /// The person handles these notifications.
    Handled(Vec<i64>),
}

/// A mark as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// Read, at this time. `None` if the times differ.
    Read(Option<OffsetDateTime>),
    /// Handled.
    Handled {
        /// The time.
        at: OffsetDateTime,
        /// The subscriber. `None` if the notification needs no person.
        by: Option<String>,
    },
    /// Nobody handled it in the time that its publisher set.
    Overdue(OffsetDateTime),
}

/// The counts of a feed, of its notifications up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The newest number of the feed.
    pub last: Seq,
}

impl StateFrame {
    /// Renders the frame of a stored mark.
    pub fn new(
        feed: Feed,
        version: Version,
        targets: &Targets,
        marked: &Marked,
        counts: Counts,
    ) -> Self {
        let highest = match targets {
            Targets::Seqs(seqs) => seqs
                .iter()
                .max()
                .and_then(|seq| Seq::new(*seq))
                .unwrap_or_default(),
            Targets::Through(through) => *through,
        };
        let frame = state(&feed, Some(version), targets, marked, counts);
        Self {
            feed,
            version,
            highest,
            frame,
        }
    }
}

/// Renders a `state` frame. Without a version it is a reply to one client.
pub fn state(
    feed: &Feed,
    version: Option<Version>,
    targets: &Targets,
    marked: &Marked,
    counts: Counts,
) -> FrameText {
    let (seqs, through) = match targets {
        Targets::Seqs(seqs) => (Some(&**seqs), None),
        Targets::Through(through) => (None, Some(*through)),
    };
    let (read_at, handled_at, handled_by, overdue_at) = match marked {
        Marked::Read(at) => (*at, None, None, None),
        Marked::Handled { at, by } => (None, Some(*at), by.as_deref(), None),
        Marked::Overdue(at) => (None, None, None, Some(*at)),
    };
    // These times are from Postgres, within the years of RFC 3339.
    let rfc3339 = |time: OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
    let Counts {
        unread,
        unhandled,
        last,
    } = counts;
    let frame = ServerFrame::State {
        feed,
        seqs,
        through,
        read_at: read_at.map(rfc3339),
        handled_at: handled_at.map(rfc3339),
        handled_by,
        overdue_at: overdue_at.map(rfc3339),
        unread,
        unhandled,
        last,
        version,
    };
    frame.to_json().into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_rendered_as_the_state_frame_of_the_contract() {
        let (feed, seq) = (Feed::parse("m").unwrap(), |number| {
            Seq::new(number).unwrap()
        });
        let at = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let counts = Counts {
            unread: 2,
            unhandled: 3,
            last: seq(9),
        };
        let handled = Marked::Handled {
            at,
            by: Some("anna".into()),
        };
        let stored = StateFrame::new(
            feed.clone(),
            Version::ZERO.next(),
            &Targets::Seqs(vec![4, 7]),
            &handled,
            counts,
        );
        assert_eq!(stored.highest, seq(7));
        assert_eq!(
            stored.frame.as_str(),
            r#"{"type":"state","feed":"m","seqs":[4,7],"handled_at":"2023-11-14T22:13:20Z","handled_by":"anna","unread":2,"unhandled":3,"last":9,"version":1}"#
        );
        let reply = state(
            &feed,
            None,
            &Targets::Through(seq(8)),
            &Marked::Read(Some(at)),
            counts,
        );
        assert_eq!(
            reply.as_str(),
            r#"{"type":"state","feed":"m","through":8,"read_at":"2023-11-14T22:13:20Z","unread":2,"unhandled":3,"last":9}"#
        );
    }
}

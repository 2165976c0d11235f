//! What people said of a feed's notifications, read or handled, as the `state` frame that tells every session. No I/O.
//!
//! Facts only grow: what is read stays read, and who handled first stays the one who did. So it does no harm to hear of a
//! change twice; its number in the feed shows who missed one.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::feed::{Feed, Seq, Version};
use crate::model::frame_text::FrameText;
use crate::model::protocol::ServerFrame;

/// Something became true of notifications: rendered once, shared by every session that sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFrame {
    /// The feed.
    pub feed: Feed,
    /// Its number there.
    pub version: Version,
    /// The highest notification that it speaks of.
    pub highest: Seq,
    /// The `state` frame.
    pub frame: FrameText,
}

/// Which notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// These.
    Seqs(Vec<i64>),
    /// All up to this one.
    Through(Seq),
}

/// What a person says of notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// "I saw these." None at all asks for the feed's counts only.
    Read(Targets),
    /// "I take these."
    Handled(Vec<i64>),
}

/// What is true of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// Somebody read them; when, where that is known of all of them.
    Read(Option<OffsetDateTime>),
    /// Somebody handled them.
    Handled {
        /// When.
        at: OffsetDateTime,
        /// Who; nobody, where it needed nobody.
        by: Option<String>,
    },
}

/// A feed's counts, which hold for its notifications up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The feed's newest number.
    pub last: Seq,
}

impl StateFrame {
    /// What became true.
    pub fn new(
        feed: Feed,
        version: Version,
        which: &Targets,
        fact: &Marked,
        counts: Counts,
    ) -> Self {
        let highest = match which {
            Targets::Seqs(seqs) => seqs
                .iter()
                .max()
                .and_then(|seq| Seq::new(*seq))
                .unwrap_or_default(),
            Targets::Through(through) => *through,
        };
        let frame = state(&feed, Some(version), which, fact, counts);
        Self {
            feed,
            version,
            highest,
            frame,
        }
    }
}

/// The `state` frame. Without a version it answers one client, whom it tells what was true before.
pub fn state(
    feed: &Feed,
    version: Option<Version>,
    which: &Targets,
    fact: &Marked,
    counts: Counts,
) -> FrameText {
    let (seqs, through) = match which {
        Targets::Seqs(seqs) => (Some(&**seqs), None),
        Targets::Through(through) => (None, Some(*through)),
    };
    let (read_at, handled_at, handled_by) = match fact {
        Marked::Read(at) => (*at, None, None),
        Marked::Handled { at, by } => (None, Some(*at), by.as_deref()),
    };
    // These times come from Postgres, within the years of RFC 3339.
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
    fn a_change_is_the_state_frame_of_the_contract() {
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
        let change = StateFrame::new(
            feed.clone(),
            Version::ZERO.next(),
            &Targets::Seqs(vec![4, 7]),
            &handled,
            counts,
        );
        assert_eq!(change.highest, seq(7));
        assert_eq!(
            change.frame.as_str(),
            r#"{"type":"state","feed":"m","seqs":[4,7],"handled_at":"2023-11-14T22:13:20Z","handled_by":"anna","unread":2,"unhandled":3,"last":9,"version":1}"#
        );
        let answer = state(
            &feed,
            None,
            &Targets::Through(seq(8)),
            &Marked::Read(Some(at)),
            counts,
        );
        assert_eq!(
            answer.as_str(),
            r#"{"type":"state","feed":"m","through":8,"read_at":"2023-11-14T22:13:20Z","unread":2,"unhandled":3,"last":9}"#
        );
    }
}

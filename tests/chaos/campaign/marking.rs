//! The marks of one session: one request at a time, until it is confirmed or refused.

use std::collections::BTreeSet;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::it::support::frames::{Refused, State};

/// A mark at one tick in so many.
const RARITY: u32 = 30;
/// One mark in so many reads everything.
const ALL_RARITY: u32 = 10;
/// Numbers of the other marks.
const NUMBERS: u64 = 4;
/// Replies to a mark that the server does not take (docs/protocol.md, `error`).
const REFUSALS: [&str; 5] = [
    "unknown_seq",
    "too_many_seqs",
    "busy",
    "not_taken",
    "read_only",
];

/// The request that waits for its reply.
#[derive(Default)]
pub struct Marking {
    waiting: Option<Request>,
}

struct Request {
    kind: &'static str,
    feed: String,
    seqs: Vec<u64>,
    /// Numbers without a reply. A request for all has a reply if its last number has one.
    open: BTreeSet<u64>,
}

impl Marking {
    /// Begins a mark now and then. Returns the frame, and the fields of `mark_invoked`. `feeds` has
    /// the last number of each feed.
    pub fn begin(&mut self, feeds: &[(&str, u64)], random: &mut Rng) -> Option<(Value, Value)> {
        if self.waiting.is_some() || feeds.is_empty() || random.u32(..RARITY) > 0 {
            return None;
        }
        let (feed, last) = *random.choice(feeds)?;
        let (kind, seqs, frame);
        if random.u32(..ALL_RARITY) == 0 {
            (kind, seqs) = ("read", (1..=last).collect::<Vec<_>>());
            frame = json!({"type": "read", "feed": feed, "through": last});
        } else {
            let first = last.saturating_sub(random.u64(..50)).max(1);
            seqs = (first..=last)
                .take(random.u64(1..=NUMBERS) as usize)
                .collect();
            let verb;
            (kind, verb) = random.choice([("read", "read"), ("handled", "handle")])?;
            frame = json!({"type": verb, "feed": feed, "seqs": seqs});
        }
        let open = match frame["through"].is_u64() {
            true => [last].into(),
            false => seqs.iter().copied().collect(),
        };
        let request = Request {
            kind,
            feed: feed.to_owned(),
            seqs,
            open,
        };
        let note = request.note();
        self.waiting = Some(request);
        Some((frame, note))
    }

    /// Returns the fields of `mark_confirmed` if the request has its whole reply.
    pub fn on_state(&mut self, state: &State) -> Option<Value> {
        let request = self.waiting.as_mut()?;
        let kind = if state.handled_at.is_some() {
            "handled"
        } else {
            "read"
        };
        if request.feed != state.feed || request.kind != kind {
            return None;
        }
        for seq in state.seqs.iter().flatten() {
            request.open.remove(seq);
        }
        if let Some(through) = state.through {
            request.open.retain(|seq| *seq > through);
        }
        request
            .open
            .is_empty()
            .then(|| self.waiting.take())?
            .map(|request| request.note())
    }

    /// Returns the fields of `mark_refused` if it is the reply to the request.
    pub fn on_error(&mut self, refused: &Refused) -> Option<Value> {
        let request = self.waiting.as_ref()?;
        if refused.feed.as_ref() != Some(&request.feed) || !refuses(refused) {
            return None;
        }
        let mut note = self.waiting.take()?.note();
        note["error"] = refused.code.clone().into();
        Some(note)
    }
}

/// Whether the error is the reply to a mark.
pub fn refuses(refused: &Refused) -> bool {
    REFUSALS.contains(&refused.code.as_str())
}

impl Request {
    fn note(&self) -> Value {
        json!({"mark": self.kind, "feed": self.feed, "seqs": self.seqs})
    }
}

//! The wire format of hints between replicas: JSON, so that frames pass through as they are.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::Hints;
use crate::model::feed::{Epoch, Feed, Newest, Seq, Version};
use crate::model::frame_text::FrameText;
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::telemetry::traces;

/// A larger frame is left out, and its sessions read it from Postgres. A batch takes no event beyond its first MiB, so the
/// hints of a few batches stay below RabbitMQ's `max_message_size` (8 MiB).
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a lean hint of a feed with a short name.
const LEAN_BYTES: usize = 32;

/// One hint as JSON.
#[derive(Deserialize)]
struct WireHint<'a> {
    /// The epoch of this hint and of those that follow it, up to the next one with an epoch.
    epoch: Option<&'a str>,
    feed: &'a str,
    /// The number of a notification, or the highest number of a mark.
    seq: i64,
    /// The number of a mark. Without `change`, only the newest numbers of the feed are known.
    version: Option<i64>,
    /// Microseconds since 1970, the precision of Postgres.
    expires_at_us: Option<i64>,
    /// The event's time in microseconds since 1970.
    time_us: Option<i64>,
    /// The trace context of the event (W3C Trace Context §3.2).
    traceparent: Option<&'a str>,
    #[serde(borrow)]
    frame: Option<&'a RawValue>,
    /// The `state` frame of a mark. It has its own field, so that a replica without marks reads the notification instead.
    #[serde(borrow)]
    change: Option<&'a RawValue>,
}

/// Writes hints as a JSON array around the rendered frames, without parsing these. Feed names need no escaping.
pub fn encode(batches: &[&Hints]) -> String {
    let mut writer = Writer::new(batches);
    for hints in batches {
        for notification in &hints.stored {
            writer.notification(hints.epoch.as_ref(), notification);
        }
    }
    for hints in batches {
        for state in &hints.states {
            writer.state(hints.epoch.as_ref(), state);
        }
    }
    for hints in batches {
        for (feed, newest) in &hints.newest {
            writer.newest(hints.epoch.as_ref(), feed, *newest);
        }
    }
    writer.finish()
}

/// Writes one hint after the other. Results are ignored, because writing to a string cannot fail.
struct Writer<'a> {
    body: String,
    separator: char,
    /// The epoch that was written last.
    epoch: Option<&'a Epoch>,
}

impl<'a> Writer<'a> {
    fn new(batches: &[&Hints]) -> Self {
        const FRAME_OVERHEAD_BYTES: usize = 200;
        let stored = batches.iter().flat_map(|hints| &hints.stored);
        let states = batches.iter().flat_map(|hints| &hints.states);
        let frames = stored
            .map(|stored| stored.frame.len())
            .chain(states.map(|state| state.frame.len()));
        let bytes: usize = frames.map(|frame| frame + FRAME_OVERHEAD_BYTES).sum();
        Self {
            body: String::with_capacity(bytes + FRAME_OVERHEAD_BYTES),
            separator: '[',
            epoch: None,
        }
    }

    fn begin(&mut self, epoch: Option<&'a Epoch>, feed: &Feed, seq: Seq) {
        self.body.push(self.separator);
        self.body.push('{');
        self.separator = ',';
        if let Some(epoch) = epoch
            && self.epoch != Some(epoch)
        {
            let _ = write!(self.body, r#""epoch":"{epoch}","#);
            self.epoch = Some(epoch);
        }
        let _ = write!(self.body, r#""feed":"{feed}","seq":{seq}"#);
    }

    fn notification(&mut self, epoch: Option<&'a Epoch>, notification: &Notification) {
        let Notification {
            feed,
            seq,
            expires_at,
            time,
            trace,
            frame,
        } = notification;
        self.begin(epoch, feed, *seq);
        for (name, at) in [("expires_at_us", expires_at), ("time_us", time)] {
            if let Some(at) = at {
                let us = at.unix_timestamp_nanos() / 1_000;
                let _ = write!(self.body, r#","{name}":{us}"#);
            }
        }
        if let Some(trace) = trace {
            let _ = write!(self.body, r#","traceparent":"{trace}""#);
        }
        if frame.len() <= FRAME_BYTES_MAX {
            self.body.push_str(r#","frame":"#);
            self.body.push_str(frame);
        }
        self.body.push('}');
    }

    fn state(&mut self, epoch: Option<&'a Epoch>, state: &StateFrame) {
        self.begin(epoch, &state.feed, state.highest);
        let (version, frame) = (state.version.get(), &state.frame);
        let _ = write!(self.body, r#","version":{version},"change":{frame}}}"#);
    }

    /// Writes the numbers only. A replica that knows no versions here reads the number of the
    /// notification.
    fn newest(&mut self, epoch: Option<&'a Epoch>, feed: &Feed, newest: Newest) {
        self.begin(epoch, feed, newest.seq);
        if newest.version > Version::ZERO {
            let _ = write!(self.body, r#","version":{}"#, newest.version.get());
        }
        self.body.push('}');
    }

    fn finish(mut self) -> String {
        self.body.push(']');
        self.body
    }
}

/// Lean hints of one epoch, as they were received.
#[derive(Debug, PartialEq, Eq)]
pub struct Lean<'a> {
    epoch: Option<Epoch>,
    numbers: Vec<(&'a str, Newest)>,
}

impl Lean<'_> {
    /// The number of hints.
    pub fn count(&self) -> usize {
        self.numbers.len()
    }

    /// The hints of the feeds with these names.
    pub fn of(self, is_wanted: impl Fn(&str) -> bool) -> Hints {
        let numbers = self.numbers.into_iter();
        let wanted = numbers.filter(|(feed, _)| is_wanted(feed));
        let newest = wanted.filter_map(|(feed, newest)| Some((Feed::parse(feed).ok()?, newest)));
        Hints {
            newest: newest.collect(),
            epoch: self.epoch,
            ..Hints::default()
        }
    }
}

/// Parses lean hints of one epoch, exactly as [`encode`] writes them. Returns `None` for all others, which [`decode`] parses.
/// With many gateways, nearly all hints are for others, so this takes a third of the time of `decode` and copies nothing.
pub fn decode_lean(body: &[u8]) -> Option<Lean<'_>> {
    let mut rest = std::str::from_utf8(body).ok()?.strip_prefix("[{")?;
    let mut epoch = None;
    if let Some(name) = rest.strip_prefix(r#""epoch":""#) {
        let (name, after) = name.split_once('"')?;
        epoch = Some(Epoch::parse(name).ok()?);
        rest = after.strip_prefix(',')?;
    }
    let mut numbers = Vec::with_capacity(body.len() / LEAN_BYTES);
    loop {
        let (feed, after) = rest.strip_prefix(r#""feed":""#)?.split_once('"')?;
        let (seq, after) = number(after.strip_prefix(r#","seq":"#)?)?;
        let (version, after) = match after.strip_prefix(r#","version":"#) {
            Some(version) => number(version)?,
            None => (0, after),
        };
        let (seq, version) = (Seq::new(seq)?, Version::new(version)?);
        numbers.push((feed, Newest { seq, version }));
        if after == "}]" {
            return Some(Lean { epoch, numbers });
        }
        rest = after.strip_prefix("},{")?;
    }
}

/// Splits the number off at the begin of a text.
fn number(text: &str) -> Option<(i64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// Parses hints into one [`Hints`] for each epoch.
///
/// # Errors
/// The body has another format than that of [`encode`].
pub fn decode(body: &[u8]) -> Result<Vec<Hints>, String> {
    let wire: Vec<WireHint<'_>> =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut batches = vec![Hints {
        stored: Vec::with_capacity(wire.len()),
        ..Hints::default()
    }];
    let mut index = 0;
    for hint in wire {
        if let Some(epoch) = hint.epoch {
            let epoch = Epoch::parse(epoch).map_err(|error| error.to_string())?;
            index = index_of(&mut batches, epoch);
        }
        add(&mut batches[index], &hint)?;
    }
    Ok(batches)
}

/// The place of the hints of this epoch, which are added if there are none. The first hints take an epoch while they are
/// empty.
fn index_of(batches: &mut Vec<Hints>, epoch: Epoch) -> usize {
    let epoch = Some(epoch);
    if let Some(index) = batches.iter().position(|batch| batch.epoch == epoch) {
        return index;
    }
    if batches[0].epoch.is_none() && batches[0].len() == 0 {
        batches[0].epoch = epoch;
        return 0;
    }
    batches.push(Hints {
        epoch,
        ..Hints::default()
    });
    batches.len() - 1
}

fn add(batch: &mut Hints, hint: &WireHint<'_>) -> Result<(), String> {
    let feed = Feed::parse(hint.feed).map_err(|error| error.to_string())?;
    let seq = Seq::new(hint.seq).ok_or("a negative seq")?;
    let version = hint
        .version
        .map(|version| Version::new(version).ok_or("a negative version"));
    let version = version.transpose()?;
    if let Some((version, frame)) = version.zip(hint.change) {
        batch.states.push(Arc::new(StateFrame {
            feed,
            version,
            highest: seq,
            frame: FrameText::from(frame.get()),
        }));
    } else if let Some(frame) = hint.frame {
        batch.stored.push(Arc::new(Notification {
            feed,
            seq,
            expires_at: moment(hint.expires_at_us)?,
            time: moment(hint.time_us)?,
            trace: hint.traceparent.and_then(traces::received),
            // Copied, so that a frame that waits for a slow client does not keep its whole batch in memory.
            frame: FrameText::from(frame.get()),
        }));
    } else {
        let version = version.unwrap_or(Version::ZERO);
        batch.newest.push((feed, Newest { seq, version }));
    }
    Ok(())
}

/// Converts microseconds since 1970.
fn moment(us: Option<i64>) -> Result<Option<OffsetDateTime>, String> {
    let moment = us
        .map(|us| OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1_000))
        .transpose();
    moment.map_err(|error| error.to_string())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn decoded_hints_equal_the_encoded_ones() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        let notification = |seq, frame: &str, expires_at| {
            Arc::new(Notification {
                feed: Feed::parse("m-1").unwrap(),
                seq: Seq::new(seq).unwrap(),
                expires_at,
                time: Some(at),
                trace: None,
                frame: frame.into(),
            })
        };
        let stored = vec![
            notification(1, r#"{"data":{ "b":1e400,"a":"\u0000" }}"#, Some(at)),
            notification(2, r#"{"data":null}"#, None),
        ];
        let of_m2 = |version| {
            let (seq, version) = (Seq::new(9).unwrap(), Version::new(version).unwrap());
            (Feed::parse("m-2").unwrap(), Newest { seq, version })
        };
        let state = StateFrame {
            feed: Feed::parse("m-3").unwrap(),
            version: Version::new(4).unwrap(),
            highest: Seq::new(7).unwrap(),
            frame: r#"{"type":"state"}"#.into(),
        };
        let epoch = |text| Some(Epoch::parse(text).unwrap());
        let hints = Hints {
            epoch: epoch("e1"),
            stored,
            newest: vec![of_m2(5), of_m2(0)],
            states: vec![Arc::new(state)],
        };
        let later = Hints {
            epoch: epoch("e2"),
            newest: hints.newest.clone(),
            ..Hints::default()
        };
        let encoded = encode(&[&hints, &later, &hints]);
        assert_eq!(
            encoded.matches("epoch").count(),
            3,
            "only where the epoch changes: {encoded}"
        );
        let twice = |mut hints: Hints| {
            hints.stored.extend(hints.stored.clone());
            hints.newest.extend(hints.newest.clone());
            hints.states.extend(hints.states.clone());
            hints
        };
        assert_eq!(
            decode(encoded.as_bytes()).unwrap(),
            [twice(hints.clone()), later]
        );
        let encoded = encode(&[&hints]);
        assert!(
            encoded.starts_with(r#"[{"epoch":"e1","feed":"m-1","seq":1,"#),
            "{encoded}"
        );
        assert_eq!(decode(encoded.as_bytes()).unwrap(), [hints]);
        // During a rolling update an older replica reads a hint with unknown fields as a duplicate.
        let change = r#"{"feed":"m-3","seq":7,"version":4,"change":{"type":"state"}}"#;
        let numbers = r#"{"feed":"m-2","seq":9,"version":5}"#;
        let again = r#"{"feed":"m-2","seq":9}"#;
        assert!(
            encoded.ends_with(&format!("{change},{numbers},{again}]")),
            "{encoded}"
        );
        assert!(decode(b"[{}]").is_err());
        assert_eq!(
            decode(br#"[{"feed":"m","seq":1}]"#).unwrap()[0].epoch,
            None,
            "a replica without epochs sends none"
        );
    }

    #[test]
    fn lean_hints_are_decoded_as_all_others_are() {
        let of = |feed: &str, seq, version| {
            let (seq, version) = (Seq::new(seq).unwrap(), Version::new(version).unwrap());
            (Feed::parse(feed).unwrap(), Newest { seq, version })
        };
        let hints = Hints {
            epoch: Some(Epoch::parse("e1").unwrap()),
            newest: vec![of("m-1", 9, 5), of("m-2", i64::MAX, 0), of("m-3", 0, 7)],
            ..Hints::default()
        };
        let encoded = encode(&[&hints]);
        let lean = decode_lean(encoded.as_bytes()).unwrap();
        assert_eq!(lean.count(), 3);
        assert_eq!(lean.of(|_| true), hints);
        let lean = decode_lean(encoded.as_bytes()).unwrap();
        let one = lean.of(|feed| feed == "m-2");
        assert_eq!(
            (one.epoch, one.newest),
            (hints.epoch, vec![of("m-2", i64::MAX, 0)])
        );
        let without_epoch = decode_lean(br#"[{"feed":"m","seq":1}]"#).unwrap();
        assert_eq!(without_epoch.of(|_| true).epoch, None);
        for other in [
            r#"[]"#,
            r#"[{"feed":"m","seq":1,"frame":{}}]"#,
            r#"[{"feed":"m","seq":1,"version":2,"change":{}}]"#,
            r#"[{"feed":"m","seq":-1}]"#,
            r#"[{"feed":"m","seq":9223372036854775808}]"#,
            r#"[{"feed":"m","seq":}]"#,
            r#"[{"feed":"m","seq":1},{"epoch":"e2","feed":"m","seq":1}]"#,
            r#"[{"feed":"m","seq":1}"#,
            r#"[{"feed":"m","seq":1}] "#,
        ] {
            assert_eq!(decode_lean(other.as_bytes()), None, "{other}");
        }
    }
}

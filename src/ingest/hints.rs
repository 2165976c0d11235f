//! Makes the hints of stored events.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::fanout::Hints;
use crate::model::feed::{Newest, Seq};
use crate::model::notification::Notification;
use crate::store::append::Placed;
use crate::telemetry::traces::BatchTrace;

/// Returns the hints of stored events.
///
/// The hint of a duplicate has only its number, because the stored event may differ from this one. So has that of an
/// event that is settled already. Sessions read the marks of settlements from Postgres.
/// If the epoch changed between two parts of a batch, only the newest epoch has hints: the sessions
/// of an older epoch begin again anyway.
pub(super) fn hints<'a>(
    placed: impl DoubleEndedIterator<Item = &'a Placed> + Clone,
    received_at: OffsetDateTime,
    trace: Option<&BatchTrace>,
) -> Hints {
    let newest_epoch = placed
        .clone()
        .next_back()
        .map(|placed| placed.epoch.clone());
    let mut hints = Hints {
        epoch: newest_epoch,
        ..Hints::default()
    };
    for Placed {
        event,
        seq,
        duplicate,
        progress,
        is_settled,
        settled_version,
        epoch,
    } in placed
    {
        if hints.epoch.as_ref() != Some(epoch) {
            continue;
        }
        let by_number = *duplicate || *is_settled;
        if by_number || settled_version.is_some() {
            let newest = Newest {
                seq: if by_number { *seq } else { Seq::default() },
                version: settled_version.unwrap_or_default(),
            };
            hints.newest.push((event.recipient.clone(), newest));
        }
        if !by_number {
            let mut notification = Notification::of_event(event, *seq, received_at, *progress);
            notification.trace =
                trace
                    .zip(event.traceparent.as_deref())
                    .and_then(|(trace, traceparent)| {
                        trace.stored(traceparent, &event.id, event.recipient.as_str(), seq.get())
                    });
            hints.stored.push(Arc::new(notification));
        }
    }
    hints
}

/// The current time with the precision of Postgres, so that a frame is the same live and replayed.
pub(super) fn current_time() -> OffsetDateTime {
    to_microseconds(OffsetDateTime::now_utc())
}

fn to_microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.microsecond() * 1_000)
        .unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_cut_to_whole_microseconds() {
        let time = OffsetDateTime::UNIX_EPOCH;
        let nanoseconds = time.replace_nanosecond(123_456_789).map(to_microseconds);
        assert_eq!(nanoseconds, time.replace_nanosecond(123_456_000));
    }
}

//! Events as parameters of the append statements: an array for each column, or the columns of one
//! event. Pure.

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::identity::{identity, key};
use crate::model::event::{Asked, Event, Import, Step};

/// The feeds of events.
pub(super) fn feeds<'a>(events: &[&'a Event]) -> Vec<&'a str> {
    events.iter().map(|event| feed(event)).collect()
}

/// The feed of an event.
pub(super) fn feed(event: &Event) -> &str {
    event.recipient.as_str()
}

/// Binds the stored columns of one event.
pub(super) fn bind_event<'a>(
    query: Query<'a, Postgres, PgArguments>,
    event: &'a Event,
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    query
        .bind(feed(event))
        .bind(identity(event))
        .bind(event.source.as_str())
        .bind(event.id.as_str())
        .bind(event.event_type.as_str())
        .bind(event.time.unwrap_or(received_at))
        .bind(event.data.as_ref().map(|data| data.get()))
        .bind(event.collapse_key.as_deref())
        .bind(event.expires_at)
        .bind(subject_key(event))
        .bind(order_key(event))
}

/// Binds the stored columns of each event except its feed.
pub(super) fn bind_events<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &[&'a Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let data = |event: &'a Event| event.data.as_ref().map(|data| data.get());
    query
        .bind(column(events, identity))
        .bind(column(events, |event| event.source.as_str()))
        .bind(column(events, |event| event.id.as_str()))
        .bind(column(events, |event| event.event_type.as_str()))
        .bind(column(events, |event| event.time.unwrap_or(received_at)))
        .bind(column(events, data))
        .bind(column(events, |event| event.collapse_key.as_deref()))
        .bind(column(events, |event| event.expires_at))
        .bind(column(events, subject_key))
        .bind(column(events, order_key))
}

/// Binds `in_asking_events` to `in_handle_bys`: one element for each event that asks for receipts.
pub(super) fn bind_asked<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &[&'a Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let (places, asked): (Vec<i64>, Vec<&Asked>) = (1..)
        .zip(events)
        .filter_map(|(place, event)| Some((place, event.asked.as_ref()?)))
        .unzip();
    let after = |seconds: i64| received_at.checked_add(Duration::seconds(seconds));
    query
        .bind(places)
        .bind(column(&asked, |asked| asked.facts))
        .bind(column(&asked, |asked| asked.deliver_within.and_then(after)))
        .bind(column(&asked, |asked| asked.handle_within.and_then(after)))
}

/// Binds `in_settling_events` to `in_handled_bys`: one element for each subject that an event settles.
pub(super) fn bind_settlements<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &[&'a Event],
) -> Query<'a, Postgres, PgArguments> {
    let (mut places, mut keys, mut handled_bys) = (vec![], vec![], vec![]);
    for (place, event) in (1_i64..).zip(events) {
        let Some(settlement) = &event.settles else {
            continue;
        };
        for subject in &settlement.subjects {
            places.push(place);
            keys.push(key(event, subject));
            handled_bys.push(settlement.handled_by);
        }
    }
    query.bind(places).bind(keys).bind(handled_bys)
}

fn subject_key(event: &Event) -> Option<Uuid> {
    let subject = event.subjects.subject.as_deref();
    subject.map(|subject| key(event, subject))
}

fn order_key(event: &Event) -> Option<Uuid> {
    let order_id = event.subjects.order_id.as_deref();
    order_id.map(|order_id| key(event, order_id))
}

/// Binds `in_received_at`, and `in_step_events` to `in_step_statuses`: one element for each import event.
pub(super) fn bind_steps<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &[&'a Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let (places, imports): (Vec<i64>, Vec<&'a Import>) = steps(events).unzip();
    let is_done = |step| matches!(step, Step::Imported | Step::Failed);
    query
        .bind(received_at)
        .bind(places)
        .bind(column(&imports, |import| import.id.as_str()))
        .bind(column(&imports, |import| import.item))
        .bind(column(&imports, |import| i64::from(is_done(import.step))))
        .bind(column(&imports, |import| {
            i64::from(import.step == Step::Failed)
        }))
        .bind(column(&imports, |import| total(import.step)))
        .bind(column(&imports, |import| status(import.step)))
}

/// The import events, with their places in the batch; Postgres counts from 1.
fn steps<'a>(events: &[&'a Event]) -> impl Iterator<Item = (i64, &'a Import)> {
    (1..)
        .zip(events)
        .filter_map(|(place, event)| Some((place, event.import.as_ref()?)))
}

fn column<'a, T, U>(items: &[&'a T], of: impl Fn(&'a T) -> U) -> Vec<U> {
    items.iter().map(|item| of(item)).collect()
}

/// The total that a step sets.
fn total(step: Step) -> Option<i64> {
    match step {
        Step::Started { total } => Some(total),
        _ => None,
    }
}

/// The status that a step sets, as `imports.status`.
fn status(step: Step) -> Option<&'static str> {
    match step {
        Step::Finished => Some("finished"),
        Step::Aborted => Some("aborted"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_start_sets_a_total_and_only_an_end_sets_a_status() {
        for (step, expected) in [
            (Step::Started { total: 3 }, (Some(3), None)),
            (Step::Imported, (None, None)),
            (Step::Failed, (None, None)),
            (Step::Finished, (None, Some("finished"))),
            (Step::Aborted, (None, Some("aborted"))),
        ] {
            assert_eq!((total(step), status(step)), expected, "{step:?}");
        }
    }
}

//! Settlements: an event that makes earlier notifications of its source need no person any more.
//!
//! A notification has subjects, and a settlement names the subjects that it settles. An order has its
//! `order_id` as subject, also if it names another one.

/// `handled_by` of an order that was cancelled.
const CANCELLED: &str = "cancelled";
/// `handled_by` of a notification that another event settled.
const SETTLED: &str = "settled";

/// The names by which later events of the same source may settle a notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subjects {
    /// `subject` (CloudEvents 1.0, "subject"). An event `order.*` without one has its `order_id`.
    pub subject: Option<String>,
    /// The `order_id` of an event `order.*`, if its `subject` differs.
    pub order_id: Option<String>,
}

/// The earlier notifications of the same source that an event settles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Their subjects.
    pub subjects: Vec<String>,
    /// The `handled_by` that they get.
    pub handled_by: &'static str,
}

/// The order that an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// `order_id`.
    pub(super) id: String,
    /// Whether the event cancels it.
    pub(super) is_cancelled: bool,
}

impl Subjects {
    /// The subjects of an event with this `subject`, which may be about an order.
    pub(super) fn new(subject: Option<String>, order: Option<&Order>) -> Self {
        let order_id = order.map(|order| order.id.clone());
        match subject {
            None => Self {
                subject: order_id,
                order_id: None,
            },
            Some(subject) => Self {
                order_id: order_id.filter(|id| *id != subject),
                subject: Some(subject),
            },
        }
    }
}

impl Settlement {
    /// The settlement of an event with this `settles`, which may be about an order.
    pub(super) fn new(settles: Option<String>, order: Option<&Order>) -> Option<Self> {
        let cancelled = order.filter(|order| order.is_cancelled);
        let mut subjects: Vec<String> = cancelled
            .map(|order| order.id.clone())
            .into_iter()
            .collect();
        subjects.extend(settles.filter(|subject| !subjects.contains(subject)));
        (!subjects.is_empty()).then_some(Self {
            subjects,
            handled_by: match cancelled {
                Some(_) => CANCELLED,
                None => SETTLED,
            },
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::cloud_event::Event;
    use super::super::sample;

    fn event(event_type: &str, attributes: &str, data: &str) -> Event {
        let body = sample::structured_body(event_type, &format!("{data}{attributes}"));
        sample::structured(&body).unwrap()
    }

    const ORDER: &str = r#"{"order_id":"A-1","total":"12.50","currency":"EUR","items":3}"#;
    const ID: &str = r#"{"order_id":"A-1"}"#;

    #[test]
    fn an_order_has_its_id_as_subject_also_if_it_names_another() {
        for (event_type, attributes, data, expected) in [
            ("order.created", "", ORDER, (Some("A-1"), None)),
            ("order.updated", "", ID, (Some("A-1"), None)),
            ("order.cancelled", "", ID, (Some("A-1"), None)),
            (
                "order.created",
                r#","subject":"A-1""#,
                ORDER,
                (Some("A-1"), None),
            ),
            (
                "order.created",
                r#","subject":"s""#,
                ORDER,
                (Some("s"), Some("A-1")),
            ),
            ("custom.thing", r#","subject":"s""#, ID, (Some("s"), None)),
            ("custom.thing", "", ID, (None, None)),
        ] {
            let subjects = event(event_type, attributes, data).subjects;
            let found = (subjects.subject.as_deref(), subjects.order_id.as_deref());
            assert_eq!(found, expected, "{event_type} {attributes}");
        }
    }

    #[test]
    fn a_cancellation_settles_its_order_and_any_event_the_subject_that_it_names() {
        for (event_type, attributes, data, expected) in [
            ("order.created", "", ORDER, None),
            ("order.updated", "", ID, None),
            ("order.cancelled", "", ID, Some((vec!["A-1"], "cancelled"))),
            (
                "order.cancelled",
                r#","settles":"A-1""#,
                ID,
                Some((vec!["A-1"], "cancelled")),
            ),
            (
                "order.cancelled",
                r#","settles":"s""#,
                ID,
                Some((vec!["A-1", "s"], "cancelled")),
            ),
            (
                "stock.refilled",
                r#","settles":"s""#,
                "1",
                Some((vec!["s"], "settled")),
            ),
            ("stock.refilled", r#","subject":"s""#, "1", None),
        ] {
            let settles = event(event_type, attributes, data).settles;
            let found = settles.as_ref().map(|settles| {
                let subjects = settles.subjects.iter().map(String::as_str).collect();
                (subjects, settles.handled_by)
            });
            assert_eq!(found, expected, "{event_type} {attributes}");
        }
    }

    #[test]
    fn an_unusable_subject_is_ignored_and_an_unusable_settles_refused() {
        let too_long = format!("{:?}", "x".repeat(1025));
        for value in ["{}", r#""""#, r#""a\u0000""#, &too_long] {
            let event = sample::structured(&sample::with("subject", value)).unwrap();
            assert_eq!(event.subjects.subject, None, "{value}");
            let rejection = sample::structured(&sample::with("settles", value)).unwrap_err();
            let expected = "invalid_envelope: attribute `settles` must be ";
            assert!(rejection.to_string().starts_with(expected), "{rejection}");
        }
    }
}

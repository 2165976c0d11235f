//! The schemas of the event types of the contract. The data of any other type may be any JSON.
//!
//! A schema checks only the fields that it names, so that publishers may add fields.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::import::{IMPORT_ID_BYTES_MAX, Import, Step};
use super::json::{self, Member, MemberValue};
use super::rejection::{Reason, Rejection};
use super::settlement::Order;
use super::timestamp;

/// Longest `total` of an order, in bytes: 12 digits, the point, and the 18 decimals of the smallest
/// unit of any currency.
const DECIMAL_BYTES_MAX: usize = 32;

/// The name of a field and its rule, without its value.
type Violation = String;

/// The parts of data that Shopbell uses.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// The import that it belongs to, if its type is of an import.
    pub(super) import: Option<Import>,
    /// The order that it is about, if its type is of an order.
    pub(super) order: Option<Order>,
}

/// Checks data by the schema of its type. Returns its parts about an import or an order.
pub(super) fn check(event_type: &str, data: Option<&RawValue>) -> Result<Described, Rejection> {
    let schema = match event_type {
        "order.created" => order_created,
        "order.updated" => order_updated,
        "order.cancelled" => order_cancelled,
        "import.started" => import_started,
        "import.item" => import_item,
        "import.finished" => import_finished,
        _ => return Ok(Described::default()),
    };
    data.ok_or_else(|| "missing data".to_owned())
        .and_then(schema)
        .map_err(|violation| {
            Rejection::new(Reason::InvalidData, format!("{event_type}: {violation}"))
        })
}

fn order_created(data: &RawValue) -> Result<Described, Violation> {
    let [order_id, total, currency, items, details @ ..] = order_fields(data)?;
    let described = order(order_id, false)?;
    required(total, DECIMAL)?;
    required(currency, CURRENCY)?;
    required(items, COUNT)?;
    order_details(details)?;
    Ok(described)
}

/// It has the fields of the order that changed.
fn order_updated(data: &RawValue) -> Result<Described, Violation> {
    let [order_id, total, currency, items, details @ ..] = order_fields(data)?;
    let described = order(order_id, false)?;
    optional(total, DECIMAL)?;
    optional(currency, CURRENCY)?;
    optional(items, COUNT)?;
    order_details(details)?;
    Ok(described)
}

fn order_cancelled(data: &RawValue) -> Result<Described, Violation> {
    let [order_id, reason] = fields(data, ["order_id", "reason"])?;
    let described = order(order_id, true)?;
    optional(reason, TEXT)?;
    Ok(described)
}

fn order_fields(data: &RawValue) -> Result<[Member<'_>; 7], Violation> {
    fields(
        data,
        [
            "order_id",
            "total",
            "currency",
            "items",
            "customer",
            "placed_at",
            "accept_by",
        ],
    )
}

fn order_details([customer, placed_at, accept_by]: [Member<'_>; 3]) -> Result<(), Violation> {
    optional(customer, ANYTHING)?;
    optional(placed_at, TIMESTAMP)?;
    optional(accept_by, TIMESTAMP)?;
    Ok(())
}

fn order(order_id: Member<'_>, is_cancelled: bool) -> Result<Described, Violation> {
    let id = required(order_id, FILLED_TEXT)?;
    Ok(Described {
        order: Some(Order { id, is_cancelled }),
        ..Described::default()
    })
}

fn import(id: String, step: Step, item: Option<i64>) -> Described {
    Described {
        import: Some(Import { id, step, item }),
        ..Described::default()
    }
}

fn import_started(data: &RawValue) -> Result<Described, Violation> {
    let [import_id, total] = fields(data, ["import_id", "total"])?;
    let id = required(import_id, IMPORT_ID)?;
    let total = required(total, COUNT)?;
    Ok(import(id, Step::Started { total }, None))
}

fn import_item(data: &RawValue) -> Result<Described, Violation> {
    let [import_id, index, sku, status, error] =
        fields(data, ["import_id", "index", "sku", "status", "error"])?;
    let id = required(import_id, IMPORT_ID)?;
    let item = Some(required(index, COUNT_FROM_ONE)?);
    required(sku, TEXT)?;
    let step = required(status, ITEM_STATUS)?;
    match step {
        Step::Failed => drop(required(error, FILLED_TEXT)?),
        _ => _ = optional(error, ANYTHING)?,
    }
    Ok(import(id, step, item))
}

fn import_finished(data: &RawValue) -> Result<Described, Violation> {
    let [import_id, status] = fields(data, ["import_id", "status"])?;
    let id = required(import_id, IMPORT_ID)?;
    let step = required(status, IMPORT_STATUS)?;
    Ok(import(id, step, None))
}

/// The rule of a field: in words that follow "must be", and as a function that parses the value.
struct Rule<T>(&'static str, fn(&RawValue) -> Option<T>);

const ANYTHING: Rule<()> = Rule("any JSON", |_| Some(()));
/// It may be empty: an item can fail because it has no `sku`.
const TEXT: Rule<()> = Rule("a string", |value| is(value, |_| true));
const FILLED_TEXT: Rule<String> = Rule("a string that is not empty", |value| {
    json::text(value)
        .filter(|text| !text.is_empty())
        .map(Cow::into_owned)
});
const DECIMAL: Rule<()> = Rule("a decimal string like 12.50", |value| is(value, is_decimal));
/// The list of currencies is not checked, because ISO 4217 changes more often than Shopbell is
/// updated.
const CURRENCY: Rule<()> = Rule("three capital letters (ISO 4217)", |value| {
    is(value, |text| {
        text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase())
    })
});
const COUNT: Rule<i64> = Rule("a whole number from 0", count);
const COUNT_FROM_ONE: Rule<i64> = Rule("a whole number from 1", |value| {
    count(value).filter(|&count| count > 0)
});
const TIMESTAMP: Rule<()> = Rule("an RFC 3339 timestamp", |value| {
    is(value, |text| timestamp::parse(text).is_some())
});
/// Postgres must be able to store it as a part of a key.
const IMPORT_ID: Rule<String> = Rule(
    "1 to 128 bytes of text without control characters",
    |value| {
        let text = json::text(value)?;
        ((1..=IMPORT_ID_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control))
            .then(|| text.into_owned())
    },
);
const ITEM_STATUS: Rule<Step> = Rule("`imported` or `failed`", |value| {
    match &*json::text(value)? {
        "imported" => Some(Step::Imported),
        "failed" => Some(Step::Failed),
        _ => None,
    }
});
const IMPORT_STATUS: Rule<Step> = Rule("`finished` or `aborted`", |value| {
    match &*json::text(value)? {
        "finished" => Some(Step::Finished),
        "aborted" => Some(Step::Aborted),
        _ => None,
    }
});

fn is(value: &RawValue, rule: impl Fn(&str) -> bool) -> Option<()> {
    rule(&json::text(value)?).then_some(())
}

/// A number that fits into a `bigint` of Postgres.
fn count(value: &RawValue) -> Option<i64> {
    json::integer(value).filter(|&count| count >= 0)
}

fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    text.len() <= DECIMAL_BYTES_MAX
        && match unsigned.split_once('.') {
            Some((whole, fraction)) => digits(whole) && digits(fraction),
            None => digits(unsigned),
        }
}

fn fields<'a, const N: usize>(
    data: &'a RawValue,
    names: [&'static str; N],
) -> Result<[Member<'a>; N], Violation> {
    json::members(data, names).ok_or_else(|| "data must be an object".to_owned())
}

fn required<T>(field: Member<'_>, rule: Rule<T>) -> Result<T, Violation> {
    let name = field.name;
    optional(field, rule)?.ok_or_else(|| format!("missing field `{name}`"))
}

/// Null equals absent, as in the envelope.
fn optional<T>(field: Member<'_>, Rule(words, read): Rule<T>) -> Result<Option<T>, Violation> {
    let name = field.name;
    match field.value {
        MemberValue::Absent => Ok(None),
        MemberValue::Once(value) if value.get() == "null" => Ok(None),
        MemberValue::Once(value) => match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("field `{name}` must be {words}")),
        },
        MemberValue::Repeated => Err(format!("field `{name}` appears more than once")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::sample::{self, FAILED, FINISHED, ITEM, ORDER, SCHEMAS, STARTED};
    use super::*;

    #[test]
    fn data_may_have_fields_that_its_schema_does_not_name() {
        for (event_type, fields) in SCHEMAS {
            for more in ["", r#","new":{"a":1e400},"new":2,"\ud800":"\ud800""#] {
                assert_eq!(violation(event_type, &format!("{{{fields}{more}}}")), None);
            }
        }
    }

    #[test]
    fn another_type_has_no_schema() {
        for event_type in [
            "order.create",
            "order.created.v2",
            "Order.Created",
            "import",
        ] {
            assert_eq!(violation(event_type, "7"), None);
        }
    }

    #[test]
    fn data_must_be_an_object() {
        for (event_type, _) in SCHEMAS {
            for data in ["null", "7", r#""s3cr3t""#, r#"["s3cr3t"]"#] {
                let expected = format!("{event_type}: data must be an object");
                assert_eq!(violation(event_type, data), Some(expected));
            }
            let rejection = check(event_type, None).unwrap_err();
            assert_eq!(rejection.detail, format!("{event_type}: missing data"));
        }
    }

    #[test]
    fn a_rejection_names_the_missing_field() {
        for (event_type, fields) in SCHEMAS {
            let fields: Vec<_> = fields.split(',').collect();
            for missing in &fields {
                let name = missing.split('"').nth(1).unwrap();
                let others: Vec<_> = fields
                    .iter()
                    .filter(|field| *field != missing)
                    .copied()
                    .collect();
                let others = others.join(",");
                let expected = format!("{event_type}: missing field `{name}`");
                assert_eq!(
                    violation(event_type, &format!("{{{others}}}")),
                    Some(expected.clone())
                );
                let null = format!(r#"{{"{name}":null,{others}}}"#);
                assert_eq!(violation(event_type, &null), Some(expected));
                let twice = format!(r#"{{{others},{missing},{missing}}}"#);
                let expected = format!("{event_type}: field `{name}` appears more than once");
                assert_eq!(violation(event_type, &twice), Some(expected));
            }
        }
    }

    #[test]
    fn optional_fields_are_checked_if_they_are_set() {
        let order = |more: &str| violation("order.created", &format!("{{{ORDER},{more}}}"));
        for customer in ["null", "1e400", r#"{"a":[]}"#, r#""\ud800""#] {
            assert_eq!(order(&format!(r#""customer":{customer}"#)), None);
        }
        assert_eq!(order(r#""placed_at":"2026-01-02T03:04:05+01:00""#), None);
        assert_eq!(order(r#""placed_at":null"#), None);
        for (more, expected) in [
            (
                r#""placed_at":"today""#,
                "field `placed_at` must be an RFC 3339 timestamp",
            ),
            (
                r#""placed_at":7"#,
                "field `placed_at` must be an RFC 3339 timestamp",
            ),
            (
                r#""customer":1,"customer":2"#,
                "field `customer` appears more than once",
            ),
        ] {
            assert_eq!(order(more), Some(format!("order.created: {expected}")));
        }
    }

    #[test]
    fn a_field_of_an_order_accepts_only_values_of_its_rule() {
        let order = |field, good: &[&str], bad: &[&str]| {
            check_field("order.created", ORDER, field, good, bad);
        };
        let too_long_total = format!("{:?}", "1".repeat(DECIMAL_BYTES_MAX + 1));
        let no_text = ["7", r#""""#, r#""\ud800""#];
        order(r#""order_id":"A-1""#, &[r#""é""#], &no_text);
        let long_total = format!("{:?}", "1".repeat(DECIMAL_BYTES_MAX));
        let good = [r#""0""#, r#""-12.5""#, r#""007.10""#, &long_total];
        order(r#""total":"12.50""#, &good, &["12.50", &too_long_total]);
        let bad = [
            "", "-", ".5", "5.", "1,50", "+1", "1e3", "1.2.3", "--1", " 1", "١",
        ];
        for text in bad {
            order(r#""total":"12.50""#, &[], &[&format!("{text:?}")]);
        }
        let bad = [r#""eur""#, r#""EURO""#, r#""EU""#, r#""€""#, "978"];
        order(r#""currency":"EUR""#, &[r#""XAU""#], &bad);
        let good = [
            "0",
            "-0",
            "3.0",
            "3e0",
            "30E-1",
            "0.0e9",
            "9223372036854775807",
            "92233720368547758070e-1",
        ];
        let too_large = "9223372036854775808";
        let bad = ["-1", "3.5", "1e-1", r#""3""#, too_large, "1e19", "true"];
        order(r#""items":3"#, &good, &bad);
    }

    #[test]
    fn a_field_of_an_import_accepts_only_values_of_its_rule() {
        let long_id = format!("{:?}", "x".repeat(IMPORT_ID_BYTES_MAX));
        let too_long_id = format!("{:?}", "x".repeat(IMPORT_ID_BYTES_MAX + 1));
        let good = [r#"" ""#, &long_id];
        let bad = ["7", r#""""#, r#""a\u0000""#, r#""\ud800""#, &too_long_id];
        check_field(
            "import.started",
            STARTED,
            r#""import_id":"i-1""#,
            &good,
            &bad,
        );

        let item = |field, good: &[&str], bad: &[&str]| {
            check_field("import.item", ITEM, field, good, bad);
        };
        item(r#""index":1"#, &["2"], &["0", "-1", "1.5"]);
        item(r#""sku":"S""#, &[r#""""#], &["7", "[]"]);
        let bad = [r#""done""#, r#""failed ""#, "true"];
        item(r#""status":"imported""#, &[], &bad);

        let (good, bad) = ([r#""aborted""#], [r#""Finished""#, r#""""#, "1"]);
        let field = r#""status":"finished""#;
        check_field("import.finished", FINISHED, field, &good, &bad);
    }

    /// Replaces the value of one of the fields by each of the good and bad values.
    #[track_caller]
    fn check_field(event_type: &str, fields: &str, field: &str, good: &[&str], bad: &[&str]) {
        let (name, _) = field.split_once(':').unwrap();
        let data =
            |value: &str| format!("{{{}}}", fields.replace(field, &format!("{name}:{value}")));
        for value in good {
            assert_eq!(violation(event_type, &data(value)), None, "{value}");
        }
        for value in bad {
            let violation = violation(event_type, &data(value)).unwrap_or_default();
            let expected = format!("{event_type}: field `{}` must be", name.replace('"', ""));
            assert!(
                violation.starts_with(&expected),
                "{name} {value}: {violation}"
            );
        }
    }

    #[test]
    fn a_failed_item_has_an_error() {
        for error in [r#""""#, "7", "[]"] {
            let data = format!("{{{}}}", FAILED.replace(r#""no sku""#, error));
            let expected = "import.item: field `error` must be a string that is not empty";
            assert_eq!(violation("import.item", &data).as_deref(), Some(expected));
        }
        assert_eq!(
            violation("import.item", &format!(r#"{{{ITEM},"error":7}}"#)),
            None
        );
    }

    #[test]
    fn imported_items_collapse_by_their_import_and_milestones_never() {
        for (event_type, fields, by_itself, with_a_key) in [
            ("custom.thing", ORDER, None, Some("k")),
            ("order.created", ORDER, None, Some("k")),
            ("import.started", STARTED, None, None),
            ("import.item", ITEM, Some("import/i-1"), Some("k")),
            ("import.item", FAILED, None, None),
            ("import.finished", FINISHED, None, None),
        ] {
            let data = format!("{{{fields}}}");
            let event = sample::structured_data(event_type, &data).unwrap();
            assert_eq!(event.collapse_key.as_deref(), by_itself, "{event_type}");
            let body = sample::structured_body(event_type, &format!(r#"{data},"collapsekey":"k""#));
            let event = sample::structured(&body).unwrap();
            assert_eq!(event.collapse_key.as_deref(), with_a_key, "{event_type}");
        }
    }

    /// The detail of the rejection. `None` if the data is accepted, and then it is unchanged.
    fn violation(event_type: &str, data: &str) -> Option<String> {
        match sample::structured_data(event_type, data) {
            Ok(event) => {
                assert_eq!(event.data.unwrap().get(), data);
                None
            }
            Err(rejection) => {
                assert_eq!(rejection.reason, Reason::InvalidData);
                Some(rejection.detail)
            }
        }
    }
}

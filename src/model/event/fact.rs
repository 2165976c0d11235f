//! Facts about a notification, and those that its publisher asks for.

use super::rejection::{Reason, Rejection};

/// Longest `deliverwithin` and `handlewithin`, in seconds: 30 days, as long as notifications are kept by default.
pub const WITHIN_SECONDS_MAX: i64 = 30 * 24 * 3600;

/// A fact about a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// Somebody acknowledged it.
    Delivered,
    /// Somebody read it.
    Read,
    /// Somebody handled it.
    Handled,
    /// Another event settled it.
    Settled,
    /// It expired before anybody acknowledged it.
    Expired,
    /// Nobody acknowledged it in time.
    Undelivered,
    /// Nobody handled it in time.
    Overdue,
}

impl Fact {
    /// All facts.
    pub const ALL: [Self; 7] = [
        Self::Delivered,
        Self::Read,
        Self::Handled,
        Self::Settled,
        Self::Expired,
        Self::Undelivered,
        Self::Overdue,
    ];
    /// The facts that `receipts` may name.
    const NAMED: usize = 5;

    /// Its word in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Handled => "handled",
            Self::Settled => "settled",
            Self::Expired => "expired",
            Self::Undelivered => "undelivered",
            Self::Overdue => "overdue",
        }
    }

    /// Its bit in `receipts.wanted` and `receipts.published`.
    pub fn bit(self) -> i32 {
        1 << self as i32
    }
}

/// A request for receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The bits of the facts.
    pub facts: i32,
    /// Seconds after which a missing delivery is reported.
    pub deliver_within: Option<i64>,
    /// Seconds after which a missing handle is reported.
    pub handle_within: Option<i64>,
}

impl Asked {
    /// Reads `receipts`, `deliverwithin` and `handlewithin`. Returns `None` if there is none of them.
    pub(super) fn read(
        receipts: Option<&str>,
        deliver_within: Option<&str>,
        handle_within: Option<&str>,
    ) -> Result<Option<Self>, Rejection> {
        let mut asked = Self {
            facts: receipts.map_or(Ok(0), named)?,
            deliver_within: seconds("deliverwithin", deliver_within)?,
            handle_within: seconds("handlewithin", handle_within)?,
        };
        if asked.deliver_within.is_some() {
            asked.facts |= Fact::Undelivered.bit();
        }
        if asked.handle_within.is_some() {
            asked.facts |= Fact::Overdue.bit();
        }
        Ok((asked.facts != 0).then_some(asked))
    }
}

/// The bits of the facts that a list names.
fn named(list: &str) -> Result<i32, Rejection> {
    let mut facts = 0;
    for word in list.split(',').map(str::trim) {
        let fact = Fact::ALL
            .into_iter()
            .take(Fact::NAMED)
            .find(|fact| fact.as_str() == word);
        let rule =
            "attribute `receipts` must be a list of delivered, read, handled, settled, expired";
        facts |= fact
            .ok_or_else(|| Rejection::new(Reason::InvalidEnvelope, rule))?
            .bit();
    }
    Ok(facts)
}

fn seconds(name: &str, text: Option<&str>) -> Result<Option<i64>, Rejection> {
    let parse = |text: &str| {
        let seconds = text.parse().ok();
        seconds
            .filter(|seconds| (1..=WITHIN_SECONDS_MAX).contains(seconds))
            .ok_or_else(|| {
                let rule =
                    format!("attribute `{name}` must be seconds, from 1 to {WITHIN_SECONDS_MAX}");
                Rejection::new(Reason::InvalidEnvelope, rule)
            })
    };
    text.map(parse).transpose()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::sample;
    use super::*;

    fn asked(attributes: &str) -> Result<Option<Asked>, Rejection> {
        let body = sample::structured_body("custom.thing", &format!("1{attributes}"));
        Ok(sample::structured(&body)?.asked)
    }

    #[test]
    fn an_event_asks_for_the_facts_that_it_names() {
        assert_eq!(asked("").unwrap(), None);
        let both = asked(r#","receipts":"delivered, handled","deliverwithin":30"#)
            .unwrap()
            .unwrap();
        let facts = Fact::Delivered.bit() | Fact::Handled.bit() | Fact::Undelivered.bit();
        assert_eq!(
            (both.facts, both.deliver_within, both.handle_within),
            (facts, Some(30), None)
        );
        let overdue = asked(r#","handlewithin":"70""#).unwrap().unwrap();
        assert_eq!(
            (overdue.facts, overdue.handle_within),
            (Fact::Overdue.bit(), Some(70))
        );
    }

    #[test]
    fn a_wrong_request_is_refused_with_its_rule() {
        for receipts in [
            r#""""#,
            r#""heard""#,
            r#""delivered,""#,
            r#""overdue""#,
            "7",
        ] {
            let rejection = asked(&format!(r#","receipts":{receipts}"#)).unwrap_err();
            assert!(
                rejection
                    .detail
                    .starts_with("attribute `receipts` must be "),
                "{rejection}"
            );
        }
        for name in ["deliverwithin", "handlewithin"] {
            for value in ["0", "-1", r#""soon""#, "2592001", "1.5"] {
                let rejection = asked(&format!(r#","{name}":{value}"#)).unwrap_err();
                let expected = format!("attribute `{name}` must be ");
                assert!(rejection.detail.starts_with(&expected), "{rejection}");
            }
        }
    }

    #[test]
    fn bits_are_those_of_the_migration() {
        let bits: Vec<i32> = Fact::ALL.iter().map(|fact| fact.bit()).collect();
        assert_eq!(bits, [1, 2, 4, 8, 16, 32, 64]);
    }
}

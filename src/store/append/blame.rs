//! What a failed append is to be blamed on: the one event, its feed, or neither.

use super::super::StoreError;

/// `append_new_notifications` and `append_notifications` raise it for a feed that is held.
const HELD: &str = "SB002";
/// Constraints of `notifications` that the numbering of a feed breaks, whatever the event is.
const OF_THE_NUMBERING: [&str; 3] = [
    "notifications_pkey",
    "notifications_seq_check",
    "notifications_source_event_id_feed_key",
];
/// Tables of which a constraint judges the row that was given.
const OF_THE_VALUES: [&str; 2] = ["notifications", "dead_letters"];

/// What to do about an append that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Postgres never takes this value.
    Value,
    /// What is stored of a feed contradicts itself, so that no event of it can be stored.
    Feed,
    /// A feed of it is held.
    Held,
    /// Nothing that was given: the same append may succeed later.
    Nothing,
}

impl Blame {
    /// Of an append that failed with this error.
    pub fn of(error: &StoreError) -> Self {
        match error {
            StoreError::Refused(sqlx::Error::Database(error))
            | StoreError::Away(sqlx::Error::Database(error)) => Self::of_code(
                &error.code().unwrap_or_default(),
                error.table(),
                error.constraint(),
            ),
            StoreError::Damaged(_) => Self::Feed,
            _ => Self::Nothing,
        }
    }

    /// An event is blamed only by a constraint that judges it, or for a value that Postgres cannot hold: all else would make dead
    /// letters of a feed's good events.
    fn of_code(code: &str, table: Option<&str>, constraint: Option<&str>) -> Self {
        let judges_a_value = || {
            table.is_some_and(|table| OF_THE_VALUES.contains(&table))
                && !constraint.is_some_and(|constraint| OF_THE_NUMBERING.contains(&constraint))
        };
        match code {
            HELD => Self::Held,
            // A counter beyond its type; times are checked before.
            "22003" => Self::Feed,
            _ => match code.get(..2) {
                Some("22" | "54") => Self::Value,
                Some("23") if judges_a_value() => Self::Value,
                Some("23") => Self::Feed,
                _ => Self::Nothing,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_constraint_that_judges_the_event_blames_it() {
        let notifications = Some("notifications");
        for (code, table, constraint, expected) in [
            ("22021", None, None, Blame::Value),
            ("54000", None, None, Blame::Value),
            ("23514", notifications, Some("of_an_operator"), Blame::Value),
            ("23502", notifications, None, Blame::Value),
            (
                "23505",
                Some("dead_letters"),
                Some("dead_letters_id_key"),
                Blame::Value,
            ),
            (
                "23505",
                notifications,
                Some("notifications_pkey"),
                Blame::Feed,
            ),
            (
                "23505",
                notifications,
                Some("notifications_source_event_id_feed_key"),
                Blame::Feed,
            ),
            (
                "23514",
                notifications,
                Some("notifications_seq_check"),
                Blame::Feed,
            ),
            (
                "23514",
                Some("feeds"),
                Some("feeds_unread_check"),
                Blame::Feed,
            ),
            (
                "23514",
                Some("imports"),
                Some("imports_status_check"),
                Blame::Feed,
            ),
            ("23000", None, None, Blame::Feed),
            ("22003", None, None, Blame::Feed),
            ("SB002", None, None, Blame::Held),
            ("40P01", None, None, Blame::Nothing),
            ("40001", None, None, Blame::Nothing),
            ("25006", None, None, Blame::Nothing),
            ("53100", None, None, Blame::Nothing),
            ("57014", None, None, Blame::Nothing),
            ("", None, None, Blame::Nothing),
        ] {
            assert_eq!(
                Blame::of_code(code, table, constraint),
                expected,
                "{code} {table:?} {constraint:?}"
            );
        }
    }
}

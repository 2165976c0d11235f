//! The cause of a failed append: its one event, its feed, or neither.

use crate::store::StoreError;

/// SQLSTATE of the append functions for a held feed.
const HELD: &str = "SB002";
const NOTIFICATIONS: &str = "notifications";
/// Constraints of `notifications` that a wrong numbering of the feed breaks, and no event.
const OF_THE_NUMBERING: [&str; 3] = [
    "notifications_pkey",
    "notifications_seq_check",
    "notifications_identity_key",
];
/// Tables whose other constraints depend on the values of the call.
const OF_THE_VALUES: [&str; 2] = [NOTIFICATIONS, "dead_letters"];

/// The cause of a failed append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// A value that Postgres never takes.
    Value,
    /// The stored rows of a feed contradict each other, so that none of its events can be stored.
    Feed,
    /// A feed of the batch is held.
    Held,
    /// None of these: the same append may succeed later.
    Nothing,
}

impl Blame {
    /// The cause of this error.
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

    /// Returns whether an append of new events broke a constraint of the numbering: one of them is
    /// stored already, or the rows of its feed contradict each other.
    pub(super) fn is_of_the_numbering(error: &StoreError) -> bool {
        let StoreError::Refused(sqlx::Error::Database(error)) = error else {
            return false;
        };
        error.table() == Some(NOTIFICATIONS)
            && error
                .constraint()
                .is_some_and(|constraint| OF_THE_NUMBERING.contains(&constraint))
    }

    /// Blames an event only for a constraint on its values, or for a value that Postgres cannot store.
    /// Otherwise good events of a feed would become dead letters.
    fn of_code(code: &str, table: Option<&str>, constraint: Option<&str>) -> Self {
        let is_on_values = || {
            table.is_some_and(|table| OF_THE_VALUES.contains(&table))
                && !constraint.is_some_and(|constraint| OF_THE_NUMBERING.contains(&constraint))
        };
        match code {
            HELD => Self::Held,
            // A counter beyond its type; times are checked before.
            "22003" => Self::Feed,
            _ => match code.get(..2) {
                Some("22" | "54") => Self::Value,
                Some("23") if is_on_values() => Self::Value,
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
    fn only_a_constraint_on_its_values_blames_an_event() {
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
                Some("notifications_identity_key"),
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

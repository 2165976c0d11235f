//! Checks standbys and replication slots of Postgres.

use super::Finding;
use crate::store::checkup::{Checkup, Kept, Receivers};

pub(super) fn standbys(checkup: &Checkup) -> Finding {
    const CHECK: &str = "postgres.standbys";
    let names = checkup.synchronous_standbys.as_str();
    let Receivers {
        standbys,
        synchronous,
        unseen,
    } = checkup.receivers;
    match names.is_empty() {
        // A missing permission is no fault.
        _ if unseen > 0 => Finding::ok(
            CHECK,
            format!(
                "{unseen} receivers of the log; synchronous_standby_names is {names:?}. The state of the receivers is not \
                 visible to this user without pg_read_all_stats"
            ),
        ),
        true if standbys == 0 => Finding::ok(
            CHECK,
            "none, so only the disk of this server and your backups protect the data",
        ),
        true => Finding::warning(
            CHECK,
            format!(
                "{standbys} connected, but synchronous_standby_names is empty, so a failover loses the last orders"
            ),
            "Add the standbys to synchronous_standby_names. Until then, publish again after a failover (docs/backup.md)",
        ),
        false if synchronous == 0 => Finding::error(
            CHECK,
            format!(
                "synchronous_standby_names is {names:?}, but none of them is connected, so every commit waits"
            ),
            "Start a named standby, or remove its name from synchronous_standby_names",
        ),
        false => Finding::ok(
            CHECK,
            format!("synchronous: {names}; {synchronous} connected"),
        ),
    }
}

pub(super) fn slots(checkup: &Checkup) -> Vec<Finding> {
    const CHECK: &str = "postgres.replication_slots";
    if checkup.idle_slots.is_empty() {
        return vec![Finding::ok(CHECK, "no slot is idle")];
    }
    let idle = checkup.idle_slots.iter().map(|slot| match slot.keeps {
        Kept::Bytes(bytes) => Finding::warning(
            CHECK,
            format!(
                "{} has no reader and keeps {} MiB of the log",
                slot.name,
                bytes >> 20
            ),
            "Start its reader, or drop the slot with pg_drop_replication_slot, because the log fills the disk",
        ),
        Kept::Lost => Finding::warning(
            CHECK,
            format!(
                "{} is lost, because its reader was away until the log was removed",
                slot.name
            ),
            "Drop the slot with pg_drop_replication_slot, and set up its reader again",
        ),
        Kept::Nothing => Finding::ok(CHECK, format!("{} keeps nothing, because it never had a reader", slot.name)),
    });
    idle.collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::State::{Error, Warning};
    use super::super::tests::check;
    use super::*;
    use crate::store::checkup::IdleSlot;

    fn receivers(standbys: i64, synchronous: i64, unseen: i64) -> Receivers {
        Receivers {
            standbys,
            synchronous,
            unseen,
        }
    }

    #[test]
    fn asynchronous_standbys_are_a_warning() {
        check(
            |checkup| checkup.receivers = receivers(1, 0, 0),
            &[("postgres.standbys", Warning)],
        );
        check(|checkup| checkup.receivers = receivers(0, 0, 1), &[]);
    }

    #[test]
    fn a_missing_synchronous_standby_is_an_error() {
        let named = |receivers, expected: &[_]| {
            let change = |checkup: &mut Checkup| {
                (checkup.synchronous_standbys, checkup.receivers) = ("standby_1".into(), receivers);
            };
            check(change, expected);
        };
        named(receivers(0, 0, 0), &[("postgres.standbys", Error)]);
        // The connected standby is not the named one.
        named(receivers(1, 0, 0), &[("postgres.standbys", Error)]);
        named(receivers(1, 1, 0), &[]);
        named(receivers(0, 0, 1), &[]);
    }

    #[test]
    fn a_slot_that_keeps_or_has_lost_log_is_a_warning() {
        let slot = |keeps| {
            vec![IdleSlot {
                name: "standby_2".into(),
                keeps,
            }]
        };
        check(
            |checkup| checkup.idle_slots = slot(Kept::Bytes(1 << 30)),
            &[("postgres.replication_slots", Warning)],
        );
        check(
            |checkup| checkup.idle_slots = slot(Kept::Lost),
            &[("postgres.replication_slots", Warning)],
        );
        check(|checkup| checkup.idle_slots = slot(Kept::Nothing), &[]);
    }
}

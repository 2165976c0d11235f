//! The claims of a replica to the partitions, by which replicas share them.

/// The difference between two ranks. A random part below it decides between equal ranks of two replicas.
const RANK_STEP: i32 = 1 << 16;
/// The claim to the only partition: a new replica does not take it from the one that works.
const SOLE: i32 = 0;

/// Returns the partitions in the order in which to consume them, each with its claim.
///
/// RabbitMQ 4 gives a partition to the replica with the highest claim. Each replica uses the same ranks in a random
/// order. So every replica has the highest claim to some partitions, whenever it starts. Older versions give a
/// partition to the first replica that consumes it, and the random order shares them.
pub fn claims(partitions: u8) -> Vec<(u8, i32)> {
    if partitions == 1 {
        return vec![(1, SOLE)];
    }
    let mut shuffled: Vec<u8> = (1..=partitions).collect();
    fastrand::shuffle(&mut shuffled);
    let claim = |(partition, rank)| (partition, rank * RANK_STEP + fastrand::i32(1..RANK_STEP));
    let mut claims: Vec<_> = shuffled.into_iter().zip(0..).map(claim).collect();
    claims.reverse();
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_start_one_after_another_share_the_partitions() {
        const PARTITIONS: u8 = 64;
        let mut highest: Vec<(usize, i32)> = vec![(0, 0); usize::from(PARTITIONS)];
        for replica in 1..=3 {
            for (partition, claim) in claims(PARTITIONS) {
                let holder = &mut highest[usize::from(partition) - 1];
                if claim > holder.1 {
                    *holder = (replica, claim);
                }
            }
        }
        for replica in 1..=3 {
            let share = highest.iter().filter(|(holder, _)| *holder == replica);
            // All three orders would have to be nearly the same.
            assert!(share.count() > 0, "replica {replica}: {highest:?}");
        }
    }

    #[test]
    fn every_partition_is_claimed_once_and_the_highest_claim_first() {
        for partitions in [1, 2, 7, u8::MAX] {
            let claims = claims(partitions);
            assert!(claims.is_sorted_by(|a, b| a.1 > b.1), "{claims:?}");
            let mut claimed: Vec<u8> = claims.into_iter().map(|(partition, _)| partition).collect();
            claimed.sort_unstable();
            assert!(claimed.into_iter().eq(1..=partitions));
        }
    }

    #[test]
    fn the_only_partition_stays_with_the_replica_that_works() {
        assert_eq!(claims(1), [(1, SOLE)]);
    }
}

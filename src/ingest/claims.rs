//! The claims of a replica to the partitions, by which replicas share them. Pure.

use crate::amqp::consumer::Claim;

/// Most connections by which a replica consumes its partitions. Each has a thread, 8 MiB of buffers and a task that
/// stores one batch at a time. Up to 16 partitions cost a replica no more than four. Each partition above that costs
/// the memory of the deliveries that RabbitMQ sends ahead for it.
const CONNECTIONS_MAX: u8 = 4;
/// The difference between two ranks. A random part below it decides between equal ranks of two replicas.
const RANK_STEP: i32 = 1 << 16;
/// The claim to the only partition: a new replica does not take it from the one that works.
const SOLE: i32 = 0;

/// The number of connections by which a replica consumes so many partitions.
pub fn connections(partitions: u8) -> u8 {
    partitions.min(CONNECTIONS_MAX)
}

/// Returns the claims of a replica, for each of its connections. The highest come first.
///
/// RabbitMQ 4 gives a partition to the replica with the highest claim. Each replica uses the same ranks in a random
/// order. So every replica has the highest claim to some partitions, whenever it starts. Older versions give a
/// partition to the first replica that consumes it, and the random order shares them.
pub fn claims(partitions: u8) -> Vec<Vec<Claim>> {
    let connections = usize::from(connections(partitions));
    let mut of_connections = vec![Vec::new(); connections];
    for (at, claim) in ranked(partitions).into_iter().enumerate() {
        of_connections[at % connections].push(claim);
    }
    of_connections
}

/// All claims, the highest first.
fn ranked(partitions: u8) -> Vec<Claim> {
    if partitions == 1 {
        return vec![Claim {
            partition: 1,
            priority: SOLE,
        }];
    }
    let mut shuffled: Vec<u8> = (1..=partitions).collect();
    fastrand::shuffle(&mut shuffled);
    let claim = |(partition, rank)| Claim {
        partition,
        priority: rank * RANK_STEP + fastrand::i32(1..RANK_STEP),
    };
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
            for claim in claims(PARTITIONS).concat() {
                let holder = &mut highest[usize::from(claim.partition) - 1];
                if claim.priority > holder.1 {
                    *holder = (replica, claim.priority);
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
    fn every_partition_is_claimed_once_over_few_connections() {
        for partitions in [1, 2, 7, 64, u8::MAX] {
            let claims = claims(partitions);
            assert_eq!(claims.len(), usize::from(connections(partitions)));
            assert!(claims.len() <= usize::from(CONNECTIONS_MAX));
            let (few, many) = claims.split_at(usize::from(partitions) % claims.len());
            let least = usize::from(partitions) / claims.len();
            assert!(few.iter().all(|claims| claims.len() == least + 1));
            assert!(many.iter().all(|claims| claims.len() == least));
            for claims in &claims {
                let priorities = claims.iter().map(|claim| claim.priority);
                assert!(priorities.rev().is_sorted(), "{claims:?}");
            }
            let mut claimed: Vec<u8> = claims.concat().iter().map(|it| it.partition).collect();
            claimed.sort_unstable();
            assert!(claimed.into_iter().eq(1..=partitions));
        }
    }

    #[test]
    fn the_only_partition_stays_with_the_replica_that_works() {
        let priorities: Vec<i32> = claims(1).concat().iter().map(|it| it.priority).collect();
        assert_eq!(priorities, [SOLE]);
    }
}

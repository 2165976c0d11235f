//! The faults, each with a plan: its target, its begin and its end.

mod broker;
pub mod clusters;
mod effects;
mod herd;
mod network;
mod postgres;
mod processes;
mod queues;
mod retention;
mod upkeep;

use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;
use network::{Link, Trouble};

use super::nemesis::{Fault, Plan};
use super::stage::{REPLICAS, Stage};

/// Every fault of one RabbitMQ and one Postgres, with the milliseconds that it lasts.
pub const ALL: &[Fault] = &[
    fault("kill-replica", 0..4_000, |stage, random| {
        processes::kill_replicas(stage, random, 1)
    }),
    fault("kill-all-replicas", 0..3_000, |stage, random| {
        processes::kill_replicas(stage, random, REPLICAS)
    }),
    fault("kill-behind-lock", 0..2_000, postgres::kill_behind_lock),
    fault("pause-replica", 500..15_000, processes::pause_replica),
    fault("terminate-replica", 0..3_000, |stage, random| {
        processes::terminate_replicas(stage, random, 1)
    }),
    fault("overlapping-drains", 0..2_000, |stage, random| {
        processes::terminate_replicas(stage, random, 2)
    }),
    fault("rolling-restart", 0..1, processes::restart_in_turn),
    fault("reconnect-herd", 1_000..4_000, herd::plan),
    fault("kill-rabbitmq", 0..4_000, |stage, _| {
        processes::service(stage, "rabbitmq", "kill")
    }),
    fault("stop-rabbitmq", 0..4_000, |stage, _| {
        processes::service(stage, "rabbitmq", "stop")
    }),
    fault("pause-rabbitmq", 500..12_000, |stage, _| {
        processes::pause_service(stage, "rabbitmq")
    }),
    fault("kill-postgres", 0..5_000, |stage, _| {
        processes::service(stage, "postgres", "kill")
    }),
    fault("restart-postgres", 0..5_000, |stage, _| {
        processes::service(stage, "postgres", "stop")
    }),
    fault("pause-postgres", 500..12_000, |stage, _| {
        processes::pause_service(stage, "postgres")
    }),
    fault(
        "terminate-backends",
        1_000..8_000,
        postgres::terminate_backends,
    ),
    fault("pool-exhausted", 1_000..10_000, |stage, _| {
        postgres::lock(stage, postgres::POOL_EXHAUSTED)
    }),
    fault("row-locks", 1_000..10_000, |stage, _| {
        postgres::lock(stage, postgres::ROW_LOCKS)
    }),
    fault("feeds-locked", 1_000..10_000, |stage, _| {
        postgres::lock(stage, postgres::TABLE_LOCK)
    }),
    fault("cursors-locked", 1_000..8_000, |stage, _| {
        postgres::lock(stage, postgres::CURSORS_LOCKED)
    }),
    fault("read-only-postgres", 1_000..8_000, postgres::read_only),
    fault("close-connections", 0..500, broker::close_connections),
    fault("memory-alarm", 1_000..8_000, |stage, _| {
        broker::memory_alarm(stage, false)
    }),
    fault("memory-alarm-with-poison", 1_000..8_000, |stage, _| {
        broker::memory_alarm(stage, true)
    }),
    fault("queue-deleted", 500..3_000, |stage, _| {
        broker::queue_deleted(stage, false)
    }),
    fault("queue-of-another-kind", 1_000..5_000, |stage, _| {
        broker::queue_deleted(stage, true)
    }),
    fault("consumer-timeout", 6_000..9_000, broker::consumer_timeout),
    fault("redelivery-storm", 2_000..8_000, broker::redelivery_storm),
    fault("disk-alarm", 1_000..8_000, upkeep::disk_alarm),
    fault("migration", 0..1_000, upkeep::migrate),
    fault("cut-postgres", 500..8_000, |stage, random| {
        network::plan(stage, random, Link::Postgres, Trouble::Cut)
    }),
    fault("black-hole-postgres", 500..12_000, |stage, random| {
        network::plan(stage, random, Link::Postgres, Trouble::BlackHole)
    }),
    fault("half-open-postgres", 0..1_000, |stage, random| {
        network::plan(stage, random, Link::Postgres, Trouble::HalfOpen)
    }),
    fault("slow-postgres", 2_000..8_000, |stage, random| {
        network::plan(stage, random, Link::Postgres, Trouble::Slow)
    }),
    fault("late-postgres", 2_000..8_000, |stage, random| {
        network::plan(stage, random, Link::Postgres, Trouble::Late)
    }),
    fault("commit-reply-lost", 0..2_000, |stage, random| {
        network::plan(stage, random, Link::Postgres, Trouble::RepliesLost)
    }),
    fault("cut-rabbitmq", 500..8_000, |stage, random| {
        network::plan(stage, random, Link::RabbitMq, Trouble::Cut)
    }),
    fault("black-hole-rabbitmq", 500..12_000, |stage, random| {
        network::plan(stage, random, Link::RabbitMq, Trouble::BlackHole)
    }),
    fault("half-open-rabbitmq", 0..1_000, |stage, random| {
        network::plan(stage, random, Link::RabbitMq, Trouble::HalfOpen)
    }),
    fault("slow-rabbitmq", 2_000..8_000, |stage, random| {
        network::plan(stage, random, Link::RabbitMq, Trouble::Slow)
    }),
    fault("late-rabbitmq", 2_000..8_000, |stage, random| {
        network::plan(stage, random, Link::RabbitMq, Trouble::Late)
    }),
    fault("delivery-ack-lost", 0..1_000, |stage, random| {
        network::plan(stage, random, Link::RabbitMq, Trouble::RequestsLost)
    }),
    fault("hints-lost", 500..6_000, network::hints_lost),
    fault("confirm-lost", 0..1_000, |stage, random| {
        network::plan(stage, random, Link::Publishers, Trouble::RepliesLost)
    }),
    fault("black-hole-clients", 500..12_000, |stage, random| {
        network::plan(stage, random, Link::Clients, Trouble::BlackHole)
    }),
    fault("half-open-clients", 0..1_000, |stage, random| {
        network::plan(stage, random, Link::Clients, Trouble::HalfOpen)
    }),
    fault("slow-clients", 2_000..8_000, |stage, random| {
        network::plan(stage, random, Link::Clients, Trouble::Slow)
    }),
    fault("late-clients", 2_000..8_000, |stage, random| {
        network::plan(stage, random, Link::Clients, Trouble::Late)
    }),
    fault("client-ack-lost", 0..1_000, |stage, random| {
        network::plan(stage, random, Link::Clients, Trouble::RequestsLost)
    }),
    fault("retention", 500..3_000, retention::age),
];

pub const fn fault(
    name: &'static str,
    lasts_ms: Range<u64>,
    plan: fn(&Arc<Stage>, &mut Rng) -> Plan,
) -> Fault {
    Fault {
        name,
        lasts_ms,
        plan,
    }
}

//! The faults, each with a plan: its target, its begin and its end.

mod network;
mod processes;

use network::{Link, Trouble};

use super::nemesis::Fault;

/// Every fault of one RabbitMQ and one Postgres.
pub const ALL: &[Fault] = &[
    Fault {
        name: "kill-replica",
        lasts_ms: 0..4_000,
        plan: processes::kill_replica,
    },
    Fault {
        name: "restart-postgres",
        lasts_ms: 0..5_000,
        plan: |stage, _| processes::service(stage, "postgres", "stop"),
    },
    Fault {
        name: "cut-postgres",
        lasts_ms: 500..8_000,
        plan: |stage, random| network::plan(stage, random, Link::Postgres, Trouble::Cut),
    },
    Fault {
        name: "black-hole-postgres",
        lasts_ms: 500..12_000,
        plan: |stage, random| network::plan(stage, random, Link::Postgres, Trouble::BlackHole),
    },
    Fault {
        name: "half-open-postgres",
        lasts_ms: 0..1_000,
        plan: |stage, random| network::plan(stage, random, Link::Postgres, Trouble::HalfOpen),
    },
    Fault {
        name: "slow-postgres",
        lasts_ms: 2_000..8_000,
        plan: |stage, random| network::plan(stage, random, Link::Postgres, Trouble::Slow),
    },
    Fault {
        name: "late-postgres",
        lasts_ms: 2_000..8_000,
        plan: |stage, random| network::plan(stage, random, Link::Postgres, Trouble::Late),
    },
    Fault {
        name: "commit-reply-lost",
        lasts_ms: 0..2_000,
        plan: |stage, random| network::plan(stage, random, Link::Postgres, Trouble::RepliesLost),
    },
    Fault {
        name: "black-hole-rabbitmq",
        lasts_ms: 500..12_000,
        plan: |stage, random| network::plan(stage, random, Link::RabbitMq, Trouble::BlackHole),
    },
    Fault {
        name: "half-open-rabbitmq",
        lasts_ms: 0..1_000,
        plan: |stage, random| network::plan(stage, random, Link::RabbitMq, Trouble::HalfOpen),
    },
    Fault {
        name: "slow-rabbitmq",
        lasts_ms: 2_000..8_000,
        plan: |stage, random| network::plan(stage, random, Link::RabbitMq, Trouble::Slow),
    },
    Fault {
        name: "late-rabbitmq",
        lasts_ms: 2_000..8_000,
        plan: |stage, random| network::plan(stage, random, Link::RabbitMq, Trouble::Late),
    },
    Fault {
        name: "delivery-ack-lost",
        lasts_ms: 0..1_000,
        plan: |stage, random| network::plan(stage, random, Link::RabbitMq, Trouble::RequestsLost),
    },
    Fault {
        name: "confirm-lost",
        lasts_ms: 0..1_000,
        plan: |stage, random| network::plan(stage, random, Link::Publishers, Trouble::RepliesLost),
    },
    Fault {
        name: "black-hole-clients",
        lasts_ms: 500..12_000,
        plan: |stage, random| network::plan(stage, random, Link::Clients, Trouble::BlackHole),
    },
    Fault {
        name: "half-open-clients",
        lasts_ms: 0..1_000,
        plan: |stage, random| network::plan(stage, random, Link::Clients, Trouble::HalfOpen),
    },
    Fault {
        name: "slow-clients",
        lasts_ms: 2_000..8_000,
        plan: |stage, random| network::plan(stage, random, Link::Clients, Trouble::Slow),
    },
    Fault {
        name: "late-clients",
        lasts_ms: 2_000..8_000,
        plan: |stage, random| network::plan(stage, random, Link::Clients, Trouble::Late),
    },
    Fault {
        name: "client-ack-lost",
        lasts_ms: 0..1_000,
        plan: |stage, random| network::plan(stage, random, Link::Clients, Trouble::RequestsLost),
    },
];

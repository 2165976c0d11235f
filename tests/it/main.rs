//! Shopbell, tested from outside: the shipped binary with a real RabbitMQ, a real Postgres and real
//! sockets.
//!
//! Every file is a topic, and every test holds one of the guarantees. Run them with
//! `make test`.
#![expect(
    clippy::expect_used,
    reason = "a test fails by panicking with a reason"
)]
#![expect(
    unreachable_pub,
    reason = "a test binary exports nothing: `pub` in `support` means: for the stories"
)]

mod acks;
mod alarms;
mod alarms_of_clients;
mod attributes;
mod broadcast;
mod canary;
mod client_limits;
mod commands;
mod commands_config;
mod commands_doctor;
mod commands_inspect;
mod commands_verify;
mod connections;
mod counters;
mod credentials;
mod damage;
mod damaged_feeds;
mod dashboard;
mod dead_letters;
mod devices;
mod drain;
mod encryption;
mod entry;
mod epoch;
mod escalations;
mod evidence;
mod faults;
mod forget;
mod goodbye;
mod handshake;
mod hints;
mod history;
mod housekeeping;
mod imports;
mod indexes;
mod key_set;
mod keys;
mod lean_hints;
mod limits;
mod lowering;
mod marks;
mod marks_cost;
mod marks_faults;
mod memory;
mod migration;
mod observability;
mod openings;
mod outbox;
mod outbox_faults;
mod pages;
mod plans;
mod poison;
mod pooler;
mod pools;
mod presence;
mod privileges;
mod privileges_rabbitmq;
mod prose;
mod protocol;
mod public_keys;
mod public_port;
mod publishing_http;
mod rabbitmq_alarm;
mod real_input;
mod receipts;
mod redaction;
mod redelivery;
mod replay;
mod replicas;
mod restore;
mod retention;
mod scale_out;
mod sessions;
mod settlements;
mod slow_client;
mod streams;
mod streams_requests;
mod support;
mod tidy;
mod tidy_docs;
mod tokens;
mod traces;
mod wss;

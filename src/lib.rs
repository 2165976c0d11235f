//! Shopbell: order events from RabbitMQ become notifications in Postgres and frames at the merchant's dashboard.
//!
//! One event's way through the house: [`ingest`] takes a delivery, [`event`] parses it, [`store`] numbers and keeps it,
//! [`fanout`] hands it to every replica, [`hub`] wakes the sessions of its feed, [`session`] sends it. The ack comes back
//! through [`session`] and [`cursors`] into [`store`]. Whoever is behind reads pages through [`pager`].
//!
//! `ARCHITECTURE.md` is the map; `migrations/` is the truth that everything else is derived from.
#![forbid(unsafe_code)]

pub mod amqp;
pub mod answers;
pub mod auth;
pub mod backoff;
pub mod canary;
pub mod change;
pub mod commands;
pub mod config;
pub mod cursors;
pub mod epoch;
pub mod event;
pub mod fanout;
pub mod feed;
pub mod health;
pub mod housekeeping;
pub mod http;
pub mod hub;
pub mod ingest;
pub mod notification;
pub mod pager;
pub mod protocol;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod watch;

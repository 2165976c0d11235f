//! Shopbell stores order events from RabbitMQ as notifications in Postgres and sends them to the merchant's dashboard.
//!
//! [`ingest`] takes deliveries from RabbitMQ, parses and stores them, and publishes hints through [`fanout`]. [`gateway`] runs
//! one session per WebSocket: it sends the notifications of its feeds and stores acks and marks. [`store`] holds every SQL
//! statement, and [`model`] the types that all parts share.
//!
//! `ARCHITECTURE.md` is the map.
#![forbid(unsafe_code)]

pub mod amqp;
pub mod commands;
pub mod config;
pub mod fanout;
pub mod gateway;
pub mod http;
pub mod ingest;
pub mod model;
pub mod ops;
pub mod outbox;
pub mod receipts;
pub mod retry;
pub mod store;
pub mod telemetry;
pub mod tls;

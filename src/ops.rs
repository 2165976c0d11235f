//! Operations: the routes of the operations port, probes for metrics, the canary, and housekeeping.

pub mod canary;
pub mod housekeeping;
pub mod probes;
pub mod relay;
pub mod retention;
pub mod routes;

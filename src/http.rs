//! Parts that every HTTP route needs: the listener, its bounds on connections, and errors as `application/problem+json` (RFC 9457).

pub mod client_address;
pub mod connections;
pub mod handover;
pub mod listener;
pub mod problem;

//! Events as publishers send them, parsed and checked.
//!
//! [`parse`] takes a [`Message`]: content type, headers and body, as AMQP or HTTP delivered them.
//! It returns an [`Event`] that can be stored, or a [`Rejection`] with its reason. Both forms of
//! CloudEvents 1.0 are parsed: structured (the body is the whole event) and binary (the body is the
//! data, and the headers are the attributes). The `data` of an event stays byte for byte the same.
//!
//! Nothing here does I/O or reads a clock. A rejection is permanent: every attempt to parse the
//! same message returns the same rejection. So the message is dead-lettered and never retried.
//!
//! The test `tidy` checks the order of the imports between the modules. A module imports those before
//! it: `rejection`, `timestamp`, `fact`, `import`, `settlement`, `message`; `json`; `attribute`; `content_type`,
//! `encoding`; `data`, `schema`, `cloud_event`; `addressed`, `audience`, `envelope`; `binary`,
//! `structured`; `parse`.

mod addressed;
mod attribute;
mod audience;
mod binary;
mod cloud_event;
mod content_type;
mod data;
mod encoding;
mod envelope;
mod fact;
mod import;
mod json;
mod message;
mod parse;
#[cfg(test)]
mod properties;
mod rejection;
#[cfg(test)]
mod sample;
mod schema;
mod settlement;
mod structured;
mod timestamp;

pub use addressed::is_addressed_to;
pub use audience::{CANARY_SOURCE, CANARY_TYPE};
pub use cloud_event::{
    COLLAPSE_KEY_BYTES_MAX, Event, ID_BYTES_MAX, SOURCE_BYTES_MAX, SUBJECT_BYTES_MAX,
    TRACEPARENT_BYTES_MAX, TYPE_BYTES_MAX,
};
pub use fact::{Asked, Fact, WITHIN_SECONDS_MAX};
pub use import::{IMPORT_ID_BYTES_MAX, Import, Step};
pub use message::{HeaderValue, Message};
pub use parse::{HEADERS_BYTES_MAX, Limits, parse};
pub use rejection::{Reason, Rejection};
pub use settlement::{Settlement, Subjects};

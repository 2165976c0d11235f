//! The event of all measurements.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Approximate bytes of a published event.
pub const BYTES: usize = 400;

/// The broadcast feed.
pub const EVERYONE: &str = "all";

/// An `order.created` in CloudEvents' JSON format, marked if it is for everyone.
pub fn order(run: &str, index: usize, recipient: &str) -> Vec<u8> {
    order_of(BYTES, &id(run, index), index, recipient)
}

/// An id that ends with the index of its event, so that the receiver can recognise it.
pub fn id(run: &str, index: usize) -> String {
    format!("{run}-{index}")
}

/// The same as a UUID of version 7.
pub fn id_in_order(index: usize) -> String {
    let milliseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    let (high, low) = (milliseconds >> 16, milliseconds & 0xffff);
    format!("{high:08x}-{low:04x}-7000-8000-{index:012}")
}

/// The same with approximately this many bytes, and this id.
pub fn order_of(bytes: usize, id: &str, index: usize, recipient: &str) -> Vec<u8> {
    let mut body = String::with_capacity(bytes + 16);
    let broadcast = if recipient == EVERYONE {
        r#""broadcast":true,"#
    } else {
        ""
    };
    // Writing to a string cannot fail.
    let _ = write!(
        body,
        r#"{{"specversion":"1.0",{broadcast}"id":"{id}","source":"/checkout","type":"order.created","recipient":"{recipient}","time":"2026-11-21T10:00:00Z","datacontenttype":"application/json","data":{{"order_id":"A-{index:08}","total":"129.90","currency":"EUR","items":3,"placed_at":"2026-11-21T10:00:00Z","customer":""#
    );
    while body.len() < bytes - 3 {
        body.push('x');
    }
    body.push_str("\"}}");
    body.into_bytes()
}

/// The index in an event's id.
pub fn index_of(id: &str) -> Option<usize> {
    id.rsplit_once('-')?.1.parse().ok()
}

/// The name of the merchant with that number.
pub fn merchant(number: usize) -> String {
    format!("merchant-{number}")
}

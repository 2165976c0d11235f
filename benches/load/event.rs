//! The event of all measurements.

use std::fmt::Write as _;

/// Approximate bytes of a published event.
pub const BYTES: usize = 400;

/// The broadcast feed.
pub const EVERYONE: &str = "all";

/// An `order.created` in CloudEvents' JSON format, marked if it is for everyone. Its id ends with
/// its index, so that the receiver can recognise it.
pub fn order(run: &str, index: usize, recipient: &str) -> Vec<u8> {
    order_of(BYTES, run, index, recipient)
}

/// The same with approximately this many bytes.
pub fn order_of(bytes: usize, run: &str, index: usize, recipient: &str) -> Vec<u8> {
    let mut body = String::with_capacity(bytes + 16);
    let broadcast = if recipient == EVERYONE {
        r#""broadcast":true,"#
    } else {
        ""
    };
    // Writing to a string cannot fail.
    let _ = write!(
        body,
        r#"{{"specversion":"1.0",{broadcast}"id":"{run}-{index}","source":"/checkout","type":"order.created","recipient":"{recipient}","time":"2026-11-21T10:00:00Z","datacontenttype":"application/json","data":{{"order_id":"A-{index:08}","total":"129.90","currency":"EUR","items":3,"placed_at":"2026-11-21T10:00:00Z","customer":""#
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

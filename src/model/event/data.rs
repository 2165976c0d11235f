//! The data of a message, in each of its forms.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use super::content_type::{is_json, unsupported};
use super::json;
use super::rejection::{Reason, Rejection};

/// The data of a message.
#[derive(Debug)]
pub(super) enum Data<'a> {
    Absent,
    Json(&'a RawValue),
    /// The value of `data_base64` (CloudEvents JSON format 1.0 §3.1.1).
    Base64(&'a RawValue),
}

/// Decodes `data_base64` (RFC 4648 §4, padded), which must hold JSON. No bytes are no data, like an
/// empty body in binary mode.
pub(super) fn decode(
    encoded: &RawValue,
    datacontenttype: Option<&str>,
) -> Result<Option<Box<RawValue>>, Rejection> {
    if !datacontenttype.is_none_or(is_json) {
        return Err(unsupported(
            "`data_base64` must hold JSON, and `datacontenttype` names another format",
        ));
    }
    let refuse = |why: &str| Rejection::new(Reason::InvalidData, format!("`data_base64`: {why}"));
    let encoded = json::text(encoded).ok_or_else(|| refuse("must be a string"))?;
    let bytes = STANDARD
        .decode(&*encoded)
        .map_err(|_| refuse("not base64 with padding"))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| refuse("the decoded bytes are not UTF-8"))?;
    let data = json::parse(text).map_err(|rejection| match rejection.reason {
        Reason::TooDeep => rejection,
        _ => refuse(&format!(
            "the decoded text is not JSON: {}",
            rejection.detail
        )),
    })?;
    Ok(Some(data.to_owned()))
}

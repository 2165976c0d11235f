//! The frames of a server in the body of an HTTP response: Server-Sent Events (WHATWG HTML §9.2), or the elements of a JSON
//! array. Pure.

use std::fmt::Write as _;

use crate::model::feed::{Epoch, Feed, Seq};
use crate::model::frame_text::FrameText;
use crate::model::protocol::Close;

/// The form of the frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Server-Sent Events. A client that reconnects sends the id of the last notification.
    Events {
        /// The epoch in the ids.
        epoch: Epoch,
        /// Whether the client knows the feed, so that ids leave it out.
        is_of_one_feed: bool,
    },
    /// A JSON array.
    Array,
}

/// The body of a response, as far as it was written.
#[derive(Debug)]
pub struct ResponseBody {
    format: Format,
    /// HTTP/1.1 has chunks (RFC 9112 §7.1). In HTTP/1.0, the end of the connection ends the body.
    is_chunked: bool,
    has_begun: bool,
}

/// A frame of the body: the text is between both other parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The bytes before the text.
    pub before: Vec<u8>,
    /// The text. Sessions that send it share its bytes.
    pub text: FrameText,
    /// The bytes after the text.
    pub after: &'static [u8],
}

impl ResponseBody {
    /// Begins a body.
    pub fn new(format: Format, is_chunked: bool) -> Self {
        Self {
            format,
            is_chunked,
            has_begun: false,
        }
    }

    /// A frame. `place` is that of a notification.
    pub fn frame(&mut self, text: FrameText, place: Option<(&Feed, Seq)>) -> Part {
        let mut before = String::new();
        if let (
            Format::Events {
                epoch,
                is_of_one_feed,
            },
            Some((feed, seq)),
        ) = (&self.format, place)
        {
            // Writing to a string cannot fail.
            let _ = match is_of_one_feed {
                true => writeln!(before, "id: {seq}:{epoch}"),
                false => writeln!(before, "id: {feed}:{seq}:{epoch}"),
            };
        }
        self.part(before, text)
    }

    /// The last frame, with the reason for the end. `reason` is JSON.
    pub fn close(&mut self, close: Close, reason: &str) -> Part {
        let mut before = String::new();
        if let (Format::Events { .. }, Some(wait)) = (&self.format, close.retry_after_ms()) {
            let _ = writeln!(before, "retry: {wait}");
        }
        let code = close.code();
        let text = format!(r#"{{"type":"close","code":{code},"reason":{reason}}}"#);
        self.part(before, text.into())
    }

    /// The bytes that end the body.
    pub fn end(&mut self) -> Vec<u8> {
        let mut end = String::new();
        if self.format == Format::Array {
            let rest = if self.has_begun { "\n]\n" } else { "[]\n" };
            self.add_chunk(&mut end, rest);
        }
        if self.is_chunked {
            end.push_str("0\r\n\r\n");
        }
        end.into_bytes()
    }

    fn part(&mut self, before: String, text: FrameText) -> Part {
        let (before, text, after) = match &self.format {
            Format::Events { .. } => (before + "data: ", one_line_each(text), "\n\n"),
            Format::Array if self.has_begun => (",\n".into(), text, ""),
            Format::Array => ("[\n".into(), text, ""),
        };
        self.has_begun = true;
        if !self.is_chunked {
            let after = after.as_bytes();
            return Part {
                before: before.into(),
                text,
                after,
            };
        }
        let bytes = before.len() + text.len() + after.len();
        let after: &[u8] = match after {
            "" => b"\r\n",
            _ => b"\n\n\r\n",
        };
        let before = format!("{bytes:x}\r\n{before}").into();
        Part {
            before,
            text,
            after,
        }
    }

    fn add_chunk(&self, bytes: &mut String, chunk: &str) {
        let _ = match self.is_chunked {
            true => write!(bytes, "{:x}\r\n{chunk}\r\n", chunk.len()),
            false => write!(bytes, "{chunk}"),
        };
    }
}

/// The data of an event of a publisher may have line ends, outside of its strings. Each line of an event of a stream needs
/// the name of its field.
fn one_line_each(text: FrameText) -> FrameText {
    if !text.contains(['\n', '\r']) {
        return text;
    }
    let lines: Vec<_> = text
        .split(['\n', '\r'])
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("\ndata: ").into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn events(is_of_one_feed: bool) -> Format {
        let epoch = Epoch::parse("e1").unwrap();
        Format::Events {
            epoch,
            is_of_one_feed,
        }
    }

    /// The bytes of a body with two notifications and a close, or without the close.
    fn written(format: Format, is_chunked: bool, close: Option<Close>) -> String {
        let (feed, seq) = (Feed::parse("m").unwrap(), Seq::new(18).unwrap());
        let mut body = ResponseBody::new(format, is_chunked);
        let mut parts = vec![
            body.frame("{}".into(), None),
            body.frame("{\r\n \"a\":1\n}".into(), Some((&feed, seq))),
        ];
        parts.extend(close.map(|close| body.close(close, &close.reason())));
        let mut bytes = Vec::new();
        for part in &parts {
            bytes.extend([&part.before, part.text.as_bytes(), part.after].concat());
        }
        bytes.extend(body.end());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn events_have_ids_lines_and_a_wait() {
        let close = Close::GoingAway {
            retry_after_ms: 850,
        };
        let reason = r#"{"code":"going_away","retry_after_ms":850}"#;
        let expected = format!(
            "data: {{}}\n\nid: m:18:e1\ndata: {{\ndata:  \"a\":1\ndata: }}\n\n\
             retry: 850\ndata: {{\"type\":\"close\",\"code\":1012,\"reason\":{reason}}}\n\n"
        );
        assert_eq!(written(events(false), false, Some(close)), expected);
        assert!(written(events(true), false, None).contains("\nid: 18:e1\ndata: {"));
    }

    #[test]
    fn an_array_is_json_with_and_without_frames() {
        let array = written(Format::Array, false, Some(Close::TokenExpired));
        let frames: Vec<serde_json::Value> = serde_json::from_str(&array).unwrap();
        assert_eq!((frames.len(), frames[2]["code"].as_u64()), (3, Some(4401)));
        assert_eq!(frames[2]["reason"]["code"], "token_expired");
        assert_eq!(ResponseBody::new(Format::Array, false).end(), b"[]\n");
    }

    #[test]
    fn chunks_have_their_lengths() {
        for format in [events(true), Format::Array] {
            let plain = written(format.clone(), false, Some(Close::TooOld));
            let chunked = written(format, true, Some(Close::TooOld));
            let (mut rest, mut text) = (chunked.as_str(), String::new());
            while let Some((length, more)) = rest.split_once("\r\n") {
                let length = usize::from_str_radix(length, 16).unwrap();
                text += &more[..length];
                rest = more[length..].strip_prefix("\r\n").unwrap();
                assert!(length > 0 || rest.is_empty(), "bytes after the end");
            }
            assert_eq!(text, plain);
        }
    }
}

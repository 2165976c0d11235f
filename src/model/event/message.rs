//! A message as AMQP or HTTP delivered it, before it is parsed.

use std::borrow::Cow;

/// A message that may hold an event.
///
/// It has no `Debug`, so that no log can contain the body of an event.
pub struct Message<'a> {
    /// The content type with its parameters. It decides between structured and binary mode (AMQP
    /// binding 1.0 §3).
    pub content_type: Option<&'a str>,
    /// The content encoding. It only explains a body that cannot be parsed.
    pub content_encoding: Option<&'a str>,
    /// The application headers. In binary mode the attributes are `cloudEvents_NAME` or
    /// `cloudEvents:NAME` (AMQP binding §3.1.3).
    pub headers: Vec<(Cow<'a, str>, HeaderValue<'a>)>,
    /// The body: the whole event in structured mode, its data in binary mode.
    pub body: &'a [u8],
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue<'a> {
    /// Text. Whole numbers and booleans are rendered as text, and timestamps as RFC 3339.
    Text(Cow<'a, str>),
    /// A value that no attribute can have. The words name its type and not its content.
    Unreadable(&'static str),
}

impl HeaderValue<'_> {
    /// Returns the text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Unreadable(_) => None,
        }
    }
}

impl<'a> From<&'a str> for HeaderValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

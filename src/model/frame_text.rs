//! The text of one frame. All sessions that send it share one buffer.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The text of a frame, in JSON. A clone shares the text and copies nothing.
///
/// `Arc<String>` takes a rendered text as it is. `Arc<str>` would copy it once.
#[derive(Clone, PartialEq, Eq)]
pub struct FrameText(Arc<String>);

impl FrameText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for FrameText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for FrameText {
    fn from(text: String) -> Self {
        Self(Arc::new(text))
    }
}

impl From<&str> for FrameText {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Display for FrameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for FrameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_text_is_neither_copied_when_taken_nor_when_cloned() {
        let rendered = "{}".to_owned();
        let address = rendered.as_ptr();
        let frame = FrameText::from(rendered);
        assert_eq!(frame.as_ptr(), address);
        assert_eq!(frame.clone().as_ptr(), address);
        assert_eq!((frame.as_str(), frame.to_string()), ("{}", "{}".to_owned()));
    }
}

//! Reads secrets again from their files, while the service runs. No problem repeats a content.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::environment::{Environment, file_variable};
use super::secret::Secret;
use super::secrets::{read_text, without_line_breaks};
use super::settings::Setting;

/// The content of a file. A problem follows the name of its variable.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<T> {
    Value(T),
    /// The file is empty, or does not exist.
    Missing(String),
    Unusable(String),
}

/// Reads a file. A problem of `parse` follows the words "a content that".
pub(super) fn read<T>(path: &Path, parse: impl FnOnce(&Secret) -> Result<T, String>) -> Content<T> {
    let unusable =
        |what: &str| Content::Unusable(format!("names {}, which {what}", path.display()));
    let content = match fs::metadata(path) {
        // A pipe returns its content once, and then blocks.
        Ok(metadata) if !metadata.is_file() => return unusable("is no regular file"),
        Ok(_) => read_text(path),
        Err(error) => Err(error),
    };
    match content {
        Ok(content) if content.trim().is_empty() => {
            Content::Missing(format!("names {}, which is empty", path.display()))
        }
        Ok(content) => match parse(&Secret::new(without_line_breaks(&content).to_owned())) {
            Ok(value) => Content::Value(value),
            Err(problem) => unusable(&format!("has a content that cannot be used: it {problem}")),
        },
        Err(error) => {
            let problem = format!("names {}, which cannot be read: {error}", path.display());
            match error.kind() {
                ErrorKind::NotFound => Content::Missing(problem),
                _ => Content::Unusable(problem),
            }
        }
    }
}

impl Environment {
    /// The file of a setting that is read again; `None` for a variable, and for a pipe, which is
    /// read once, at the start.
    pub(super) fn file_of(&self, setting: &Setting) -> Option<PathBuf> {
        let path = self.peek(&file_variable(setting.variable))?;
        let path = PathBuf::from(without_line_breaks(path));
        let is_read_again = fs::metadata(&path).map_or(true, |file| file.is_file());
        is_read_again.then_some(path)
    }
}

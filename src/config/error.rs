//! The error of a configuration that cannot be used.

use std::fmt;

/// All problems of the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) complaints: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used:")?;
        self.complaints
            .iter()
            .try_for_each(|complaint| write!(f, "\n  {complaint}"))
    }
}

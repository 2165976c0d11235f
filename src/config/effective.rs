//! Effective settings, as `shopbell config` shows them.

use serde::Serialize;

/// The effective value of one setting, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EffectiveSetting {
    /// The variable.
    pub variable: String,
    /// The value; `None` if the setting has none.
    pub value: Option<String>,
    /// Where the value is from.
    pub origin: Origin,
    /// The file, if the value is from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Where a value is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The table of settings.
    Default,
    /// The variable itself.
    Set,
    /// The file that `NAME_FILE` names.
    File,
}

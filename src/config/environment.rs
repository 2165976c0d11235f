//! The environment variables of the service: given, read, or rejected.
//!
//! Each read removes a variable, notes its effective value, and collects a complaint if the value
//! is bad. No complaint contains a secret.

use std::collections::BTreeMap;

use super::effective::{EffectiveSetting, Origin};
use super::error::ConfigError;
use super::libraries;
use super::settings::{Role, Setting, TOKEN_VARIABLE};

/// The variables of the service that are not read yet, the effective settings, and the complaints.
#[derive(Debug, Default)]
pub struct Environment {
    /// Names in lower case, as envy writes them.
    given: BTreeMap<String, String>,
    /// Settings that only other roles use are not noted; `None` stands for both roles.
    role: Option<Role>,
    settings: Vec<EffectiveSetting>,
    of_libraries: Vec<EffectiveSetting>,
    complaints: Vec<String>,
}

impl Environment {
    /// Reads the environment of the process. An empty variable counts as unset.
    pub fn of_process() -> Self {
        let (mut ours, mut of_libraries, mut complaints) = (Vec::new(), Vec::new(), Vec::new());
        // `vars()` panics if any variable is not Unicode.
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            if libraries::is_read_by_a_library(&name) {
                of_libraries.push(libraries::setting(name, &value.to_string_lossy()));
            } else if is_ours(&name) && !value.is_empty() {
                match value.into_string() {
                    Ok(value) => ours.push((name, value)),
                    Err(_) => complaints.push(format!("{name} is not UTF-8")),
                }
            }
        }
        of_libraries.sort_by(|one, other| one.variable.cmp(&other.variable));
        Self {
            complaints,
            of_libraries,
            ..Self::of(ours)
        }
    }

    /// Reads these variables.
    pub fn of(variables: Vec<(String, String)>) -> Self {
        // Every string fits into a map of strings, so envy never fails here.
        let given = envy::from_iter::<_, BTreeMap<String, String>>(variables).unwrap_or_default();
        Self {
            given,
            ..Self::default()
        }
    }

    pub(super) fn set_role(&mut self, role: Option<Role>) {
        self.role = role;
    }

    /// The effective settings, in the order in which they were read, then those of libraries.
    pub(super) fn into_settings(self) -> Vec<EffectiveSetting> {
        self.settings.into_iter().chain(self.of_libraries).collect()
    }

    /// Returns the value, or all complaints in one error.
    pub(super) fn finish<T>(&mut self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.complaints.is_empty() => Ok(value),
            _ => Err(ConfigError {
                complaints: std::mem::take(&mut self.complaints),
            }),
        }
    }

    /// The variables named `SHOPBELL_…` that nothing has read.
    pub(super) fn unknown(&self) -> Vec<String> {
        let names = self.given.keys().map(|name| name.to_uppercase());
        names
            .filter(|name| name.starts_with("SHOPBELL_") && name != TOKEN_VARIABLE)
            .collect()
    }

    /// The value of a variable that is read later.
    pub(super) fn peek(&self, name: &str) -> Option<&str> {
        self.given.get(&name.to_lowercase()).map(String::as_str)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.given.remove(&name.to_lowercase())
    }

    /// Ignores a setting of another role, and does not judge its value.
    pub(super) fn ignore(&mut self, setting: &Setting) {
        self.take(setting.variable);
        self.take(&file_variable(setting.variable));
    }

    /// Notes the effective value of a setting, if the role uses the setting.
    pub(super) fn note(
        &mut self,
        setting: &Setting,
        value: Option<String>,
        origin: Origin,
        file: Option<String>,
    ) {
        if setting.used_by.includes(self.role) {
            self.settings.push(EffectiveSetting {
                variable: setting.variable.into(),
                value,
                origin,
                file,
            });
        }
    }

    pub(super) fn complain(&mut self, name: &str, problem: &str) {
        self.complaints.push(format!("{name} {problem}"));
    }

    pub(super) fn complaint_count(&self) -> usize {
        self.complaints.len()
    }

    #[cfg(test)]
    pub(super) fn complaints(&self) -> &[String] {
        &self.complaints
    }
}

/// The variable that names the file of a secret.
pub(super) fn file_variable(variable: &str) -> String {
    format!("{variable}_FILE")
}

fn is_ours(name: &str) -> bool {
    let others = [
        "DATABASE_URL",
        "DATABASE_URL_FILE",
        "AMQP_URL",
        "AMQP_URL_FILE",
    ];
    name.starts_with("SHOPBELL_") || others.contains(&name)
}

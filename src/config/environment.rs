//! The variables that are ours: taken one by one, each with a note of what is used and where that is from.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Serialize;
use url::Url;

use super::{ConfigError, Secret};

/// What stands where a secret does.
const REDACTED: &str = "(secret)";
/// What stands where a library's variable may hold one.
const HIDDEN: &str = "(set)";
/// Read by libraries and not by us: told, never judged.
const OF_OTHERS: [&str; 2] = ["RUST_LOG", "OTEL_"];
/// Those of them whose value is a word or a name.
const SHOWN: [&str; 6] = [
    "RUST_LOG",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
];
/// … is a number; another is not shown.
const SHOWN_NUMBERS: [&str; 5] = [
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_TRACES_SAMPLER_ARG",
];
/// … is a URL, of which scheme, host and port are shown: users and paths may be keys.
const SHOWN_ORIGINS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// One variable as it is used, without what must not be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The variable.
    pub variable: String,
    /// What is used; `None` where nothing is.
    pub value: Option<String>,
    /// Where that is from.
    pub origin: Origin,
    /// The file that it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Where a value is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The variable itself.
    Set,
    /// The file that `NAME_FILE` names.
    File,
}

/// A secret as it was given.
struct GivenSecret {
    secret: Secret,
    origin: Origin,
    file: Option<String>,
}

enum Given {
    Value(GivenSecret),
    /// Neither the variable nor its file is set.
    Nothing,
    /// The file is empty, or not there.
    FileGone {
        file: String,
        problem: String,
    },
    /// The complaint is made.
    Bad,
}

/// The variables that are ours, as far as they were not taken, what became of those that were, and what was wrong.
#[derive(Debug, Default)]
pub struct Environment {
    pub(super) given: BTreeMap<String, String>,
    of_others: Vec<Setting>,
    pub(super) settings: Vec<Setting>,
    pub(super) complaints: Vec<String>,
}

impl Environment {
    /// Reads the process's environment. An empty variable counts as unset.
    pub fn of_process() -> Self {
        let (mut ours, mut of_others, mut complaints) = (Vec::new(), Vec::new(), Vec::new());
        // Not `vars()`, which panics on a variable that is not Unicode, whosever it is.
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            if OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)) {
                of_others.push(Setting::of_others(name, &value.to_string_lossy()));
            } else if !is_ours(&name) || value.is_empty() {
                continue;
            } else {
                match value.into_string() {
                    Ok(value) => ours.push((name, value)),
                    Err(_) => complaints.push(format!("{name} is not UTF-8")),
                }
            }
        }
        of_others.sort_by(|one, other| one.variable.cmp(&other.variable));
        Self {
            complaints,
            of_others,
            ..Self::of(ours)
        }
    }

    /// Reads these variables.
    pub fn of(variables: Vec<(String, String)>) -> Self {
        // A map of strings takes whatever strings there are: envy has nothing to refuse.
        let given = envy::from_iter::<_, BTreeMap<String, String>>(variables).unwrap_or_default();
        Self {
            given,
            ..Self::default()
        }
    }

    /// What was taken, in that order, and what libraries take.
    pub(super) fn into_settings(self) -> Vec<Setting> {
        self.settings.into_iter().chain(self.of_others).collect()
    }

    pub(super) fn finish<T>(&mut self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.complaints.is_empty() => Ok(value),
            _ => Err(ConfigError {
                complaints: std::mem::take(&mut self.complaints),
            }),
        }
    }

    /// What is left of ours when all was taken: nobody knows it.
    pub(super) fn unknown(&self) -> impl Iterator<Item = String> {
        self.given
            .keys()
            .filter(|name| name.starts_with("shopbell_"))
            .map(|name| name.to_uppercase())
    }

    /// A variable, or the content of the file that `NAME_FILE` names; `shown` returns as much of it as may be shown.
    pub(super) fn secret<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Secret) -> Result<T, &'static str>,
        shown: impl FnOnce(&T) -> Option<String>,
    ) -> Option<T> {
        let given = match self.given_secret(name) {
            Given::Bad => return None,
            Given::Nothing => {
                self.complain(name, "is required");
                return None;
            }
            Given::FileGone { problem, .. } => {
                self.complain(&format!("{name}_FILE"), &problem);
                return None;
            }
            Given::Value(given) => given,
        };
        self.check_secret(name, given, read, shown)
    }

    /// The same, of a secret that may be unset. Its file may be empty or not there: a mounted secret can get it later.
    pub(super) fn optional_secret<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Secret) -> Result<T, &'static str>,
    ) -> Option<T> {
        let unset = |origin, file| Setting {
            variable: name.into(),
            value: None,
            origin,
            file,
        };
        match self.given_secret(name) {
            Given::Value(given) => return self.check_secret(name, given, read, |_| None),
            Given::Nothing => self.settings.push(unset(Origin::Default, None)),
            Given::FileGone { file, .. } => self.settings.push(unset(Origin::File, Some(file))),
            Given::Bad => {}
        }
        None
    }

    fn given_secret(&mut self, name: &'static str) -> Given {
        let file = self
            .take(&format!("{name}_FILE"))
            .map(|path| without_line_breaks(&path).to_owned());
        let (value, origin) = match (self.take(name), &file) {
            (Some(_), Some(_)) => {
                self.complain(name, &format!("and {name}_FILE are both set: set one"));
                return Given::Bad;
            }
            (Some(value), None) => (value, Origin::Set),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(content) if content.trim().is_empty() => {
                    return Given::FileGone {
                        file: path.clone(),
                        problem: format!("names {path}, which is empty"),
                    };
                }
                Ok(content) => (content, Origin::File),
                Err(error) => {
                    let problem = format!("names {path}, which cannot be read: {error}");
                    if error.kind() == std::io::ErrorKind::NotFound {
                        return Given::FileGone {
                            file: path.clone(),
                            problem,
                        };
                    }
                    self.complain(&format!("{name}_FILE"), &problem);
                    return Given::Bad;
                }
            },
            (None, None) => return Given::Nothing,
        };
        if value.trim().is_empty() {
            self.complain(name, "is only white space");
            return Given::Bad;
        }
        Given::Value(GivenSecret {
            secret: Secret(without_line_breaks(&value).to_owned()),
            origin,
            file,
        })
    }

    fn check_secret<T>(
        &mut self,
        name: &'static str,
        GivenSecret {
            secret,
            origin,
            file,
        }: GivenSecret,
        read: impl FnOnce(&Secret) -> Result<T, &'static str>,
        shown: impl FnOnce(&T) -> Option<String>,
    ) -> Option<T> {
        match read(&secret) {
            Ok(value) => {
                let told = shown(&value).unwrap_or_else(|| REDACTED.into());
                self.settings.push(Setting {
                    variable: name.into(),
                    value: Some(told),
                    origin,
                    file,
                });
                Some(value)
            }
            Err(expected) => {
                self.complain(name, expected);
                None
            }
        }
    }

    pub(super) fn number<T: Copy + FromStr + PartialOrd + fmt::Display>(
        &mut self,
        name: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        let expected = format!(
            "must be a whole number from {} to {}",
            range.start(),
            range.end()
        );
        let read = |text: &str| {
            text.parse()
                .ok()
                .filter(|number| range.contains(number))
                .ok_or(expected)
        };
        self.read(name, default, read, |number| Some(number.to_string()))
    }

    pub(super) fn parse<T: FromStr + fmt::Display>(
        &mut self,
        name: &'static str,
        default: T,
        expected: &str,
    ) -> T {
        let read = |text: &str| text.parse().map_err(|_| format!("must be {expected}"));
        self.read(name, default, read, |value| Some(value.to_string()))
    }

    pub(super) fn text(
        &mut self,
        name: &'static str,
        default: &str,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> String {
        let read = |text: &str| check(text).map(|()| text.to_owned());
        self.read(name, default.to_owned(), read, |text| Some(text.clone()))
    }

    /// A name that is compared with what others write, so a character that nobody sees would match nothing.
    pub(super) fn optional_text(&mut self, name: &'static str) -> Option<String> {
        let read = |text: &str| match text.contains(char::is_control) {
            true => Err("must not contain control characters".into()),
            false => Ok(Some(text.to_owned())),
        };
        self.read(name, None, read, Option::clone)
    }

    /// Takes a variable, notes what is used, and complains where that cannot be the given one. White space around a value is
    /// no part of it: a line break is easily left at the end.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(&str) -> Result<T, String>,
        shown: impl FnOnce(&T) -> Option<String>,
    ) -> T {
        let (value, origin) = match self.take(name) {
            Some(text) if text.trim().is_empty() => {
                self.complain(name, "is only white space");
                (default, Origin::Default)
            }
            Some(text) => match read(text.trim()) {
                Ok(value) => (value, Origin::Set),
                Err(problem) => {
                    self.complain(name, &problem);
                    (default, Origin::Default)
                }
            },
            None => (default, Origin::Default),
        };
        self.settings.push(Setting {
            variable: name.into(),
            value: shown(&value),
            origin,
            file: None,
        });
        value
    }

    /// A variable that may be taken later.
    pub(super) fn peek(&self, name: &str) -> Option<&str> {
        self.given
            .get(&name.to_lowercase())
            .map(|value| without_line_breaks(value))
    }

    /// envy names variables in lower case.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.given.remove(&name.to_lowercase())
    }

    pub(super) fn complain(&mut self, name: &str, problem: &str) {
        self.complaints.push(format!("{name} {problem}"));
    }
}

impl Setting {
    /// Nobody but its library knows what a variable holds: what is not known to be harmless is not shown.
    fn of_others(variable: String, value: &str) -> Self {
        let is_of = |list: &[&str]| list.contains(&variable.as_str());
        let shown = if is_of(&SHOWN) {
            Some(value.to_owned())
        } else if is_of(&SHOWN_NUMBERS) {
            value.parse::<f64>().ok().map(|_| value.to_owned())
        } else if is_of(&SHOWN_ORIGINS) {
            // Only a URL of the web has one that can be told.
            let origin = Url::parse(value)
                .ok()
                .map(|url| url.origin())
                .filter(url::Origin::is_tuple);
            origin.map(|origin| origin.ascii_serialization())
        } else {
            None
        };
        Self {
            variable,
            value: Some(shown.unwrap_or_else(|| HIDDEN.into())),
            origin: Origin::Set,
            file: None,
        }
    }
}

/// Editors and `echo` end a file with a line break, which is no part of a secret.
pub(super) fn without_line_breaks(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// A URL without its password and its query.
pub(super) fn without_secrets(mut url: Url) -> String {
    // It fails for a URL that cannot have a password.
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("SHOPBELL_")
        || [
            "DATABASE_URL",
            "DATABASE_URL_FILE",
            "AMQP_URL",
            "AMQP_URL_FILE",
        ]
        .contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(value: &str, read: impl FnOnce(&mut Environment) -> T) -> (T, Vec<String>) {
        let mut environment = Environment::of(vec![("SHOPBELL_X".into(), value.into())]);
        let outcome = read(&mut environment);
        (outcome, environment.complaints)
    }

    #[test]
    fn white_space_around_a_value_is_no_part_of_it() {
        let secret = |environment: &mut Environment| {
            environment.secret(
                "SHOPBELL_X",
                |secret| Ok(secret.reveal().to_owned()),
                |_| None,
            )
        };
        assert_eq!(
            read("s3cr3t \r\n\n", secret),
            (Some("s3cr3t ".into()), vec![]),
            "but a space may be one of a secret's"
        );
        assert_eq!(
            read("shop\n", |environment| environment
                .optional_text("SHOPBELL_X"))
            .0,
            Some("shop".into())
        );
        assert_eq!(
            read(" 7\t\n", |environment| environment.number(
                "SHOPBELL_X",
                0,
                0..=9
            ))
            .0,
            7
        );
        assert!(
            read("true\n", |environment| environment.parse(
                "SHOPBELL_X",
                false,
                "a flag"
            ))
            .0
        );
        assert_eq!(
            read("a\n", |environment| environment.text(
                "SHOPBELL_X",
                "b",
                |_| Ok(())
            ))
            .0,
            "a"
        );
    }

    #[test]
    fn a_value_of_white_space_is_no_value() {
        for white_space in [" ", "\n", " \r\n"] {
            let secret = |environment: &mut Environment| {
                environment.secret("SHOPBELL_X", |_| Ok(()), |()| None)
            };
            assert_eq!(
                read(white_space, secret).1,
                ["SHOPBELL_X is only white space"]
            );
            let optional = |environment: &mut Environment| {
                environment.optional_secret("SHOPBELL_X", |_| Ok(()))
            };
            assert_eq!(
                read(white_space, optional).1,
                ["SHOPBELL_X is only white space"]
            );
            let text = |environment: &mut Environment| environment.optional_text("SHOPBELL_X");
            assert_eq!(
                read(white_space, text).1,
                ["SHOPBELL_X is only white space"]
            );
        }
        for inside in ["a\nb", "a\tb", "a\u{7f}b", "a\u{85}b"] {
            let text = |environment: &mut Environment| environment.optional_text("SHOPBELL_X");
            assert_eq!(
                read(inside, text),
                (
                    None,
                    vec!["SHOPBELL_X must not contain control characters".into()]
                )
            );
        }
    }

    #[track_caller]
    fn told(variable: &str, value: &str, expected: &str) {
        let setting = Setting::of_others(variable.into(), value);
        assert_eq!(
            setting.value.as_deref(),
            Some(expected),
            "{variable}={value}"
        );
    }

    #[test]
    fn of_a_library_s_variables_only_the_harmless_are_shown() {
        told(
            "RUST_LOG",
            "info,shopbell::ingest=debug",
            "info,shopbell::ingest=debug",
        );
        told("OTEL_SERVICE_NAME", "shopbell-eu", "shopbell-eu");
        told(
            "OTEL_TRACES_SAMPLER",
            "parentbased_traceidratio",
            "parentbased_traceidratio",
        );
        told("OTEL_TRACES_SAMPLER_ARG", "0.25", "0.25");
        told(
            "OTEL_TRACES_SAMPLER_ARG",
            "endpoint=http://me:hidden@sampler:14250",
            "(set)",
        );
        told("OTEL_BSP_SCHEDULE_DELAY", "100", "100");
        told("OTEL_BSP_SCHEDULE_DELAY", "hidden", "(set)");
        for variable in [
            "HEADERS",
            "TRACES_HEADERS",
            "CERTIFICATE",
            "METRICS_ENDPOINT",
        ] {
            told(
                &format!("OTEL_EXPORTER_OTLP_{variable}"),
                "api-key=hidden",
                "(set)",
            );
        }
        told("OTEL_RESOURCE_ATTRIBUTES", "key=hidden", "(set)");
        told("OTEL_OF_TOMORROW", "hidden", "(set)");
    }

    #[test]
    fn of_a_collector_s_url_only_the_origin_is_shown() {
        for variable in SHOWN_ORIGINS {
            let url = "https://me:hidden@collector.example:4318/hidden/v1?key=hidden#hidden";
            told(variable, url, "https://collector.example:4318");
            told(variable, "http://collector:4318", "http://collector:4318");
            told(
                variable,
                "https://hidden@collector.example",
                "https://collector.example",
            );
            // No URL, or one of a scheme that nobody knows.
            for odd in [
                "me:hidden@collector:4318",
                "collector:4318",
                "grpc://me:hidden@collector:4317",
                "hidden",
            ] {
                told(variable, odd, "(set)");
            }
        }
    }
}

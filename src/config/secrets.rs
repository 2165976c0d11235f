//! Reads secrets: from a variable, or from the file that `NAME_FILE` names.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use super::effective::Origin;
use super::environment::{Environment, file_variable};
use super::secret::Secret;
use super::settings::{Default, Setting};

/// Largest file of a secret. A larger one is another file, or a device that never ends.
pub(super) const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Replaces a secret where settings are shown.
const REDACTED: &str = "(secret)";

/// A secret as it was given.
enum Given {
    Value {
        secret: Secret,
        origin: Origin,
        file: Option<String>,
    },
    /// Neither the variable nor its file is set.
    Nothing,
    /// The file is empty, or does not exist.
    FileWithoutSecret { file: String, problem: String },
    /// A complaint is noted.
    Bad,
}

impl Environment {
    /// Reads a secret. `parse` returns a problem that follows the name of the variable. `shown`
    /// returns the part of the value that may be shown, if any.
    ///
    /// The file of an optional secret may be empty or not exist: a mounted secret can get it later.
    pub(super) fn secret<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&Secret) -> Result<T, String>,
        shown: impl FnOnce(&T) -> Option<String>,
    ) -> Option<T> {
        let is_required = setting.default == Default::Required;
        let name = setting.variable;
        match self.take_secret(name) {
            Given::Value {
                secret,
                origin,
                file,
            } => match parse(&secret) {
                Ok(value) => {
                    let shown = shown(&value).unwrap_or_else(|| REDACTED.into());
                    self.note(setting, Some(shown), origin, file);
                    return Some(value);
                }
                Err(problem) => self.complain(name, &problem),
            },
            Given::Nothing if is_required => self.complain(name, "is required"),
            Given::Nothing => self.note(setting, None, Origin::Default, None),
            Given::FileWithoutSecret { problem, .. } if is_required => {
                self.complain(&file_variable(name), &problem);
            }
            Given::FileWithoutSecret { file, .. } => {
                self.note(setting, None, Origin::File, Some(file));
            }
            Given::Bad => {}
        }
        None
    }

    fn take_secret(&mut self, name: &str) -> Given {
        let file_variable = file_variable(name);
        let file = self.take(&file_variable);
        let file = file.map(|path| without_line_breaks(&path).to_owned());
        let (text, origin) = match (self.take(name), &file) {
            (None, None) => return Given::Nothing,
            (Some(_), Some(_)) => {
                let problem = format!("and {file_variable} are both set: set one");
                self.complain(name, &problem);
                return Given::Bad;
            }
            (Some(text), None) => (text, Origin::Set),
            (None, Some(path)) => match read_file(path) {
                Ok(text) => (text, Origin::File),
                Err(Unusable::Empty(problem)) => {
                    return Given::FileWithoutSecret {
                        file: path.clone(),
                        problem,
                    };
                }
                Err(Unusable::Unreadable(problem)) => {
                    self.complain(&file_variable, &problem);
                    return Given::Bad;
                }
            },
        };
        if text.trim().is_empty() {
            self.complain(name, "is only white space");
            return Given::Bad;
        }
        Given::Value {
            secret: Secret::new(without_line_breaks(&text).to_owned()),
            origin,
            file,
        }
    }
}

/// A file without a secret, with the problem in words that follow the name of its variable.
enum Unusable {
    /// It is empty, or does not exist.
    Empty(String),
    Unreadable(String),
}

fn read_file(path: &str) -> Result<String, Unusable> {
    match read_text(Path::new(path)) {
        Ok(text) if text.trim().is_empty() => {
            Err(Unusable::Empty(format!("names {path}, which is empty")))
        }
        Ok(text) => Ok(text),
        Err(error) => {
            let problem = format!("names {path}, which cannot be read: {error}");
            Err(match error.kind() {
                ErrorKind::NotFound => Unusable::Empty(problem),
                _ => Unusable::Unreadable(problem),
            })
        }
    }
}

/// Reads a file of bounded size.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(FILE_BYTES_MAX + 1);
    if file.read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            "it has more than 64 KiB",
        ));
    }
    Ok(text)
}

/// Editors and `echo` end a file with a line break, which is not part of a secret.
pub(super) fn without_line_breaks(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

#[cfg(test)]
mod tests {
    use super::super::settings::{DATABASE_URL, JWT_SECRET, JWT_SECRET_PREVIOUS};
    use super::*;

    fn read(setting: &Setting, variables: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
        let variables = variables.iter().copied();
        let mut environment = Environment::of(
            variables
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        );
        let parse = |secret: &Secret| Ok(secret.reveal().to_owned());
        let value = environment.secret(setting, parse, |_| None);
        (value, environment.complaints().to_vec())
    }

    #[test]
    fn a_secret_loses_its_line_breaks_and_keeps_its_spaces() {
        let given = [("SHOPBELL_JWT_HS256_SECRET", "s3cr3t \r\n\n")];
        assert_eq!(read(&JWT_SECRET, &given), (Some("s3cr3t ".into()), vec![]));
    }

    #[test]
    fn a_secret_of_white_space_is_rejected() {
        for white_space in [" ", "\n", " \r\n"] {
            for setting in [JWT_SECRET, JWT_SECRET_PREVIOUS] {
                let name = setting.variable;
                let (value, complaints) = read(&setting, &[(name, white_space)]);
                assert_eq!(value, None);
                assert_eq!(complaints, [format!("{name} is only white space")]);
            }
        }
    }

    #[test]
    fn only_a_required_secret_needs_its_file() {
        for (setting, complaints) in [(DATABASE_URL, 1), (JWT_SECRET, 0), (JWT_SECRET_PREVIOUS, 0)]
        {
            let file_variable = file_variable(setting.variable);
            let given = [(file_variable.as_str(), "/nowhere/at/all")];
            let (value, found) = read(&setting, &given);
            assert_eq!((value, found.len()), (None, complaints), "{found:?}");
            assert!(found.iter().all(|one| one.starts_with(&file_variable)));
        }
    }

    #[test]
    fn a_secret_is_not_given_twice() {
        let given = [
            ("SHOPBELL_JWT_HS256_SECRET", "s3cr3t"),
            ("SHOPBELL_JWT_HS256_SECRET_FILE", "/nowhere"),
        ];
        let complaint =
            "SHOPBELL_JWT_HS256_SECRET and SHOPBELL_JWT_HS256_SECRET_FILE are both set: set one";
        assert_eq!(read(&JWT_SECRET, &given), (None, vec![complaint.into()]));
    }

    #[test]
    fn a_file_of_a_secret_has_up_to_64_kib() {
        let path = std::env::temp_dir().join(format!("shopbell-{}", uuid::Uuid::new_v4()));
        let accepts = |bytes: u64| {
            std::fs::write(&path, "s".repeat(bytes as usize))
                .and_then(|()| read_text(&path))
                .is_ok()
        };
        assert!(accepts(FILE_BYTES_MAX));
        assert!(!accepts(FILE_BYTES_MAX + 1));
        assert!(std::fs::remove_file(&path).is_ok());
    }
}

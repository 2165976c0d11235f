//! The keys that sign and check tokens. Keys from files are read again while the service runs.

use std::fs;
use std::path::{Path, PathBuf};

use super::environment::{Environment, file_variable};
use super::error::ConfigError;
use super::secret::Secret;
use super::secrets::{read_text, without_line_breaks};
use super::settings::{JWT_AUDIENCE, JWT_ISSUER, JWT_SECRET, JWT_SECRET_PREVIOUS, Setting};

/// Shortest HS256 secret (RFC 7518 §3.2: as long as the hash).
const SECRET_BYTES_MIN: usize = 32;
/// Most reads to get two keys that belong together. Between two reads, a mounted secret is replaced
/// at most once.
const READS_MAX: usize = 3;

/// The settings of tokens.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// The keys at the start.
    pub keys: Keys,
    /// The files to read them again from.
    pub files: KeyFiles,
    /// `SHOPBELL_JWT_AUDIENCE`.
    pub audience: Option<String>,
    /// `SHOPBELL_JWT_ISSUER`.
    pub issuer: Option<String>,
}

/// The keys at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// `SHOPBELL_JWT_HS256_SECRET`: signs and checks tokens.
    pub current: Secret,
    /// `SHOPBELL_JWT_HS256_SECRET_PREVIOUS`: only checks tokens. During a rotation it is the key
    /// before or after the current one.
    pub previous: Option<Secret>,
}

/// The files of the keys; `None` for a key from a variable.
#[derive(Debug, Clone, Default)]
pub struct KeyFiles {
    current: Option<PathBuf>,
    previous: Option<PathBuf>,
}

impl KeyFiles {
    /// Whether both keys are from variables.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.previous.is_none()
    }

    /// Reads the files. If a file cannot be used, its key stays as in `last`, and the list has the
    /// problem.
    pub fn read(&self, last: &Keys) -> (Keys, Vec<String>) {
        let mut current = self.current.as_deref().map(read_key);
        for _ in 1..READS_MAX {
            let previous = self.previous.as_deref().map(read_key);
            let again = self.current.as_deref().map(read_key);
            if again == current {
                return merge(current, previous, last);
            }
            current = again;
        }
        merge(current, self.previous.as_deref().map(read_key), last)
    }
}

/// The content of a file. A problem follows the name of its variable.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Key(Secret),
    /// The file is empty, or does not exist.
    Missing(String),
    Unusable(String),
}

fn merge(current: Option<Content>, previous: Option<Content>, last: &Keys) -> (Keys, Vec<String>) {
    let (mut keys, mut problems) = (last.clone(), Vec::new());
    let mut complain = |setting: Setting, problem: String| {
        problems.push(format!("{} {problem}", file_variable(setting.variable)));
    };
    match current {
        Some(Content::Key(key)) => keys.current = key,
        Some(Content::Missing(problem) | Content::Unusable(problem)) => {
            complain(JWT_SECRET, problem)
        }
        None => {}
    }
    match previous {
        Some(Content::Key(key)) => keys.previous = Some(key),
        // At the end of a rotation the old key is removed.
        Some(Content::Missing(_)) => keys.previous = None,
        Some(Content::Unusable(problem)) => complain(JWT_SECRET_PREVIOUS, problem),
        None => {}
    }
    (keys, problems)
}

fn read_key(path: &Path) -> Content {
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
        Ok(content) => match key(&Secret::new(without_line_breaks(&content).to_owned())) {
            Ok(key) => Content::Key(key),
            Err(expected) => unusable(&format!("holds no key: it {expected}")),
        },
        Err(error) => {
            let problem = format!("names {}, which cannot be read: {error}", path.display());
            match error.kind() {
                std::io::ErrorKind::NotFound => Content::Missing(problem),
                _ => Content::Unusable(problem),
            }
        }
    }
}

fn key(secret: &Secret) -> Result<Secret, String> {
    if secret.reveal().starts_with('\u{feff}') {
        return Err("must not begin with a byte order mark".into());
    }
    if secret.reveal().len() < SECRET_BYTES_MIN {
        return Err(format!("must have at least {SECRET_BYTES_MIN} bytes"));
    }
    Ok(secret.clone())
}

impl Environment {
    /// Reads the settings of tokens only.
    pub fn jwt(mut self) -> Result<JwtConfig, ConfigError> {
        let jwt = self.read_jwt();
        self.finish(jwt)
    }

    pub(super) fn read_jwt(&mut self) -> Option<JwtConfig> {
        // A pipe is read once, at the start.
        let is_read_again = |path: &PathBuf| fs::metadata(path).map_or(true, |file| file.is_file());
        let file = |setting: Setting| {
            let path = self.peek(&file_variable(setting.variable))?;
            Some(PathBuf::from(without_line_breaks(path))).filter(is_read_again)
        };
        let files = KeyFiles {
            current: file(JWT_SECRET),
            previous: file(JWT_SECRET_PREVIOUS),
        };
        let current = self.secret(&JWT_SECRET, key, |_| None);
        let previous = self.secret(&JWT_SECRET_PREVIOUS, key, |_| None);
        let audience = self.text(&JWT_AUDIENCE);
        let issuer = self.text(&JWT_ISSUER);
        Some(JwtConfig {
            keys: Keys {
                current: current?,
                previous,
            },
            files,
            audience,
            issuer,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder =
                std::env::temp_dir().join(format!("shopbell-keys-{}", uuid::Uuid::new_v4()));
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn files(&self) -> KeyFiles {
            KeyFiles {
                current: Some(self.0.join("current")),
                previous: Some(self.0.join("previous")),
            }
        }

        fn write(&self, name: &str, content: &[u8]) {
            fs::write(self.0.join(name), content).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn keys(current: &str, previous: Option<&str>) -> Keys {
        Keys {
            current: Secret::new(current.into()),
            previous: previous.map(|key| Secret::new(key.into())),
        }
    }

    #[test]
    fn both_keys_are_read_again_without_their_line_breaks() {
        let folder = Folder::new();
        folder.write("current", format!("{NEW}\r\n").as_bytes());
        folder.write("previous", format!("{OLD}\n\n").as_bytes());
        assert_eq!(
            folder.files().read(&keys(OLD, None)),
            (keys(NEW, Some(OLD)), vec![])
        );
    }

    #[test]
    fn a_current_key_stays_if_its_file_cannot_be_used() {
        let folder = Folder::new();
        for (content, named) in [
            (None, "cannot be read"),
            (Some(&b""[..]), "is empty"),
            (Some(b" \n\n"), "is empty"),
            (Some(b"s3cr3t"), "at least 32 bytes"),
            (
                Some(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
                "cannot be read",
            ),
            (
                Some("\u{feff}s3cr3t-0123456789abcdef0123456789".as_bytes()),
                "byte order mark",
            ),
        ] {
            content
                .into_iter()
                .for_each(|content| folder.write("current", content));
            let (read, problems) = folder.files().read(&keys(OLD, None));
            assert_eq!((read, problems.len()), (keys(OLD, None), 1), "{problems:?}");
            assert!(
                problems[0].starts_with("SHOPBELL_JWT_HS256_SECRET_FILE names "),
                "{problems:?}"
            );
            assert!(
                problems[0].contains(named) && !problems[0].contains("s3cr3t"),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_previous_key_is_removed_with_its_file_or_content() {
        let folder = Folder::new();
        folder.write("current", OLD.as_bytes());
        assert_eq!(
            folder.files().read(&keys(OLD, Some(NEW))),
            (keys(OLD, None), vec![])
        );
        folder.write("previous", b"\n");
        assert_eq!(
            folder.files().read(&keys(OLD, Some(NEW))),
            (keys(OLD, None), vec![])
        );
        folder.write("previous", b"short");
        let (read, problems) = folder.files().read(&keys(OLD, Some(NEW)));
        assert_eq!((read, problems.len()), (keys(OLD, Some(NEW)), 1));
    }

    #[test]
    fn a_key_from_a_variable_stays() {
        let files = KeyFiles::default();
        assert!(files.is_empty());
        assert_eq!(
            files.read(&keys(OLD, Some(NEW))),
            (keys(OLD, Some(NEW)), vec![])
        );
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let folder = Folder::new();
        fs::create_dir(folder.0.join("current")).unwrap();
        let (read, problems) = folder.files().read(&keys(OLD, None));
        assert_eq!(read, keys(OLD, None));
        assert!(problems[0].ends_with("is no regular file"), "{problems:?}");
    }
}

//! What tokens are signed with and checked against. The keys can be files, which are read again while the service runs.

use std::fs;
use std::path::{Path, PathBuf};

use super::environment::{Environment, without_line_breaks};
use super::{ConfigError, Secret};

/// Shortest HS256 secret (RFC 7518 §3.2: as long as the hash).
const SECRET_BYTES_MIN: usize = 32;
/// How often the files are read for two that belong together: a mounted secret is replaced between two reads at most once.
const READS_MAX: usize = 3;
const CURRENT: &str = "SHOPBELL_JWT_HS256_SECRET";
const PREVIOUS: &str = "SHOPBELL_JWT_HS256_SECRET_PREVIOUS";

/// Tokens.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// The keys as they were at the start.
    pub keys: Keys,
    /// Where they can be read again.
    pub files: KeyFiles,
    /// `SHOPBELL_JWT_AUDIENCE`.
    pub audience: Option<String>,
    /// `SHOPBELL_JWT_ISSUER`.
    pub issuer: Option<String>,
}

/// The keys at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// `SHOPBELL_JWT_HS256_SECRET`: signs and checks.
    pub current: Secret,
    /// `SHOPBELL_JWT_HS256_SECRET_PREVIOUS`: checks only. In a rotation it is the key before this one, or the next.
    pub previous: Option<Secret>,
}

/// The files that the keys are from; `None` for a key from a variable.
#[derive(Debug, Clone, Default)]
pub struct KeyFiles {
    current: Option<PathBuf>,
    previous: Option<PathBuf>,
}

impl KeyFiles {
    /// Whether no key is from a file.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.previous.is_none()
    }

    /// Reads the files. A key whose file cannot be used stays what it was in `last`, and the problem is in the list.
    pub fn read(&self, last: &Keys) -> (Keys, Vec<String>) {
        let mut current = self.current.as_deref().map(read_key);
        for _ in 1..READS_MAX {
            let previous = self.previous.as_deref().map(read_key);
            let again = self.current.as_deref().map(read_key);
            if again == current {
                return settle(current, previous, last);
            }
            current = again;
        }
        settle(current, self.previous.as_deref().map(read_key), last)
    }
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    Key(Secret),
    /// The file is empty, or not there.
    Nothing(String),
    Unusable(String),
}

fn settle(current: Option<Held>, previous: Option<Held>, last: &Keys) -> (Keys, Vec<String>) {
    let (mut keys, mut problems) = (last.clone(), Vec::new());
    let mut complain = |name, problem: String| problems.push(format!("{name}_FILE {problem}"));
    match current {
        Some(Held::Key(key)) => keys.current = key,
        Some(Held::Nothing(problem) | Held::Unusable(problem)) => complain(CURRENT, problem),
        None => {}
    }
    match previous {
        Some(Held::Key(key)) => keys.previous = Some(key),
        // The end of a rotation: the old key is taken away.
        Some(Held::Nothing(_)) => keys.previous = None,
        Some(Held::Unusable(problem)) => complain(PREVIOUS, problem),
        None => {}
    }
    (keys, problems)
}

fn read_key(path: &Path) -> Held {
    let unusable = |what: &str| Held::Unusable(format!("names {}, which {what}", path.display()));
    let content = match fs::metadata(path) {
        // A pipe would give its content once, and then block.
        Ok(metadata) if !metadata.is_file() => return unusable("is no regular file"),
        Ok(_) => fs::read_to_string(path),
        Err(error) => Err(error),
    };
    match content {
        Ok(content) if content.trim().is_empty() => {
            Held::Nothing(format!("names {}, which is empty", path.display()))
        }
        Ok(content) => match key(&Secret(without_line_breaks(&content).to_owned())) {
            Ok(key) => Held::Key(key),
            Err(expected) => unusable(&format!("holds no key: it {expected}")),
        },
        Err(error) => {
            let problem = format!("names {}, which cannot be read: {error}", path.display());
            match error.kind() {
                std::io::ErrorKind::NotFound => Held::Nothing(problem),
                _ => Held::Unusable(problem),
            }
        }
    }
}

fn key(secret: &Secret) -> Result<Secret, &'static str> {
    if secret.reveal().starts_with('\u{feff}') {
        return Err("must not begin with a byte order mark");
    }
    let is_long_enough = secret.reveal().len() >= SECRET_BYTES_MIN;
    is_long_enough
        .then(|| secret.clone())
        .ok_or("must have at least 32 bytes")
}

impl Environment {
    /// Tokens alone.
    pub fn jwt(mut self) -> Result<JwtConfig, ConfigError> {
        let jwt = self.read_jwt();
        self.finish(jwt)
    }

    pub(super) fn read_jwt(&mut self) -> Option<JwtConfig> {
        let file = |environment: &Self, name: &str| {
            environment.peek(&format!("{name}_FILE")).map(PathBuf::from)
        };
        // A pipe is read once, at the start.
        let followed =
            |path: &PathBuf| fs::metadata(path).map_or(true, |metadata| metadata.is_file());
        let files = KeyFiles {
            current: file(self, CURRENT).filter(followed),
            previous: file(self, PREVIOUS).filter(followed),
        };
        let current = self.secret(CURRENT, key, |_| None);
        let previous = self.optional_secret(PREVIOUS, key);
        let audience = self.optional_text("SHOPBELL_JWT_AUDIENCE");
        let issuer = self.optional_text("SHOPBELL_JWT_ISSUER");
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
            current: Secret(current.into()),
            previous: previous.map(|key| Secret(key.into())),
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
    fn a_current_key_that_cannot_be_used_stays_what_it_was() {
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
    fn a_previous_key_is_taken_away_with_its_file_or_content() {
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
    fn what_is_no_regular_file_is_not_read() {
        let folder = Folder::new();
        fs::create_dir(folder.0.join("current")).unwrap();
        let (read, problems) = folder.files().read(&keys(OLD, None));
        assert_eq!(read, keys(OLD, None));
        assert!(problems[0].ends_with("is no regular file"), "{problems:?}");
    }
}

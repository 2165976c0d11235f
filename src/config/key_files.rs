//! The keys that sign and check tokens. Keys from files are read again while the service runs.

use std::path::PathBuf;

use super::environment::file_variable;
use super::files::{self, Content};
use super::public_key::PublicKey;
use super::secret::Secret;
use super::settings::{JWT_PUBLIC_KEY, JWT_SECRET, JWT_SECRET_PREVIOUS, Setting};

/// Shortest HS256 secret (RFC 7518 §3.2: as long as the hash).
const SECRET_BYTES_MIN: usize = 32;
/// Most reads to get two keys that belong together. Between two reads, a mounted secret is replaced
/// at most once.
const READS_MAX: usize = 3;

/// The keys at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// `SHOPBELL_JWT_HS256_SECRET`: signs and checks tokens.
    pub current: Option<Secret>,
    /// `SHOPBELL_JWT_HS256_SECRET_PREVIOUS`: only checks tokens. During a rotation it is the key
    /// before or after the current one.
    pub previous: Option<Secret>,
    /// `SHOPBELL_JWT_PUBLIC_KEY`: only check tokens.
    pub public: Vec<PublicKey>,
}

/// The files of the keys; `None` for a key from a variable.
#[derive(Debug, Clone, Default)]
pub struct KeyFiles {
    pub(super) current: Option<PathBuf>,
    pub(super) previous: Option<PathBuf>,
    pub(super) public: Option<PathBuf>,
}

impl KeyFiles {
    /// Whether all keys are from variables.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.previous.is_none() && self.public.is_none()
    }

    /// Whether a file may get a secret later.
    pub fn may_have_secret(&self) -> bool {
        self.current.is_some() || self.previous.is_some()
    }

    /// Whether a file may get public keys later.
    pub fn may_have_public(&self) -> bool {
        self.public.is_some()
    }

    /// Reads the files. If a file cannot be used, its key stays as in `last`, and the list has the
    /// problem.
    pub fn read(&self, last: &Keys) -> (Keys, Vec<String>) {
        let read = |path: &Option<PathBuf>| Some(files::read(path.as_deref()?, secret));
        let mut current = read(&self.current);
        let mut previous = read(&self.previous);
        for _ in 1..READS_MAX {
            let again = read(&self.current);
            if again == current {
                break;
            }
            (current, previous) = (again, read(&self.previous));
        }
        let public = self.public.as_deref();
        let public = public.map(|path| files::read(path, self::public));
        merge(current, previous, public, last)
    }
}

fn merge(
    current: Option<Content<Secret>>,
    previous: Option<Content<Secret>>,
    public: Option<Content<Vec<PublicKey>>>,
    last: &Keys,
) -> (Keys, Vec<String>) {
    let (mut keys, mut problems) = (last.clone(), Vec::new());
    let mut complain = |setting: &Setting, problem: String| {
        problems.push(format!("{} {problem}", file_variable(setting.variable)));
    };
    match current {
        Some(Content::Value(key)) => keys.current = Some(key),
        // It was missing at the start, and another key is enough.
        Some(Content::Missing(_)) if last.current.is_none() => {}
        Some(Content::Missing(problem) | Content::Unusable(problem)) => {
            complain(&JWT_SECRET, problem)
        }
        None => {}
    }
    match previous {
        Some(Content::Value(key)) => keys.previous = Some(key),
        // At the end of a rotation the old key is removed.
        Some(Content::Missing(_)) => keys.previous = None,
        Some(Content::Unusable(problem)) => complain(&JWT_SECRET_PREVIOUS, problem),
        None => {}
    }
    match public {
        Some(Content::Value(all)) => keys.public = all,
        Some(Content::Missing(_)) if last.public.is_empty() => {}
        Some(Content::Missing(problem) | Content::Unusable(problem)) => {
            complain(&JWT_PUBLIC_KEY, problem)
        }
        None => {}
    }
    (keys, problems)
}

/// Parses an HS256 secret.
pub(super) fn secret(secret: &Secret) -> Result<Secret, String> {
    if secret.reveal().starts_with('\u{feff}') {
        return Err("must not begin with a byte order mark".into());
    }
    if secret.reveal().len() < SECRET_BYTES_MIN {
        return Err(format!("must have at least {SECRET_BYTES_MIN} bytes"));
    }
    // With a public key as the secret, everybody could sign tokens (RFC 8725 §2.1).
    if secret.reveal().contains("-----BEGIN ") {
        return Err("is a key in PEM: set it as SHOPBELL_JWT_PUBLIC_KEY".into());
    }
    Ok(secret.clone())
}

/// Parses public keys.
pub(super) fn public(text: &Secret) -> Result<Vec<PublicKey>, String> {
    PublicKey::of_pem(text.reveal())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;

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
                public: None,
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
            current: Some(Secret::new(current.into())),
            previous: previous.map(|key| Secret::new(key.into())),
            public: Vec::new(),
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
    fn a_file_that_is_missing_since_the_start_is_no_problem() {
        let folder = Folder::new();
        let files = KeyFiles {
            public: Some(folder.0.join("public")),
            ..folder.files()
        };
        assert_eq!(files.read(&Keys::default()), (Keys::default(), vec![]));
        folder.write("public", b"s3cr3t");
        assert_eq!(files.read(&Keys::default()).1.len(), 1);
        folder.write("current", NEW.as_bytes());
        assert_eq!(files.read(&Keys::default()).0, keys(NEW, None));
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

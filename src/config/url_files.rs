//! The URLs of Postgres and RabbitMQ, read again from their files while the service runs.

use std::path::PathBuf;

use sqlx::postgres::PgConnectOptions;

use super::database;
use super::environment::{Environment, file_variable};
use super::files::{self, Content};
use super::secret::Secret;
use super::settings::{AMQP_URL, DATABASE_URL, Setting};

/// The files of the URLs; `None` for a URL from a variable.
#[derive(Debug, Clone, Default)]
pub struct UrlFiles {
    database: Option<UrlFile>,
    amqp: Option<UrlFile>,
}

#[derive(Debug, Clone)]
struct UrlFile {
    variable: String,
    path: PathBuf,
    last: Option<Secret>,
}

/// The result of reading one file: its URL if that changed, or the problem. The first read counts
/// as a change.
pub(super) type Changed<T> = Result<Option<T>, String>;

impl UrlFiles {
    /// Whether both URLs are from variables.
    pub fn is_empty(&self) -> bool {
        self.database.is_none() && self.amqp.is_none()
    }

    /// Reads the file of `DATABASE_URL`.
    pub fn read_database(&mut self) -> Changed<PgConnectOptions> {
        read(&mut self.database, |url| database::parse(url.reveal()))
    }

    /// Reads the file of `AMQP_URL`. `parse` returns a problem that follows "it".
    pub fn read_amqp<T>(&mut self, parse: impl FnOnce(&str) -> Result<T, String>) -> Changed<T> {
        read(&mut self.amqp, |url| parse(url.reveal()))
    }
}

fn read<T>(
    file: &mut Option<UrlFile>,
    parse: impl FnOnce(&Secret) -> Result<T, String>,
) -> Changed<T> {
    let Some(file) = file else {
        return Ok(None);
    };
    match files::read(&file.path, |url| Ok((url.clone(), parse(url)?))) {
        Content::Value((url, _)) if file.last.as_ref() == Some(&url) => Ok(None),
        Content::Value((url, value)) => {
            file.last = Some(url);
            Ok(Some(value))
        }
        Content::Missing(problem) | Content::Unusable(problem) => {
            Err(format!("{} {problem}", file.variable))
        }
    }
}

impl Environment {
    pub(super) fn url_files(&self) -> UrlFiles {
        let file = |setting: &Setting| {
            Some(UrlFile {
                variable: file_variable(setting.variable),
                path: self.file_of(setting)?,
                last: None,
            })
        };
        UrlFiles {
            database: file(&DATABASE_URL),
            amqp: file(&AMQP_URL),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_url_is_returned_when_it_changes_and_a_bad_one_never() {
        let path = std::env::temp_dir().join(format!("shopbell-url-{}", uuid::Uuid::new_v4()));
        let file = path.to_str().unwrap().to_owned();
        let environment = Environment::of(vec![("DATABASE_URL_FILE".into(), file)]);
        let mut files = environment.url_files();
        assert!(!files.is_empty());
        assert!(files.read_amqp(|_| Ok(())).unwrap().is_none());
        let mut read = |content: &str| {
            fs::write(&path, content).unwrap();
            let changed = files.read_database();
            changed.map(|changed| changed.map(|options| options.get_username().to_owned()))
        };
        assert_eq!(read("postgres://a:hidden@h/d\n"), Ok(Some("a".into())));
        assert_eq!(read("postgres://a:hidden@h/d"), Ok(None));
        for bad in ["", "hidden", "postgres://a:hidden@h,i/d"] {
            let problem = read(bad).unwrap_err();
            assert!(problem.starts_with("DATABASE_URL_FILE names "), "{problem}");
            assert!(!problem.contains("hidden"), "{problem}");
        }
        assert_eq!(read("postgres://a:hidden@h/d"), Ok(None));
        assert_eq!(read("postgres://b:hidden@h/d"), Ok(Some("b".into())));
        fs::remove_file(&path).unwrap();
    }
}

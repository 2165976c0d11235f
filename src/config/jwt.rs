//! The settings of tokens: the keys, the key set of the issuer, and the expected claims.

use std::net::IpAddr;
use std::time::Duration;

use url::{Host, Url};

use super::environment::{Environment, file_variable};
use super::error::ConfigError;
use super::files::{self, Content};
use super::key_files::{self, KeyFiles, Keys};
use super::public_key::PublicKey;
use super::settings::{
    JWKS_ALLOW_HTTP, JWKS_REFRESH_SECONDS, JWKS_STALE_SECONDS, JWKS_URL, JWT_AUDIENCE, JWT_ISSUER,
    JWT_PUBLIC_KEY, JWT_SECRET, JWT_SECRET_PREVIOUS, Setting,
};

/// Least time between the next fetch of the key set and its greatest age, so that one slow or failed
/// fetch leaves no replica without keys.
const STALE_MARGIN: Duration = Duration::from_secs(10);

/// Every setting of tokens.
pub(super) const JWT_SETTINGS: [&Setting; 9] = [
    &JWT_SECRET,
    &JWT_SECRET_PREVIOUS,
    &JWT_PUBLIC_KEY,
    &JWKS_URL,
    &JWKS_ALLOW_HTTP,
    &JWKS_REFRESH_SECONDS,
    &JWKS_STALE_SECONDS,
    &JWT_AUDIENCE,
    &JWT_ISSUER,
];

/// The settings of tokens.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// The keys at the start.
    pub keys: Keys,
    /// The files to read them again from.
    pub files: KeyFiles,
    /// The key set of the issuer, if any.
    pub jwks: Option<JwksConfig>,
    /// `SHOPBELL_JWT_AUDIENCE`.
    pub audience: Option<String>,
    /// `SHOPBELL_JWT_ISSUER`.
    pub issuer: Option<String>,
}

/// The key set of the issuer of tokens.
#[derive(Debug, Clone)]
pub struct JwksConfig {
    /// `SHOPBELL_JWKS_URL`.
    pub url: Url,
    /// `SHOPBELL_JWKS_REFRESH_SECONDS`.
    pub refresh: Duration,
    /// `SHOPBELL_JWKS_STALE_SECONDS`.
    pub stale_max: Duration,
}

impl JwksConfig {
    /// Whether the URL leads to this machine.
    pub fn is_on_loopback(&self) -> bool {
        is_loopback(&self.url)
    }
}

impl Environment {
    /// Reads the settings of tokens only.
    pub fn jwt(mut self) -> Result<JwtConfig, ConfigError> {
        let jwt = self.read_jwt();
        self.finish(jwt)
    }

    pub(super) fn read_jwt(&mut self) -> Option<JwtConfig> {
        let files = KeyFiles {
            current: self.file_of(&JWT_SECRET),
            previous: self.file_of(&JWT_SECRET_PREVIOUS),
            public: self.file_of(&JWT_PUBLIC_KEY),
        };
        let complaints = self.complaint_count();
        let current = self.secret(&JWT_SECRET, key_files::secret, |_| None);
        let previous = self.secret(&JWT_SECRET_PREVIOUS, key_files::secret, |_| None);
        let public = self.secret(&JWT_PUBLIC_KEY, key_files::public, |keys| Some(shown(keys)));
        let jwks = self.read_jwks();
        let audience = self.text(&JWT_AUDIENCE);
        let issuer = self.text(&JWT_ISSUER);
        let has_key = current.is_some() || public.is_some() || jwks.is_some();
        if !has_key && self.complaint_count() == complaints {
            self.complain_of_no_key(&files);
        }
        has_key.then_some(JwtConfig {
            keys: Keys {
                current,
                previous,
                public: public.unwrap_or_default(),
            },
            files,
            jwks,
            audience,
            issuer,
        })
    }

    fn complain_of_no_key(&mut self, files: &KeyFiles) {
        let given = [
            (&JWT_SECRET, &files.current),
            (&JWT_PUBLIC_KEY, &files.public),
        ];
        for (setting, file) in given {
            if let Some(path) = file {
                let content = files::read(path, |_| Ok(()));
                if let Content::Missing(problem) | Content::Unusable(problem) = content {
                    self.complain(&file_variable(setting.variable), &problem);
                }
                return;
            }
        }
        self.complain(
            JWT_SECRET.variable,
            "is required, or SHOPBELL_JWT_PUBLIC_KEY, or SHOPBELL_JWKS_URL",
        );
    }

    fn read_jwks(&mut self) -> Option<JwksConfig> {
        let url = self.key_set_url(&JWKS_URL);
        let allow_http = self.flag(&JWKS_ALLOW_HTTP);
        let refresh = self.seconds(&JWKS_REFRESH_SECONDS);
        let stale_max = self.seconds(&JWKS_STALE_SECONDS);
        let (url, refresh, stale_max) = (url?, refresh?, stale_max?);
        if url.scheme() == "http" && !allow_http? && !is_loopback(&url) {
            let problem = "must be an https URL: over HTTP, anybody in between can replace the keys. \
                           SHOPBELL_JWKS_ALLOW_HTTP=true allows it";
            self.complain(JWKS_URL.variable, problem);
            return None;
        }
        if stale_max < refresh + STALE_MARGIN {
            let problem = "must be at least 10 seconds more than SHOPBELL_JWKS_REFRESH_SECONDS";
            self.complain(JWKS_STALE_SECONDS.variable, problem);
            return None;
        }
        Some(JwksConfig {
            url,
            refresh,
            stale_max,
        })
    }
}

fn shown(keys: &[PublicKey]) -> String {
    let algorithms = keys.iter().map(|key| key.algorithm().to_string());
    algorithms.collect::<Vec<_>>().join(",")
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_key_set_may_miss_a_fetch_for_ten_seconds() {
        let read = |stale: &str| {
            let variables = [
                ("SHOPBELL_JWKS_URL", "https://id.example/keys"),
                ("SHOPBELL_JWKS_REFRESH_SECONDS", "60"),
                ("SHOPBELL_JWKS_STALE_SECONDS", stale),
            ];
            let given = variables.map(|(name, value)| (name.into(), value.into()));
            Environment::of(given.into()).jwt()
        };
        let jwks = read("70").unwrap().jwks.unwrap();
        assert_eq!(jwks.stale_max, Duration::from_secs(70));
        let complaint = read("69").unwrap_err().to_string();
        assert!(
            complaint.contains("SHOPBELL_JWKS_STALE_SECONDS"),
            "{complaint}"
        );
        assert!(
            complaint.contains("at least 10 seconds more"),
            "{complaint}"
        );
    }
}

//! Fetches the key set of the issuer. The URL is from the configuration, never from a token.

use std::error::Error;
use std::time::Duration;

use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};

use super::KeySet;
use crate::config::JwksConfig;
use crate::tls;

/// Longest time of a fetch, from the lookup of the host name to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest set. 32 keys with certificates need less.
const BYTES_MAX: usize = 256 * 1024;

/// The CAs of the operating system, unless this variable names a file.
const CERTIFICATES: tls::Settings = tls::Settings {
    ca: "SSL_CERT_FILE",
    client: None,
};

/// The reason why the set could not be fetched. It repeats no part of the URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server cannot be reached, or did not answer in time.
    #[error("{0}")]
    Away(String),
    /// The server answered with another status than 200.
    #[error("the server answered with the status {0}{hint}", hint = if .0.is_redirection() { ", and redirects are not followed" } else { "" })]
    Status(StatusCode),
    /// The answer is too large.
    #[error("the answer is larger than {BYTES_MAX} bytes")]
    TooLarge,
    /// The answer is no usable set.
    #[error("the answer cannot be used: {0}")]
    Unusable(String),
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Away(format!("no complete answer within {} s", TIMEOUT.as_secs()));
        }
        let error = error.without_url();
        if let Some(reason) = tls::reason(&error, CERTIFICATES) {
            return Self::Away(reason);
        }
        let mut causes = vec![error.to_string()];
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self::Away(causes.join(": "))
    }
}

/// Fetches and parses the set. Each fetch makes a connection of its own, so that it uses the
/// present certificates and addresses.
///
/// # Errors
/// The set cannot be fetched or used.
pub async fn fetch(config: &JwksConfig) -> Result<KeySet, FetchError> {
    let mut client = Client::builder()
        .timeout(TIMEOUT)
        .redirect(Policy::none())
        .https_only(config.url.scheme() == "https")
        .user_agent(concat!("shopbell/", env!("CARGO_PKG_VERSION")));
    // A proxy would connect to its own loopback.
    if config.is_on_loopback() {
        client = client.no_proxy();
    }
    let request = client
        .build()?
        .get(config.url.clone())
        .header(ACCEPT, "application/jwk-set+json, application/json");
    let mut response = request.send().await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BYTES_MAX {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    let not_utf8 = |_| FetchError::Unusable("it is not UTF-8".into());
    let body = String::from_utf8(body).map_err(not_utf8)?;
    KeySet::parse(&body).map_err(FetchError::Unusable)
}

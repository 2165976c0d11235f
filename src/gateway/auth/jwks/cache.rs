//! The cached key set of the issuer: fetched at an interval, and once more if a token names an
//! unknown key. While the URL fails, the last set stays in use until it is too old.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::fetch::{FetchError, fetch};
use super::{KeySet, is_kid};
use crate::config::JwksConfig;
use crate::telemetry::labels::JwksFetch;
use crate::telemetry::metrics::Metrics;

/// Shortest time between two fetches because of unknown keys. Anybody can send a token with one.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait of a request for such a fetch. Its client comes back if this is not enough.
const UNKNOWN_WAIT: Duration = Duration::from_secs(3);
/// Bounds of the wait after a failed fetch, which doubles from the first to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The cached set.
#[derive(Debug)]
pub struct Jwks {
    config: JwksConfig,
    metrics: Arc<Metrics>,
    /// Locked only to copy and to replace values.
    state: Mutex<State>,
    wanted: Notify,
    /// The number of the last fetch that has ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    set: Arc<KeySet>,
    fetched_at: Option<Instant>,
    /// The number of the last fetch that has begun.
    begun: u64,
    unknown: Option<Unknown>,
}

/// The last fetch because of an unknown key.
#[derive(Debug, Clone, Copy)]
struct Unknown {
    wanted_at: Instant,
    /// The number of the first fetch that began after that.
    fetch: u64,
}

impl Jwks {
    /// An empty cache.
    pub(crate) fn new(config: JwksConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            config,
            metrics,
            state: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }

    /// The present set. It is empty before the first fetch, and if the last set is too old.
    pub(crate) fn set(&self) -> Arc<KeySet> {
        let state = self.state();
        match state.fetched_at {
            Some(at) if at.elapsed() <= self.config.stale_max => state.set.clone(),
            _ => Arc::default(),
        }
    }

    /// Fetches for ever, and calls `ended` after each fetch.
    pub(crate) async fn follow(&self, ended: impl Fn()) {
        let mut failures = Failures::default();
        self.metrics.jwks.age.begin();
        loop {
            let number = self.begin();
            let wait = match fetch(&self.config).await {
                Ok(set) => {
                    self.replace(set);
                    failures.end();
                    jittered(self.config.refresh)
                }
                Err(error) => {
                    self.metrics.jwks.fetches.inc(JwksFetch::Failed);
                    let age = self.state().fetched_at.map(|at| at.elapsed());
                    let is_too_old = age.is_none_or(|age| age > self.config.stale_max);
                    failures.add(&error, age, is_too_old);
                    jittered(failures.wait().min(self.config.refresh))
                }
            };
            self.metrics
                .jwks
                .keys
                .set(i64::try_from(self.set().len()).unwrap_or(i64::MAX));
            self.ended.send_replace(number);
            ended();
            // A set that becomes too old during the wait is reported at its end.
            let _ = tokio::time::timeout(wait, self.wanted.notified()).await;
        }
    }

    fn begin(&self) -> u64 {
        let mut state = self.state();
        state.begun += 1;
        state.begun
    }

    fn replace(&self, set: KeySet) {
        self.metrics.jwks.fetches.inc(JwksFetch::Ok);
        self.metrics.jwks.age.begin();
        let mut state = self.state();
        if *state.set != set {
            if set.is_empty() {
                tracing::error!(unusable = ?set.unusable, "the key set of the issuer has no usable key; tokens of its keys are refused");
            } else {
                tracing::info!(keys = ?set.names(), unusable = ?set.unusable, "the key set of the issuer changed");
            }
            state.set = Arc::new(set);
        }
        state.fetched_at = Some(Instant::now());
    }

    /// Waits for a fetch that may bring a key that `checked` does not have. Returns false if there
    /// is none now.
    pub(crate) async fn fetches_key(&self, checked: &KeySet, kid: Option<&str>) -> bool {
        // Another request may have brought it meanwhile.
        if *self.set() != *checked {
            return true;
        }
        let is_known = |kid: &str| !is_kid(kid) || checked.names_key(kid);
        if kid.is_some_and(is_known) {
            return false;
        }
        let mut ended = self.ended.subscribe();
        let fetch = {
            let mut state = self.state();
            let unknown = next_unknown(state.unknown, state.begun, Instant::now());
            if state
                .unknown
                .replace(unknown)
                .is_none_or(|last| last.fetch != unknown.fetch)
            {
                self.wanted.notify_one();
            }
            unknown.fetch
        };
        if *ended.borrow_and_update() >= fetch {
            return false;
        }
        let ending = ended.wait_for(|ended| *ended >= fetch);
        matches!(tokio::time::timeout(UNKNOWN_WAIT, ending).await, Ok(Ok(_)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fetch that a request with an unknown key waits for: the next one, or the last one if it was
/// wanted a short time ago.
fn next_unknown(last: Option<Unknown>, begun: u64, now: Instant) -> Unknown {
    match last {
        Some(last) if now.duration_since(last.wanted_at) < UNKNOWN_INTERVAL => last,
        _ => Unknown {
            wanted_at: now,
            fetch: begun + 1,
        },
    }
}

/// Spreads the fetches of replicas that start together.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.9 + fastrand::f64() / 10.0)
}

/// The failed fetches since the last success.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    /// The last logged error. An outage is logged once for each of its errors.
    logged: String,
    is_too_old: bool,
}

impl Failures {
    fn add(&mut self, error: &FetchError, age: Option<Duration>, is_too_old: bool) {
        self.count = self.count.saturating_add(1);
        let error = error.to_string();
        if error == self.logged && is_too_old == self.is_too_old {
            return;
        }
        let age_seconds = age.map(|age| age.as_secs());
        if is_too_old {
            tracing::error!(
                error,
                age_seconds,
                "the key set of the issuer cannot be fetched; tokens of its keys are refused until it can"
            );
        } else {
            tracing::warn!(
                error,
                age_seconds,
                "the key set of the issuer cannot be fetched; the last one stays in use"
            );
        }
        (self.logged, self.is_too_old) = (error, is_too_old);
    }

    fn end(&mut self) {
        if self.count > 0 {
            tracing::info!(
                failures = self.count,
                "the key set of the issuer was fetched again"
            );
        }
        *self = Self::default();
    }

    fn wait(&self) -> Duration {
        let doublings = self.count.saturating_sub(1).min(16);
        (RETRY_MIN * 2_u32.pow(doublings)).min(RETRY_MAX)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_asks_for_the_next_fetch_and_not_too_often() {
        let start = Instant::now();
        let first = next_unknown(None, 7, start);
        assert_eq!(first.fetch, 8);
        let soon = start + UNKNOWN_INTERVAL - Duration::from_millis(1);
        for begun in [7, 8, 9] {
            assert_eq!(next_unknown(Some(first), begun, soon).fetch, 8, "{begun}");
        }
        let later = next_unknown(Some(first), 9, start + UNKNOWN_INTERVAL);
        assert_eq!(
            (later.fetch, later.wanted_at),
            (10, start + UNKNOWN_INTERVAL)
        );
    }

    #[test]
    fn the_wait_after_failures_doubles_up_to_a_minute() {
        let waits = [0, 1, 2, 3, 6, 7, 40, u32::MAX].map(|count| {
            let failures = Failures {
                count,
                ..Failures::default()
            };
            failures.wait().as_secs()
        });
        assert_eq!(waits, [1, 1, 2, 4, 32, 60, 60, 60]);
    }

    #[tokio::test]
    async fn a_request_waits_for_a_fetch_that_began_after_it() {
        let url = "http://127.0.0.1:1/".parse().unwrap();
        let (refresh, stale_max) = (Duration::from_secs(300), Duration::from_secs(600));
        let config = JwksConfig {
            url,
            refresh,
            stale_max,
        };
        let jwks = Arc::new(Jwks::new(config, Arc::default()));
        let running = jwks.begin();
        let waiting = jwks.clone();
        let request =
            tokio::spawn(async move { waiting.fetches_key(&KeySet::default(), Some("new")).await });
        jwks.wanted.notified().await;
        jwks.ended.send_replace(running);
        tokio::task::yield_now().await;
        assert!(
            !request.is_finished(),
            "the running fetch may not have the key"
        );
        let next = jwks.begin();
        jwks.ended.send_replace(next);
        assert!(request.await.unwrap());
        assert!(
            !jwks.fetches_key(&KeySet::default(), Some("other")).await,
            "it is too early for another fetch"
        );
        assert!(!jwks.fetches_key(&KeySet::default(), Some("a\nb")).await);
        assert!(
            !jwks
                .fetches_key(&KeySet::default(), Some(&"k".repeat(300)))
                .await
        );

        // The set was replaced after the check of the token.
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        jwks.replace(KeySet::parse(&format!(r#"{{"keys":[{jwk}]}}"#)).unwrap());
        assert!(jwks.fetches_key(&KeySet::default(), Some("a")).await);
        assert!(!jwks.fetches_key(&jwks.set(), Some("a")).await);
    }
}

//! The client of a request and its token become a [`Grant`], within the bounds of both.

use std::net::SocketAddr;
use std::time::Instant;

use axum::http::HeaderMap;

use super::Gateway;
use crate::gateway::auth::{Grant, Recipients, TokenError, Watcher};
use crate::gateway::refusal::Refusal;
use crate::http::client_address::{Client, client_of};

impl Gateway {
    /// Finds the client of a request on a connection from `peer`.
    pub fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> Client {
        client_of(peer.ip(), headers, &self.proxies)
    }

    /// Counts a request, before anything of it is checked.
    pub fn count_request(&self, client: Client) -> Result<(), Refusal> {
        let counted = self.shared.rates.request(client.block, Instant::now());
        counted.map_err(Refusal::TooManyRequests)
    }

    /// Checks the token of a counted request.
    pub async fn authenticate(
        &self,
        client: Client,
        token: Option<&str>,
    ) -> Result<Grant, Refusal> {
        let admitted = self.shared.authenticator.admit(token).await;
        let grant = admitted.map_err(|error| self.count_failed_token(client, error))?;
        let counted = self
            .shared
            .rates
            .subscriber(&grant.subscriber, Instant::now());
        counted.map_err(Refusal::TooManyRequests)?;
        Ok(grant)
    }

    /// Checks the token of a counted request of a publisher. A publisher has no rate of its own: the
    /// bytes of its requests are bounded.
    pub async fn authenticate_publisher(
        &self,
        client: Client,
        token: Option<&str>,
    ) -> Result<Recipients, Refusal> {
        let admitted = self.shared.authenticator.admit_publisher(token).await;
        admitted.map_err(|error| self.count_failed_token(client, error))
    }

    /// Checks the token of a counted request for presence.
    pub async fn authenticate_watcher(
        &self,
        client: Client,
        token: Option<&str>,
    ) -> Result<Watcher, Refusal> {
        let admitted = self.shared.authenticator.admit_watcher(token).await;
        let watcher = admitted.map_err(|error| self.count_failed_token(client, error))?;
        if let Some(grant) = watcher.reader() {
            let rates = &self.shared.rates;
            let counted = rates.subscriber(&grant.subscriber, Instant::now());
            counted.map_err(Refusal::TooManyRequests)?;
        }
        Ok(watcher)
    }

    fn count_failed_token(&self, client: Client, error: TokenError) -> Refusal {
        let (rates, now) = (&self.shared.rates, Instant::now());
        if error.may_be_a_guess()
            && let Err(too_fast) = rates.failed_token(client.block, now)
        {
            return Refusal::TooManyRequests(too_fast);
        }
        Refusal::Token(error)
    }

    /// Logs the address of a client that is beyond a bound, at most every few seconds.
    pub fn log_bound(&self, client: Client, refusal: &Refusal) {
        if let Some(setting) = refusal.setting()
            && self.shared.rates.may_log(Instant::now())
        {
            tracing::warn!(
                client = %client.address,
                setting,
                "a client is beyond a limit and is refused for a while"
            );
        }
    }
}

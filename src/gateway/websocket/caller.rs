//! The caller of a request: its address and its token become a [`Grant`], within the bounds of both.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use axum::http::HeaderMap;

use super::Gateway;
use crate::gateway::auth::Grant;
use crate::gateway::refusal::Refusal;
use crate::http::client_address::{AddressBlock, client_address};

/// The address of the client of a request.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    address: IpAddr,
    /// `None` if no bound applies to the address.
    pub(super) block: Option<AddressBlock>,
}

impl Gateway {
    /// Finds the client of a request on a connection from `peer`.
    pub fn caller(&self, peer: SocketAddr, headers: &HeaderMap) -> Caller {
        let address = client_address(peer.ip(), headers, &self.proxies);
        let block = AddressBlock::of_public(address);
        Caller { address, block }
    }

    /// Checks the token of a request.
    pub async fn authenticate(
        &self,
        caller: Caller,
        token: Option<&str>,
    ) -> Result<Grant, Refusal> {
        let (rates, now) = (&self.rates, Instant::now());
        rates
            .request(caller.block, now)
            .map_err(Refusal::TooManyRequests)?;
        let checked = self.shared.authenticator.admit(token).await;
        let grant = checked.map_err(|error| {
            if error.may_be_a_guess() {
                rates.failed_token(caller.block, now);
            }
            Refusal::Token(error)
        })?;
        match rates.subscriber(&grant.subscriber, now) {
            Ok(()) => Ok(grant),
            Err(too_fast) => Err(Refusal::TooManyRequests(too_fast)),
        }
    }

    /// Logs the address of a client that is beyond a bound, at most every few seconds.
    pub fn log_bound(&self, caller: Caller, refusal: &Refusal) {
        if let Some(setting) = refusal.setting()
            && self.rates.may_log(Instant::now())
        {
            tracing::warn!(
                client = %caller.address,
                setting,
                "a client is beyond a limit and is refused for a while"
            );
        }
    }
}

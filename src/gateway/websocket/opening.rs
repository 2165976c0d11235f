//! Opens a session: the grant of its token and the numbers that its client kept become an
//! [`Opened`], or a [`Refusal`].

use std::time::Duration;

use super::Gateway;
use crate::fanout::hub::Registration;
use crate::gateway::admission::Admitted;
use crate::gateway::auth::Grant;
use crate::gateway::cursors::NotOpened;
use crate::gateway::handshake::SessionParameters;
use crate::gateway::refusal::Refusal;
use crate::gateway::session::state::{KeptByClient, KeptNumber, Start, Transport};
use crate::gateway::session::task::Opened;
use crate::http::client_address::AddressBlock;
use crate::model::feed::{Device, Epoch, Feed, Newest};
use crate::model::protocol::WelcomeFeed;
use crate::store::cursors::{CursorKey, FeedStanding};

/// Longest wait of a handshake for its cursors. After it, the session is refused as not ready.
const CURSORS_TIMEOUT: Duration = Duration::from_secs(5);

impl Gateway {
    /// Registers in the hub, then reads the cursors. So an event that is stored in between is in
    /// the inbox.
    pub async fn open(
        &self,
        parameters: SessionParameters,
        grant: Grant,
        block: Option<AddressBlock>,
        transport: Transport,
    ) -> Result<(Opened, Admitted), Refusal> {
        if let Some(feed) = parameters.feeds().find(|feed| !grant.feeds.contains(feed)) {
            return Err(Refusal::ForeignFeed(feed.clone()));
        }
        let admitted = self
            .admission
            .admit(&grant.subscriber, block)
            .map_err(Refusal::TooManySessions)?;
        let registration = self.hub.register(grant.feeds.clone());
        let mut opened = self.opened(parameters, grant, registration).await?;
        (opened.block, opened.transport) = (block, transport);
        Ok((opened, admitted))
    }

    /// Opens a session for the frames of one request. It has sent everything, and receives nothing.
    pub async fn open_for_request(&self, device: Device, grant: Grant) -> Result<Opened, Refusal> {
        let parameters = SessionParameters {
            device,
            ..SessionParameters::default()
        };
        let registration = self.hub.register(Vec::new());
        let mut opened = self.opened(parameters, grant, registration).await?;
        for start in &mut opened.starts {
            start.after = start.last;
        }
        Ok(opened)
    }

    async fn opened(
        &self,
        parameters: SessionParameters,
        grant: Grant,
        registration: Registration,
    ) -> Result<Opened, Refusal> {
        let standings = self.standings(&grant, &parameters.device).await?;
        // If the epoch changed meanwhile, the client must come again.
        let epoch = epoch_of(&standings)
            .filter(|epoch| self.shared.epochs.learn(epoch))
            .ok_or(Refusal::Restored)?;
        self.hub.follow_epoch();
        let set_back = |(feed, standing): (&Feed, &FeedStanding)| standing.is_set_back(feed);
        if grant.feeds.iter().zip(&standings).any(set_back) {
            self.shared
                .epochs
                .doubt(&epoch, "a cursor is above the last number of its feed");
        }
        let (starts, feeds) = starts(&grant, &parameters, &epoch, &standings)
            .into_iter()
            .unzip();
        Ok(Opened {
            id: uuid::Uuid::now_v7().to_string(),
            token_remaining: grant.remaining(),
            is_canary: grant.is_canary,
            subscriber: grant.subscriber,
            device: parameters.device,
            transport: Transport::WebSocket,
            epoch,
            starts,
            feeds,
            registration,
            block: None,
        })
    }

    async fn standings(
        &self,
        grant: &Grant,
        device: &Device,
    ) -> Result<Vec<FeedStanding>, Refusal> {
        let key = |feed: &Feed| {
            let key = CursorKey {
                feed: feed.clone(),
                subscriber: grant.subscriber.clone(),
                device: device.clone(),
            };
            (key, grant.shared.as_ref() == Some(feed))
        };
        let keys = grant.feeds.iter().map(key).collect();
        tokio::time::timeout(CURSORS_TIMEOUT, self.shared.cursors.open(keys))
            .await
            .unwrap_or(Err(NotOpened::NoAnswer))
            .map_err(Refusal::NotOpened)
    }
}

/// The epoch of all standings, if they have one epoch.
fn epoch_of(standings: &[FeedStanding]) -> Option<Epoch> {
    let epoch = &standings.first()?.epoch;
    let is_of_it = |standing: &FeedStanding| standing.epoch == *epoch;
    standings.iter().all(is_of_it).then(|| epoch.clone())
}

/// The begin of the session in each feed, and the feeds of `welcome`.
fn starts(
    grant: &Grant,
    parameters: &SessionParameters,
    epoch: &Epoch,
    standings: &[FeedStanding],
) -> Vec<(Start, WelcomeFeed)> {
    let start = |(feed, standing): (&Feed, &FeedStanding)| {
        let kept = KeptByClient {
            after: kept_number_of(&parameters.after, feed),
            version: kept_number_of(&parameters.state, feed),
        };
        let newest = Newest {
            seq: standing.last,
            version: standing.version,
        };
        let shared = grant.shared.as_ref() == Some(feed);
        let start = Start::new(feed.clone(), epoch, standing.acked, newest, kept, shared);
        let welcome = WelcomeFeed {
            feed: feed.clone(),
            cursor: start.after,
            last: start.last,
            unread: standing.unread,
            unhandled: standing.unhandled,
            version: start.newest_version,
            epoch: epoch.clone(),
            shared,
        };
        (start, welcome)
    };
    grant.feeds.iter().zip(standings).map(start).collect()
}

fn kept_number_of<N: Clone>(
    kept_numbers: &[(Feed, KeptNumber<N>)],
    feed: &Feed,
) -> Option<KeptNumber<N>> {
    let (_, kept) = kept_numbers.iter().find(|(named, _)| named == feed)?;
    Some(kept.clone())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::model::feed::{Seq, Subscriber, Version};

    fn feed(name: &str) -> Feed {
        Feed::parse(name).unwrap()
    }

    fn epoch(name: &str) -> Epoch {
        Epoch::parse(name).unwrap()
    }

    fn standing(acked: i64, last: i64, epoch: &str) -> FeedStanding {
        FeedStanding {
            acked: Seq::new(acked).unwrap(),
            last: Seq::new(last).unwrap(),
            unread: 1,
            unhandled: 2,
            version: Version::new(4).unwrap(),
            epoch: self::epoch(epoch),
        }
    }

    #[test]
    fn standings_of_two_epochs_have_no_epoch() {
        let (first, second) = (standing(1, 2, "e1"), standing(1, 2, "e2"));
        assert_eq!(epoch_of(&[first.clone(), first.clone()]), Some(epoch("e1")));
        assert_eq!(epoch_of(&[first, second]), None);
        assert_eq!(epoch_of(&[]), None);
    }

    #[test]
    fn a_session_begins_at_its_cursor_or_at_the_number_that_its_client_kept() {
        let grant = Grant {
            subscriber: Subscriber::parse("m").unwrap(),
            feeds: vec![feed("all"), feed("m")],
            shared: Some(feed("all")),
            is_canary: false,
            expires_at: Duration::ZERO,
        };
        let parameters = SessionParameters {
            after: vec![(
                feed("m"),
                KeptNumber {
                    number: Seq::new(6).unwrap(),
                    epoch: Some(epoch("e1")),
                },
            )],
            ..SessionParameters::default()
        };
        let standings = [standing(3, 5, "e1"), standing(2, 9, "e1")];
        let starts = starts(&grant, &parameters, &epoch("e1"), &standings);
        let numbers: Vec<_> = starts
            .iter()
            .map(|(start, welcome)| {
                assert_eq!((start.after, start.last), (welcome.cursor, welcome.last));
                let feed = welcome.feed.as_str();
                let (cursor, last) = (welcome.cursor.get(), welcome.last.get());
                (feed, start.acked.get(), cursor, last, welcome.shared)
            })
            .collect();
        assert_eq!(numbers, [("all", 3, 3, 5, true), ("m", 2, 6, 9, false)]);
    }
}

//! The cursors of sessions that connect: keys come in, standings go out.
//!
//! Sessions share the statements. One statement reads the cursors that exist; it takes no lock and
//! writes nothing. Another makes the missing ones, so that a write that fails or waits concerns
//! only the sessions that need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Cursors;
use crate::model::feed::{Epoch, Seq};
use crate::retry::Retry;
use crate::store::StoreError;
use crate::store::cursors::{CursorKey, FeedStanding, Found, Made, make, note_seen, read};
use crate::store::damage::Halves;
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;

/// Most sessions that share one statement. A session reads 65 feeds at most, so it has 6,500 keys.
const SESSIONS_PER_CALL_MAX: usize = 100;
/// Most sessions that wait. If more connect, they are refused as not ready.
const SESSIONS_WAITING_MAX: usize = 10_000;
/// Most sessions whose devices wait to be noted as seen. If more wait, the note is dropped; the
/// next connect notes the device.
const NOTES_WAITING_MAX: usize = 10_000;
/// Duration of a session after which its device is noted as seen when it ends. Before that, the
/// note at its connect is enough.
pub const SEEN_AFTER: Duration = Duration::from_secs(3_600);
/// Pause after each statement that notes devices as seen. They are not urgent.
const NOTES_PAUSE: Duration = Duration::from_millis(200);

/// The reason why the cursors of a session were not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// Too many sessions wait, or the replica stops.
    #[error("the database does not answer: try again")]
    NoAnswer,
    /// A cursor is missing and Postgres does not store it. It may be read-only or full, or another
    /// transaction holds the row.
    #[error("the cursor of this new device cannot be stored now: try again")]
    NotStored,
    /// Postgres cannot read a row that this session needs.
    #[error("the cursor of this device cannot be read now: try again")]
    NotRead,
}

/// The queues of sessions that connect or end.
#[derive(Debug)]
pub(super) struct Openings {
    openings: mpsc::Sender<Opening>,
    notes: mpsc::Sender<Vec<CursorKey>>,
}

#[derive(Debug)]
pub(super) struct OpeningReceivers {
    openings: mpsc::Receiver<Opening>,
    notes: mpsc::Receiver<Vec<CursorKey>>,
}

/// The keys of one session. Each comes with whether everyone reads its feed.
#[derive(Debug)]
struct Opening {
    keys: Vec<(CursorKey, bool)>,
    reply: oneshot::Sender<Result<Vec<FeedStanding>, NotOpened>>,
}

impl Openings {
    pub(super) fn new() -> (Self, OpeningReceivers) {
        let (openings, waiting) = mpsc::channel(SESSIONS_WAITING_MAX);
        let (notes, waiting_notes) = mpsc::channel(NOTES_WAITING_MAX);
        (
            Self { openings, notes },
            OpeningReceivers {
                openings: waiting,
                notes: waiting_notes,
            },
        )
    }

    pub(super) async fn open(
        &self,
        keys: Vec<(CursorKey, bool)>,
    ) -> Result<Vec<FeedStanding>, NotOpened> {
        let (reply, standings) = oneshot::channel();
        self.openings
            .try_send(Opening { keys, reply })
            .map_err(|_| NotOpened::NoAnswer)?;
        standings.await.unwrap_or(Err(NotOpened::NoAnswer))
    }

    pub(super) fn note_seen(&self, keys: Vec<CursorKey>) {
        let _ = self.notes.try_send(keys);
    }
}

/// Opens the cursors of sessions that connect.
#[derive(Debug)]
pub struct CursorReader {
    cursors: Arc<Cursors>,
    waiting: OpeningReceivers,
    pool: Pool,
}

impl CursorReader {
    pub(super) fn new(cursors: Arc<Cursors>, waiting: OpeningReceivers, pool: Pool) -> Self {
        Self {
            cursors,
            waiting,
            pool,
        }
    }

    /// Runs for ever, because it holds a sender itself. Sessions that connect during a statement
    /// share the next one.
    pub async fn run(self) {
        let Self {
            cursors,
            waiting:
                OpeningReceivers {
                    mut openings,
                    mut notes,
                },
            pool,
        } = self;
        let (new, mut waiting_new) = mpsc::channel(SESSIONS_WAITING_MAX);
        let opener = Opener { cursors, pool, new };
        let reading = async {
            let mut waiting = Vec::new();
            while openings
                .recv_many(&mut waiting, SESSIONS_PER_CALL_MAX)
                .await
                > 0
            {
                opener.read_all(&mut waiting).await;
            }
        };
        let making = async {
            let mut waiting = Vec::new();
            while waiting_new
                .recv_many(&mut waiting, SESSIONS_PER_CALL_MAX)
                .await
                > 0
            {
                opener.make_all(std::mem::take(&mut waiting)).await;
            }
        };
        let noting = async {
            let mut sessions = Vec::new();
            while notes.recv_many(&mut sessions, SESSIONS_PER_CALL_MAX).await > 0 {
                let keys: Vec<_> = sessions.drain(..).flatten().collect();
                if let Err(error) = note_seen(&opener.pool, &keys).await {
                    tracing::debug!(%error, "devices could not be noted as seen; their next connects note them");
                }
                tokio::time::sleep(NOTES_PAUSE).await;
            }
        };
        tokio::join!(reading, making, noting);
    }
}

struct Opener {
    cursors: Arc<Cursors>,
    pool: Pool,
    new: mpsc::Sender<Opening>,
}

impl Opener {
    /// Reads the cursors of sessions. If the database is away, it repeats the read while a session
    /// waits. If Postgres refuses a batch, it halves the batch until the session with the damaged
    /// row is alone.
    async fn read_all(&self, waiting: &mut Vec<Opening>) {
        let mut retry = Retry::new(Retried::Cursors, &self.cursors.metrics);
        let mut parts = Halves::new(std::mem::take(waiting), usize::MAX);
        while let Some(mut part) = parts.take() {
            part.retain(|opening| !opening.reply.is_closed());
            if part.is_empty() {
                continue;
            }
            let keys = keys(&part);
            // Acks first: an ack that is written meanwhile is then in this list or in the database.
            let (epoch, not_written) = self.cursors.not_written(&keys);
            match read(&self.pool, &keys).await {
                Ok(found) => self.on_found(part, found, epoch.as_ref(), &not_written),
                Err(error) if error.may_concern_one_value() => {
                    if let Err(alone) = parts.split(part) {
                        tracing::error!(%error, "the cursors of a session cannot be read; it is refused");
                        refuse(alone, NotOpened::NotRead);
                    }
                }
                Err(error) => {
                    let wait = retry.failed("cursors could not be read", &error);
                    tokio::time::sleep(wait).await;
                    parts.put_back(part);
                }
            }
        }
    }

    /// Sends their standings to the sessions whose cursors all exist, and passes on the others.
    fn on_found(
        &self,
        part: Vec<Opening>,
        found: Vec<Found>,
        epoch: Option<&Epoch>,
        not_written: &[Option<Seq>],
    ) {
        let divided = divide(part, found, epoch, not_written);
        for (opening, standings) in divided.complete {
            // A handshake that timed out dropped its receiver.
            let _ = opening.reply.send(Ok(standings));
        }
        for opening in divided.incomplete {
            // If there is no room, the session is refused as not ready.
            let _ = self.new.try_send(opening);
        }
        if !divided.stale.is_empty() {
            self.cursors.note_seen(divided.stale);
        }
    }

    /// Makes missing cursors. If Postgres refuses a batch, it halves the batch until the failing
    /// session is alone. That session is refused at once, because its client tries again.
    async fn make_all(&self, waiting: Vec<Opening>) {
        let mut retry = Retry::new(Retried::Cursors, &self.cursors.metrics);
        let mut parts = Halves::new(waiting, usize::MAX);
        while let Some(mut part) = parts.take() {
            part.retain(|opening| !opening.reply.is_closed());
            if part.is_empty() {
                continue;
            }
            match self.make(&part).await {
                Ok(standings) => reply(part, standings),
                Err(error) if error.may_concern_one_value() => {
                    if let Err(alone) = parts.split(part) {
                        tracing::warn!(%error, "the cursors of a new device could not be stored; its session is refused");
                        refuse(alone, NotOpened::NotStored);
                    }
                }
                Err(error) => {
                    let wait = retry.failed("cursors could not be made", &error);
                    tokio::time::sleep(wait).await;
                    parts.put_back(part);
                }
            }
        }
    }

    async fn make(&self, part: &[Opening]) -> Result<Vec<FeedStanding>, StoreError> {
        let wanted: Vec<_> = part
            .iter()
            .flat_map(|opening| opening.keys.iter().cloned())
            .collect();
        let Made { places, evicted } = make(&self.pool, &wanted).await?;
        if evicted > 0 {
            self.cursors.metrics.devices_evicted.inc_by(evicted);
            tracing::info!(
                evicted,
                "devices were evicted, because their subscriber has too many in a feed"
            );
        }
        let keys = keys(part);
        let (epoch, not_written) = self.cursors.not_written(&keys);
        let found = read(&self.pool, &keys).await?;
        // If a cursor was evicted meanwhile, it counts as it was made.
        let standing = |((found, place), newest): ((Found, Seq), &Option<Seq>)| {
            raised(
                FeedStanding {
                    acked: found.acked.unwrap_or(place),
                    ..found.standing
                },
                epoch.as_ref(),
                *newest,
            )
        };
        Ok(found
            .into_iter()
            .zip(places)
            .zip(&not_written)
            .map(standing)
            .collect())
    }
}

#[derive(Debug, Default)]
struct Divided {
    complete: Vec<(Opening, Vec<FeedStanding>)>,
    incomplete: Vec<Opening>,
    stale: Vec<CursorKey>,
}

/// Divides the sessions of a read. `found` and `not_written` have one value for each key of `part`,
/// in its order.
fn divide(
    part: Vec<Opening>,
    found: Vec<Found>,
    epoch: Option<&Epoch>,
    not_written: &[Option<Seq>],
) -> Divided {
    let (mut found, mut not_written) = (found.into_iter(), not_written.iter());
    let mut divided = Divided::default();
    for opening in part {
        let found: Vec<_> = found.by_ref().take(opening.keys.len()).collect();
        let not_written: Vec<_> = not_written.by_ref().take(opening.keys.len()).collect();
        if found.iter().any(|found| found.acked.is_none()) {
            divided.incomplete.push(opening);
            continue;
        }
        let stale = opening
            .keys
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_stale);
        divided.stale.extend(stale.map(|((key, _), _)| key.clone()));
        let standings = found
            .into_iter()
            .zip(not_written)
            .map(|(found, newest)| raised(found.standing, epoch, *newest))
            .collect();
        divided.complete.push((opening, standings));
    }
    divided
}

fn keys(part: &[Opening]) -> Vec<CursorKey> {
    part.iter()
        .flat_map(|opening| opening.keys.iter().map(|(key, _)| key.clone()))
        .collect()
}

fn refuse(part: Vec<Opening>, reason: NotOpened) {
    for opening in part {
        let _ = opening.reply.send(Err(reason));
    }
}

/// Raises a standing to the newest ack that is not written, if both are of one epoch.
fn raised(standing: FeedStanding, epoch: Option<&Epoch>, newest: Option<Seq>) -> FeedStanding {
    let newest = newest
        .filter(|_| epoch == Some(&standing.epoch))
        .unwrap_or_default();
    FeedStanding {
        acked: newest.max(standing.acked),
        ..standing
    }
}

fn reply(part: Vec<Opening>, standings: Vec<FeedStanding>) {
    let mut standings = standings.into_iter();
    for opening in part {
        let own = standings.by_ref().take(opening.keys.len()).collect();
        // A handshake that timed out dropped its receiver.
        let _ = opening.reply.send(Ok(own));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::feed::{Device, Feed, Subscriber, Version};

    fn key(feed: &str) -> (CursorKey, bool) {
        let key = CursorKey {
            feed: Feed::parse(feed).unwrap(),
            subscriber: Subscriber::parse("s").unwrap(),
            device: Device::default(),
        };
        (key, false)
    }

    fn opening(feeds: &[&str]) -> Opening {
        Opening {
            keys: feeds.iter().map(|feed| key(feed)).collect(),
            reply: oneshot::channel().0,
        }
    }

    fn epoch(name: &str) -> Epoch {
        Epoch::parse(name).unwrap()
    }

    fn standing(acked: i64) -> FeedStanding {
        FeedStanding {
            acked: Seq::new(acked).unwrap(),
            last: Seq::new(9).unwrap(),
            unread: 0,
            unhandled: 0,
            version: Version::ZERO,
            epoch: epoch("e1"),
        }
    }

    fn found(acked: Option<i64>) -> Found {
        Found {
            acked: acked.and_then(Seq::new),
            standing: standing(acked.unwrap_or_default()),
            is_stale: acked == Some(3),
        }
    }

    #[test]
    fn more_sessions_than_may_wait_are_refused_as_not_ready() {
        let (openings, _waiting) = Openings::new();
        let open = || openings.open(vec![key("a")]).now_or_never();
        assert_eq!(
            (0..SESSIONS_WAITING_MAX).find_map(|_| open()),
            None,
            "each waits for its reply"
        );
        assert_eq!(open(), Some(Err(NotOpened::NoAnswer)));
    }

    #[test]
    fn each_session_gets_the_standings_of_its_own_keys() {
        let part = vec![opening(&["a", "b"]), opening(&["c"]), opening(&["d", "e"])];
        let read = [Some(1), Some(2), None, Some(3), Some(4)].map(found).into();
        let not_written = [None, Seq::new(5), None, Seq::new(1), None];
        let divided = divide(part, read, Some(&epoch("e1")), &not_written);
        let acked: Vec<Vec<_>> = divided
            .complete
            .iter()
            .map(|(_, standings)| standings.iter().map(|one| one.acked.get()).collect())
            .collect();
        assert_eq!(acked, [[1, 5], [3, 4]], "5 is not written yet");
        assert_eq!(divided.incomplete.len(), 1);
        assert_eq!(divided.incomplete[0].keys, [key("c")]);
        assert_eq!(divided.stale, [key("d").0]);
    }

    #[test]
    fn an_ack_of_another_epoch_raises_no_standing() {
        let newest = Seq::new(7);
        let raised = |epoch: Option<&Epoch>| raised(standing(3), epoch, newest).acked.get();
        assert_eq!(raised(Some(&epoch("e1"))), 7);
        assert_eq!(raised(Some(&epoch("e2"))), 3);
        assert_eq!(raised(None), 3);
    }
}

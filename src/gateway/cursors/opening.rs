//! Cursors of sessions that connect. Known ones are read together, without a lock or a write. Missing ones are made apart, so
//! that a write which fails or waits concerns only the sessions that need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Cursors;
use crate::model::feed::{Epoch, Seq};
use crate::retry::Backoff;
use crate::store::StoreError;
use crate::store::cursors::{CursorKey, Found, Made, Standing, make, note_seen, read};
use crate::store::pools::Pool;

/// Most sessions whose cursors are opened by one statement.
const SESSIONS_PER_CALL_MAX: usize = 100;
/// Most sessions waiting to be opened; past that a handshake is refused as not ready.
const SESSIONS_WAITING_MAX: usize = 10_000;
/// Most sessions whose devices wait to be noted as seen; past that a note is dropped, and the next connect makes up for it.
const NOTES_WAITING_MAX: usize = 10_000;
/// A session that lasted for less is noted as seen by its connect alone.
pub const SEEN_AFTER: Duration = Duration::from_secs(3_600);
/// Pause after each statement that notes devices as seen: nobody waits for these.
const NOTES_PAUSE: Duration = Duration::from_millis(200);

/// Why the cursors of a session were not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// Too many sessions wait already, or the replica stops.
    #[error("the database does not answer")]
    NoAnswer,
    /// A cursor is missing and Postgres does not take it: it may be read-only or full, or another transaction holds the row.
    #[error(
        "the place of a new device cannot be stored at the moment; devices that were connected before are served"
    )]
    NotStored,
    /// Postgres cannot read a row that this session needs.
    #[error("the place of this device cannot be read at the moment")]
    NotRead,
}

/// Where sessions ask for their cursors.
#[derive(Debug)]
pub(super) struct Openings {
    openings: mpsc::Sender<Opening>,
    notes: mpsc::Sender<Vec<CursorKey>>,
}

/// The other ends.
#[derive(Debug)]
pub(super) struct Waiting {
    openings: mpsc::Receiver<Opening>,
    notes: mpsc::Receiver<Vec<CursorKey>>,
}

/// The request of one session. Each key comes with whether everyone reads its feed.
#[derive(Debug)]
struct Opening {
    keys: Vec<(CursorKey, bool)>,
    reply: oneshot::Sender<Result<Vec<Standing>, NotOpened>>,
}

impl Openings {
    pub(super) fn new() -> (Self, Waiting) {
        let (openings, waiting) = mpsc::channel(SESSIONS_WAITING_MAX);
        let (notes, waiting_notes) = mpsc::channel(NOTES_WAITING_MAX);
        (
            Self { openings, notes },
            Waiting {
                openings: waiting,
                notes: waiting_notes,
            },
        )
    }

    pub(super) async fn open(
        &self,
        keys: Vec<(CursorKey, bool)>,
    ) -> Result<Vec<Standing>, NotOpened> {
        let (reply, answer) = oneshot::channel();
        self.openings
            .try_send(Opening { keys, reply })
            .map_err(|_| NotOpened::NoAnswer)?;
        answer.await.unwrap_or(Err(NotOpened::NoAnswer))
    }

    pub(super) fn seen(&self, keys: Vec<CursorKey>) {
        let _ = self.notes.try_send(keys);
    }
}

/// The part that opens cursors for sessions that connect, to be run.
#[derive(Debug)]
pub struct CursorReader {
    cursors: Arc<Cursors>,
    waiting: Waiting,
    pool: Pool,
}

impl CursorReader {
    pub(super) fn new(cursors: Arc<Cursors>, waiting: Waiting, pool: Pool) -> Self {
        Self {
            cursors,
            waiting,
            pool,
        }
    }

    /// Never ends, because it holds a sender itself; it is dropped with the runtime. Sessions that ask during a statement share
    /// the next one.
    pub async fn run(self) {
        let Self {
            cursors,
            waiting:
                Waiting {
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
                    tracing::debug!(%error, "devices could not be noted as seen; their next connect notes them");
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
    /// Sessions with a cursor that is missing.
    new: mpsc::Sender<Opening>,
}

impl Opener {
    /// Answers the sessions whose cursors exist, and hands the others on. Waits for a database that is away as long as one of
    /// the sessions does. A batch that Postgres refuses is halved, down to the session whose row is damaged.
    async fn read_all(&self, waiting: &mut Vec<Opening>) {
        let mut backoff = Backoff::default();
        let mut parts = vec![std::mem::take(waiting)];
        while let Some(mut part) = parts.pop() {
            part.retain(|opening| !opening.reply.is_closed());
            if part.is_empty() {
                continue;
            }
            let keys = keys(&part);
            // Looked at before the database: an ack that is written in between is then in either.
            let (epoch, not_written) = self.cursors.not_written(&keys);
            match read(&self.pool, &keys).await {
                Ok(found) => self.answer(part, found, epoch.as_ref(), &not_written),
                Err(error) if error.may_concern_one_value() => match halves(part) {
                    Halves::Two(first, second) => parts.extend([second, first]),
                    Halves::One(opening) => {
                        tracing::error!(%error, "the cursors of a session cannot be read");
                        let _ = opening.reply.send(Err(NotOpened::NotRead));
                    }
                },
                Err(error) => {
                    let wait = backoff.next_wait();
                    self.cursors.metrics.retries.inc("cursors");
                    tracing::warn!(%error, sessions = part.len(), wait_ms = wait.as_millis(), "cursors could not be read; trying again");
                    tokio::time::sleep(wait).await;
                    parts.push(part);
                }
            }
        }
    }

    fn answer(
        &self,
        part: Vec<Opening>,
        found: Vec<Found>,
        epoch: Option<&Epoch>,
        not_written: &[Option<Seq>],
    ) {
        let (mut found, mut not_written) = (found.into_iter(), not_written.iter());
        let mut stale = Vec::new();
        for opening in part {
            let found: Vec<_> = found.by_ref().take(opening.keys.len()).collect();
            let not_written = not_written.by_ref().take(opening.keys.len());
            if found.iter().any(|found| found.acked.is_none()) {
                // If there is no room, the session is refused as not ready.
                let _ = self.new.try_send(opening);
                continue;
            }
            stale.extend(
                opening
                    .keys
                    .iter()
                    .zip(&found)
                    .filter(|(_, found)| found.is_stale)
                    .map(|((key, _), _)| key.clone()),
            );
            let standings = found
                .into_iter()
                .zip(not_written)
                .map(|(found, newest)| raised(found.standing, epoch, *newest));
            // A handshake that was given up meanwhile does not want it any more.
            let _ = opening.reply.send(Ok(standings.collect()));
        }
        if !stale.is_empty() {
            self.cursors.seen(stale);
        }
    }

    /// Makes the cursors that are missing. A batch that Postgres refuses is halved, down to the session that cannot be stored:
    /// that one is refused at once, because its client tries again.
    async fn make_all(&self, waiting: Vec<Opening>) {
        let mut backoff = Backoff::default();
        let mut parts = vec![waiting];
        while let Some(mut part) = parts.pop() {
            part.retain(|opening| !opening.reply.is_closed());
            if part.is_empty() {
                continue;
            }
            match self.make(&part).await {
                Ok(standings) => reply(part, standings),
                Err(error) if error.may_concern_one_value() => match halves(part) {
                    Halves::Two(first, second) => parts.extend([second, first]),
                    Halves::One(opening) => {
                        tracing::warn!(%error, "the cursors of a new device could not be stored; its client tries again");
                        let _ = opening.reply.send(Err(NotOpened::NotStored));
                    }
                },
                Err(error) => {
                    let wait = backoff.next_wait();
                    self.cursors.metrics.retries.inc("cursors");
                    tracing::warn!(%error, sessions = part.len(), wait_ms = wait.as_millis(), "cursors could not be made; trying again");
                    tokio::time::sleep(wait).await;
                    parts.push(part);
                }
            }
        }
    }

    async fn make(&self, part: &[Opening]) -> Result<Vec<Standing>, StoreError> {
        let wanted: Vec<_> = part
            .iter()
            .flat_map(|opening| opening.keys.iter().cloned())
            .collect();
        let Made { places, evicted } = make(&self.pool, &wanted).await?;
        if evicted > 0 {
            self.cursors.metrics.devices_evicted.inc_by(evicted);
            tracing::info!(
                evicted,
                "devices were evicted because their subscriber has too many in a feed"
            );
        }
        let keys = keys(part);
        let (epoch, not_written) = self.cursors.not_written(&keys);
        let found = read(&self.pool, &keys).await?;
        // A cursor that was evicted meanwhile stands where it was made.
        let standing = |((found, place), newest): ((Found, Seq), &Option<Seq>)| {
            raised(
                Standing {
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

fn keys(part: &[Opening]) -> Vec<CursorKey> {
    part.iter()
        .flat_map(|opening| opening.keys.iter().map(|(key, _)| key.clone()))
        .collect()
}

/// Raises what the database returned to what was acknowledged since, in the same epoch.
fn raised(standing: Standing, epoch: Option<&Epoch>, newest: Option<Seq>) -> Standing {
    let newest = newest
        .filter(|_| epoch == Some(&standing.epoch))
        .unwrap_or_default();
    Standing {
        acked: newest.max(standing.acked),
        ..standing
    }
}

/// Gives each session its part of the answer.
fn reply(part: Vec<Opening>, standings: Vec<Standing>) {
    let mut standings = standings.into_iter();
    for opening in part {
        let own = standings.by_ref().take(opening.keys.len()).collect();
        // A handshake that was given up meanwhile does not want it any more.
        let _ = opening.reply.send(Ok(own));
    }
}

pub(super) enum Halves<T> {
    Two(Vec<T>, Vec<T>),
    One(T),
}

/// Splits a part that is not empty.
pub(super) fn halves<T>(mut part: Vec<T>) -> Halves<T> {
    let second = part.split_off(part.len() / 2);
    match (part.is_empty(), second) {
        (false, second) => Halves::Two(part, second),
        (true, mut second) => match second.pop() {
            Some(only) => Halves::One(only),
            None => Halves::Two(part, second),
        },
    }
}

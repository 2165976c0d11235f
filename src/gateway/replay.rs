//! Replay: reads pages for sessions that are behind. Requests come in; one query reads the pages of
//! many sessions.
//!
//! A request gets its page, or its sender is dropped. [`round`] and [`sweep`] find notifications
//! whose hint was lost.

pub mod epoch;
pub mod newest;
mod room;
pub mod round;
pub mod sweep;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub use self::room::PageInRoom;
use self::room::Room;
use crate::model::feed::{Feed, Seq, Version};
use crate::model::page::Page;
use crate::retry::Retry;
use crate::store;
use crate::store::StoreError;
use crate::store::damage::{Damaged, Halves};
use crate::store::pages::{PAGE_BYTES_MAX, PageRequest};
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Most requests in one query. With the bounds of a page, this bounds the memory of its result.
const REQUESTS_PER_QUERY_MAX: usize = 64;
/// Most queries at the same time. The second begins only if the requests fill a query, or if the
/// first query is slow.
const READERS: usize = 2;
const SLOW_QUERY: Duration = Duration::from_millis(200);
/// Rest after a query of several sessions, in multiples of its duration, so that more sessions
/// share the next one. A full query does not wait.
const REST_TIMES: u32 = 2;
const REST_MAX: Duration = Duration::from_millis(50);
/// Time after which a query that fails again and again is given up. Its sessions are closed and
/// reconnect.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// Rows per read if little room is left for pages.
const ROWS_IF_SHORT: i64 = 16;
/// Bytes of data before the last row of a page if little room is left for pages.
const BYTES_IF_SHORT: i64 = 16 * 1024;
/// Rows per read of a damaged feed. Small reads return the notifications before the damage.
const ROWS_BEFORE_DAMAGE: [i64; 2] = [16, 1];

#[derive(Debug)]
struct Request {
    page: PageRequest,
    /// Whether it is counted as one that waited for memory.
    has_waited: bool,
    reply: oneshot::Sender<Arc<PageInRoom>>,
}

/// Takes the requests of sessions.
#[derive(Debug, Clone)]
pub struct Replay {
    requests: mpsc::Sender<Request>,
}

/// Reads the pages that are requested.
#[derive(Debug)]
pub struct ReplayWorker {
    requests: mpsc::Receiver<Request>,
    reader: PageReader,
}

#[derive(Debug, Clone)]
struct PageReader {
    pool: Pool,
    metrics: Arc<Metrics>,
    /// Damaged feeds, which share no query with others.
    damaged: Arc<Damaged>,
    room: Arc<Room>,
}

impl Replay {
    /// Makes the replay and its worker. Each session requests one page at a time, so `sessions_max`
    /// bounds the requests. `bytes_max` bounds the pages in memory.
    pub fn new(
        pool: Pool,
        metrics: Arc<Metrics>,
        sessions_max: usize,
        bytes_max: usize,
    ) -> (Self, ReplayWorker) {
        let (sender, requests) = mpsc::channel(sessions_max.max(1));
        let room = Room::new(bytes_max, metrics.replay.bytes.clone());
        metrics
            .replay
            .bytes_max
            .set(i64::try_from(bytes_max).unwrap_or(i64::MAX));
        let reader = PageReader {
            pool,
            metrics,
            damaged: Arc::default(),
            room,
        };
        (Self { requests: sender }, ReplayWorker { requests, reader })
    }

    /// Requests `wanted` notifications after `after`, and the marks after a version if one is
    /// given. The page may have more or fewer notifications. To cancel the request, drop the
    /// receiver.
    pub fn read(
        &self,
        feed: Feed,
        after: Seq,
        wanted: usize,
        states_after: Option<Version>,
    ) -> oneshot::Receiver<Arc<PageInRoom>> {
        let (reply, receiver) = oneshot::channel();
        let page = PageRequest {
            feed,
            after,
            rows: rows(wanted),
            bytes: PAGE_BYTES_MAX,
            states_after,
        };
        // If the channel is closed, the sender is dropped, and the receiver returns an error.
        let _ = self.requests.try_send(Request {
            page,
            has_waited: false,
            reply,
        });
        receiver
    }
}

/// The number of rows to read. There are few sizes, so that sessions share pages.
fn rows(wanted: usize) -> i64 {
    match wanted {
        0..=16 => 16,
        17..=64 => 64,
        _ => 256,
    }
}

impl ReplayWorker {
    /// Serves until every [`Replay`] is dropped. The requests that wait when a query ends are the
    /// next query, as far as their pages have room. The others wait in their order. Requests for
    /// damaged feeds have a query of their own.
    pub async fn run(mut self) {
        let (mut waiting, mut queries) = (Vec::new(), JoinSet::new());
        let (mut waiting_apart, mut query_apart) = (Vec::new(), JoinSet::new());
        let mut begun = tokio::time::Instant::now();
        loop {
            let room = REQUESTS_PER_QUERY_MAX - waiting.len();
            tokio::select! {
                received = self.requests.recv_many(&mut waiting, room), if room > 0 => {
                    if received == 0 {
                        return;
                    }
                }
                Some(_) = queries.join_next() => {}
                Some(_) = query_apart.join_next() => {}
                () = self.reader.room.released(), if !waiting.is_empty() || !waiting_apart.is_empty() => {}
                () = tokio::time::sleep_until(begun + SLOW_QUERY), if queries.len() == 1 && !waiting.is_empty() => {}
            }
            let damaged = &self.reader.damaged;
            waiting_apart.extend(waiting.extract_if(.., |request: &mut Request| {
                damaged.contains(&request.page.feed)
            }));
            let count = waiting_apart.len().min(self.reader.room.pages());
            if count > 0 && query_apart.is_empty() {
                let count = count.min(REQUESTS_PER_QUERY_MAX);
                let requests = waiting_apart.drain(..count).collect();
                let (reader, reserved) = (self.reader.clone(), self.reader.room.reserve(count));
                query_apart.spawn(async move {
                    reader.serve(requests).await;
                    drop(reserved);
                });
            }
            let may_begin_another =
                waiting.len() == REQUESTS_PER_QUERY_MAX || begun.elapsed() >= SLOW_QUERY;
            let has_reader = may_begin_another && queries.len() < READERS;
            if !queries.is_empty() && !has_reader {
                continue;
            }
            let count = waiting.len().min(self.reader.room.pages());
            self.reader.count_waits(&mut waiting[count..]);
            if count == 0 {
                continue;
            }
            begun = tokio::time::Instant::now();
            let mut requests: Vec<Request> = waiting.drain(..count).collect();
            let (reader, reserved) = (self.reader.clone(), self.reader.room.reserve(count));
            if self.reader.room.is_short() {
                // Slow clients hold their pages for long. Smaller ones leave room for others.
                for request in &mut requests {
                    request.page.rows = request.page.rows.min(ROWS_IF_SHORT);
                    request.page.bytes = BYTES_IF_SHORT;
                }
            }
            queries.spawn(async move {
                let (sessions, begun) = (requests.len(), Instant::now());
                reader.serve(requests).await;
                drop(reserved);
                if sessions > 1 {
                    tokio::time::sleep((begun.elapsed() * REST_TIMES).min(REST_MAX)).await;
                }
            });
        }
    }
}

impl PageReader {
    /// Counts requests that have no room, each once.
    fn count_waits(&self, requests: &mut [Request]) {
        for request in requests.iter_mut().filter(|request| !request.has_waited) {
            request.has_waited = true;
            self.metrics.replay.waits.inc();
        }
    }

    /// Reads each page once and sends it to all sessions that requested it. If the database is
    /// away, repeats the read for a time. If a page cannot be read, its requests are dropped.
    async fn serve(&self, mut requests: Vec<Request>) {
        let begun = Instant::now();
        let mut retry = Retry::new(Retried::Pages, &self.metrics);
        let mut wanted: Vec<PageRequest> = requests
            .iter()
            .map(|request| request.page.clone())
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut parts = Halves::new(wanted, REQUESTS_PER_QUERY_MAX);
        while let Some(mut part) = parts.take() {
            while begun.elapsed() < GIVE_UP_AFTER {
                requests.retain(|request| !request.reply.is_closed());
                part.retain(|page| requests.iter().any(|request| request.page == *page));
                if part.is_empty() {
                    break;
                }
                let error = match self.read(&part).await {
                    Ok(pages) => {
                        self.reply(&mut requests, &part, pages);
                        break;
                    }
                    Err(error) => error,
                };
                if error.may_pass_in_parts() {
                    match parts.split(std::mem::take(&mut part)) {
                        Ok(()) => break,
                        Err(whole) => part = whole,
                    }
                }
                if let [page] = &part[..]
                    && error.blames_rows()
                {
                    self.serve_damaged(&mut requests, page, &error).await;
                    break;
                }
                let wait = retry.failed("pages could not be read", &error);
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Sends the notifications before the damage to the sessions of a damaged feed, if there are
    /// any.
    async fn serve_damaged(
        &self,
        requests: &mut Vec<Request>,
        page: &PageRequest,
        error: &StoreError,
    ) {
        let (feed, after) = (page.feed.as_str(), page.after.get());
        if self.damaged.keep_apart(&page.feed) {
            tracing::error!(%error, feed, after, "a feed has rows that Postgres cannot read; it is read apart from others");
        }
        for rows in ROWS_BEFORE_DAMAGE
            .into_iter()
            .filter(|rows| *rows < page.rows)
        {
            let less = PageRequest {
                rows,
                ..page.clone()
            };
            if let Ok(pages) = self.read(&[less]).await {
                return self.reply(requests, std::slice::from_ref(page), pages);
            }
        }
        self.metrics.damaged_reads.inc();
        tracing::warn!(%error, feed, after, "the row after this one cannot be read; the sessions of the feed are closed");
        requests.retain(|request| request.page != *page);
    }

    async fn read(&self, pages: &[PageRequest]) -> Result<Vec<Page>, StoreError> {
        let read = store::pages::read(&self.pool, pages).await?;
        self.metrics.replay.queries.inc();
        self.metrics.replay.pages.inc_by(read.len() as u64);
        read.iter().for_each(|page| count_lost(&self.metrics, page));
        Ok(read)
    }

    /// Sends pages to the sessions that requested them. `wanted` is sorted and has the request of
    /// each page.
    fn reply(&self, requests: &mut Vec<Request>, wanted: &[PageRequest], pages: Vec<Page>) {
        let hold = |page| Arc::new(self.room.hold(page));
        let pages: Vec<Arc<PageInRoom>> = pages.into_iter().map(hold).collect();
        let is_read = |request: &mut Request| wanted.binary_search(&request.page).is_ok();
        for request in requests.extract_if(.., is_read) {
            let place = wanted.binary_search(&request.page);
            if let Some(page) = place.ok().and_then(|index| pages.get(index)) {
                // A session that ended meanwhile dropped its receiver.
                let _ = request.reply.send(page.clone());
            }
        }
    }
}

/// Counts and logs the numbers that a page should have and does not have.
fn count_lost(metrics: &Metrics, page: &Page) {
    for (from, through) in page.lost() {
        metrics
            .notifications_lost
            .inc_by(through.get().abs_diff(from.get()) + 1);
        let (feed, from, through) = (page.feed.as_str(), from.get(), through.get());
        tracing::error!(
            feed,
            from,
            through,
            "notifications are missing in the database; clients get them as skipped with the reason lost"
        );
    }
}

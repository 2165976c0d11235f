//! The hints that wait for one session, bounded: if there is no room for a frame, only its number waits, and the session
//! reads the rest from Postgres.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::lock;
use crate::model::feed::{Epoch, Feed, Newest};
use crate::model::frame_text::FrameText;
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;

/// Most hints that wait. If more come, pages are cheaper.
const INBOX_HINTS_MAX: usize = 64;
/// Most bytes of frames that wait, beyond the first frame, so that a slow session holds no large events.
const INBOX_BYTES_MAX: usize = 256 * 1024;
/// Most marks that wait.
const INBOX_STATES_MAX: usize = 64;

/// The inbox of one session.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<InboxContent>,
    wake: Notify,
}

/// The hints since the last [`Inbox::take`].
#[derive(Debug, Default)]
pub struct InboxContent {
    /// In the order published.
    pub hints: Vec<Arc<Notification>>,
    /// Bytes of the frames of `hints`.
    bytes: usize,
    /// Marks in the order published. They are sent after the hints, which may be older.
    pub states: Vec<Arc<StateFrame>>,
    /// Highest numbers of feeds whose frames are not here.
    pub newest: Vec<(Feed, Newest)>,
    /// Replies to this session alone, one list for each of its requests.
    pub replies: Vec<Vec<FrameText>>,
    /// The epoch that began while the session was registered. All that waits belongs to it.
    pub epoch: Option<Epoch>,
}

impl Inbox {
    /// Returns when something may be waiting. Dropping this future loses no wake-up.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Takes all that waits.
    pub fn take(&self) -> InboxContent {
        let mut waiting = self.lock();
        let epoch = waiting.epoch.clone();
        std::mem::replace(
            &mut waiting,
            InboxContent {
                epoch,
                ..InboxContent::default()
            },
        )
    }

    /// Accepts only hints of `epoch` from now on. Drops the hints that wait and keeps the replies.
    pub(super) fn begin_epoch(&self, epoch: &Epoch) {
        let mut waiting = self.lock();
        let replies = std::mem::take(&mut waiting.replies);
        *waiting = InboxContent {
            replies,
            epoch: Some(epoch.clone()),
            ..InboxContent::default()
        };
        drop(waiting);
        self.wake.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, InboxContent> {
        lock(&self.waiting)
    }

    /// Locks the inbox if it accepts hints of `epoch`.
    fn waiting_of(&self, epoch: &Epoch) -> Option<MutexGuard<'_, InboxContent>> {
        Some(self.lock())
            .filter(|waiting| waiting.epoch.as_ref().is_none_or(|began| began == epoch))
    }

    pub(super) fn put(&self, epoch: &Epoch, notification: &Arc<Notification>) {
        let Some(mut waiting) = self.waiting_of(epoch) else {
            return;
        };
        if waiting.hints.len() < INBOX_HINTS_MAX && waiting.bytes < INBOX_BYTES_MAX {
            waiting.bytes += notification.frame.len();
            waiting.hints.push(notification.clone());
        } else {
            waiting.raise(
                &notification.feed,
                Newest {
                    seq: notification.seq,
                    ..Newest::default()
                },
            );
        }
        drop(waiting);
        self.wake.notify_one();
    }

    pub(super) fn put_state(&self, epoch: &Epoch, state: &Arc<StateFrame>) {
        let Some(mut waiting) = self.waiting_of(epoch) else {
            return;
        };
        if waiting.states.len() < INBOX_STATES_MAX {
            waiting.states.push(state.clone());
        } else {
            waiting.raise(
                &state.feed,
                Newest {
                    version: state.version,
                    ..Newest::default()
                },
            );
        }
        drop(waiting);
        self.wake.notify_one();
    }

    pub(super) fn put_newest(&self, epoch: &Epoch, feed: &Feed, newest: Newest) {
        let Some(mut waiting) = self.waiting_of(epoch) else {
            return;
        };
        waiting.raise(feed, newest);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Adds the reply to one request. A session has few requests under way, which bounds the replies.
    pub fn put_reply(&self, frames: Vec<FrameText>) {
        self.lock().replies.push(frames);
        self.wake.notify_one();
    }
}

impl InboxContent {
    /// Raises the number of a feed. There is one entry for each feed, and a session reads few feeds.
    fn raise(&mut self, feed: &Feed, more: Newest) {
        match self.newest.iter_mut().find(|(known, _)| known == feed) {
            Some((_, newest)) => *newest = newest.max(more),
            None => self.newest.push((feed.clone(), more)),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::model::feed::{Seq, Version};

    #[test]
    fn hints_beyond_the_bound_leave_only_their_highest_number() {
        let inbox = Inbox::default();
        for seq in 1..=INBOX_HINTS_MAX as i64 + 3 {
            inbox.put(&epoch(), &notification(seq, "{}"));
        }
        let waiting = inbox.take();
        assert_eq!(waiting.hints.len(), INBOX_HINTS_MAX);
        assert_eq!(waiting.newest.len(), 1);
        assert_eq!(waiting.newest[0].1.seq.get(), INBOX_HINTS_MAX as i64 + 3);
        assert!(inbox.take().newest.is_empty(), "taken once");
    }

    #[test]
    fn frames_beyond_the_bytes_leave_only_their_number() {
        let inbox = Inbox::default();
        let frame = "x".repeat(INBOX_BYTES_MAX);
        inbox.put(&epoch(), &notification(1, &frame));
        inbox.put(&epoch(), &notification(2, "{}"));
        let waiting = inbox.take();
        assert_eq!((waiting.hints.len(), waiting.newest[0].1.seq.get()), (1, 2));
    }

    #[test]
    fn marks_beyond_the_bound_leave_only_their_version() {
        let inbox = Inbox::default();
        for version in 1..=INBOX_STATES_MAX as i64 + 1 {
            let state = StateFrame {
                feed: feed(),
                version: Version::new(version).unwrap(),
                highest: Seq::ZERO,
                frame: "{}".into(),
            };
            inbox.put_state(&epoch(), &Arc::new(state));
        }
        let waiting = inbox.take();
        assert_eq!(waiting.states.len(), INBOX_STATES_MAX);
        assert_eq!(
            waiting.newest[0].1.version.get(),
            INBOX_STATES_MAX as i64 + 1
        );
    }

    #[test]
    fn a_new_epoch_drops_hints_and_keeps_replies() {
        let inbox = Inbox::default();
        inbox.put(&epoch(), &notification(1, "{}"));
        inbox.put_reply(vec!["a reply".into()]);
        let next = Epoch::parse("e2").unwrap();
        inbox.begin_epoch(&next);
        inbox.put(&epoch(), &notification(2, "{}"));
        let waiting = inbox.take();
        assert_eq!((waiting.hints.len(), waiting.replies.len()), (0, 1));
        inbox.put(&next, &notification(1, "{}"));
        assert_eq!(inbox.take().hints.len(), 1, "the epoch outlives a take");
    }

    fn epoch() -> Epoch {
        Epoch::parse("e1").unwrap()
    }

    fn feed() -> Feed {
        Feed::parse("m-1").unwrap()
    }

    fn notification(seq: i64, frame: &str) -> Arc<Notification> {
        Arc::new(Notification {
            feed: feed(),
            seq: Seq::new(seq).unwrap(),
            expires_at: None,
            time: None,
            trace: None,
            frame: frame.into(),
        })
    }
}

//! A request of one session, from its submission to its replies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::frame_text::FrameText;

use crate::fanout::hub::Inbox;
use crate::model::feed::Epoch;
use crate::model::mark::{Counts, Mark, Marked, Targets, state};
use crate::model::protocol::{ErrorCode, ServerFrame};
use crate::store::marks::MarkRequest;

/// Time after which a request that fails again and again is refused.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
pub(super) const BUSY: &str = "too many marks wait: send it again later";

#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: MarkRequest,
    pub(super) epoch: Epoch,
    pub(super) inbox: Arc<Inbox>,
    replies: Vec<FrameText>,
    pub(super) is_continued: bool,
    pub(super) retry_at: Option<Instant>,
    pub(super) failing_since: Option<Instant>,
    /// Whether it failed by itself, so that it is written without others.
    pub(super) is_alone: bool,
}

impl Submission {
    pub(super) fn new(request: MarkRequest, epoch: Epoch, inbox: Arc<Inbox>) -> Self {
        Self {
            request,
            epoch,
            inbox,
            replies: Vec::new(),
            is_continued: false,
            retry_at: None,
            failing_since: None,
            is_alone: false,
        }
    }

    pub(super) fn is_through(&self) -> bool {
        matches!(self.request.mark, Mark::Read(Targets::Through(_)))
    }

    pub(super) fn is_overdue(&self) -> bool {
        self.failing_since
            .is_some_and(|since| since.elapsed() >= GIVE_UP_AFTER)
    }

    pub(super) fn numbers(&self) -> usize {
        match &self.request.mark {
            Mark::Read(Targets::Seqs(seqs)) | Mark::Handled(seqs) => seqs.len(),
            Mark::Read(Targets::Through(_)) => 0,
        }
    }

    pub(super) fn reset_failures(&mut self) {
        (self.retry_at, self.failing_since, self.is_alone) = (None, None, false);
    }

    pub(super) fn reply_state(&mut self, targets: &Targets, marked: &Marked, counts: Counts) {
        let reply = state(&self.request.feed, None, targets, marked, counts);
        self.replies.push(reply);
    }

    pub(super) fn reply_unknown(&mut self, seqs: &[i64]) {
        let numbers: Vec<String> = seqs.iter().map(i64::to_string).collect();
        let message = format!("the feed has no notification {}", numbers.join(", "));
        self.reply_error(ErrorCode::UnknownSeq, &message);
    }

    pub(super) fn finish(self) {
        self.inbox.put_reply(self.replies);
    }

    pub(super) fn refuse(mut self, code: ErrorCode, message: &str) {
        self.reply_error(code, message);
        self.finish();
    }

    fn reply_error(&mut self, code: ErrorCode, message: &str) {
        let error = ServerFrame::Error {
            code,
            message,
            feed: Some(self.request.feed.as_str()),
        };
        self.replies.push(error.to_json().into());
    }
}

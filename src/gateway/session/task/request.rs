//! A session of one request: the frames of a client whose stream or polls are elsewhere, perhaps at another replica.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Opened, Shared, Task};
use crate::gateway::session::state::{Frame, Output};
use crate::model::feed::{Feed, Seq};
use crate::model::frame_text::FrameText;
use crate::model::protocol::{ClientFrame, Close};
use crate::store::cursors::CursorKey;

/// Longest wait for the replies to marks, and for the write of acks. A mark is refused after ten seconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(12);

/// The reason why the frames of a request have no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPerformed {
    /// The session of a frame would be closed.
    Closed(Close),
    /// Acks or marks could not be stored in time. They may be stored later.
    NotStored,
}

/// Performs the frames of a request as a session does that has sent everything. Returns the replies when the acks are
/// written.
///
/// # Errors
/// A frame is wrong, or the database does not answer.
pub async fn perform_request(
    opened: Opened,
    frames: Vec<ClientFrame>,
    shared: Arc<Shared>,
) -> Result<Vec<FrameText>, NotPerformed> {
    let now = Instant::now();
    let mut task = Task::new(opened, shared, now);
    task.session.take_outputs();
    let mut replies = Vec::new();
    // Also acks that were added before: they may not be written yet.
    let acked: Vec<_> = frames
        .iter()
        .filter_map(|frame| task.acked(frame))
        .collect();
    for frame in frames {
        task.session.on_frame(frame, now);
        task.perform_for_request(&mut replies)?;
    }
    let stored = async {
        while task.session.marks_waiting() > 0 {
            task.opened.registration.inbox().woken().await;
            task.on_waiting();
            task.perform_for_request(&mut replies)?;
        }
        task.shared.cursors.written(&acked).await;
        Ok(())
    };
    match tokio::time::timeout(REPLY_TIMEOUT, stored).await {
        Ok(stored) => stored.map(|()| replies),
        Err(_) => Err(NotPerformed::NotStored),
    }
}

impl Task {
    fn acked(&self, frame: &ClientFrame) -> Option<(CursorKey, Seq)> {
        let ClientFrame::Ack { feed, seq } = frame else {
            return None;
        };
        let key = self.cursor_key(Feed::parse(feed).ok()?);
        Some((key, Seq::new(*seq)?))
    }

    fn perform_for_request(&mut self, replies: &mut Vec<FrameText>) -> Result<(), NotPerformed> {
        for output in self.session.take_outputs() {
            match output {
                Output::Send(Frame::Text(reply)) => replies.push(reply),
                Output::Send(Frame::Notification(_) | Frame::Ping) => {}
                Output::Perform(effect) => self.perform(effect),
                Output::Close(close) => return Err(NotPerformed::Closed(close)),
            }
        }
        Ok(())
    }
}

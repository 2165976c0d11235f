//! The measurements of one session for the metrics of its replica.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;

use crate::gateway::session::lateness::Lateness;
use crate::gateway::session::state::{Sent, Session};
use crate::model::notification::Notification;
use crate::telemetry::instruments::Counted;
use crate::telemetry::metrics::Metrics;

#[derive(Debug)]
pub(super) struct Measures {
    /// The begin of the session. An event that was published before could not reach it earlier.
    opened_at: OffsetDateTime,
    is_canary: bool,
    /// Whether acks arrive in the session. Otherwise it learns of them later.
    has_acks: bool,
    /// Counted as a session with a full window.
    behind: Option<Counted>,
    lateness: Lateness,
    late: Option<Counted>,
}

impl Measures {
    pub(super) fn new(is_canary: bool, has_acks: bool) -> Self {
        Self {
            opened_at: OffsetDateTime::now_utc(),
            is_canary,
            has_acks,
            behind: None,
            lateness: Lateness::default(),
            late: None,
        }
    }

    pub(super) fn on_sent(&self, sent: &[Arc<Notification>], metrics: &Metrics) {
        let now = OffsetDateTime::now_utc();
        metrics.notifications_sent.inc_by(sent.len() as u64);
        for notification in sent {
            self.observe(&metrics.publish_to_delivery, notification.time, now);
        }
    }

    pub(super) fn on_acknowledged(&mut self, sent: &Sent, metrics: &Metrics) {
        self.lateness.on_ack();
        if self.has_acks {
            let now = OffsetDateTime::now_utc();
            self.observe(&metrics.publish_to_ack, sent.time, now);
        }
    }

    /// Counts the session as behind or late, or no longer.
    pub(super) fn update(&mut self, session: &Session, metrics: &Metrics) {
        let is_window_full = session.is_window_full();
        if is_window_full != self.behind.is_some() {
            self.behind = is_window_full.then(|| Counted::in_gauge(&metrics.sessions_behind));
        }
        let outstanding = session.outstanding();
        let is_late = self.lateness.is_late(outstanding, Instant::now());
        if is_late != self.late.is_some() {
            self.late = is_late.then(|| Counted::in_gauge(&metrics.sessions_late));
        }
    }

    /// Observes the wait since an event's time, if the session was open by then. A replay would
    /// measure how long the merchant was away. A canary is left out, because merchants do not wait
    /// for it.
    fn observe(
        &self,
        histogram: &Histogram,
        published_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) {
        if let Some(published_at) = published_at
            && published_at >= self.opened_at
            && !self.is_canary
        {
            // The clock of a publisher may be ahead of ours.
            histogram.observe((now - published_at).as_seconds_f64().max(0.0));
        }
    }
}

//! Logs, traces and metrics: every name in one place.

pub mod traces;

use std::io::IsTerminal;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use self::traces::Traces;

/// Always on top: lapin logs a returned message with its whole body, and a closed channel as an error also where RabbitMQ
/// only says that a queue is not there (what is an error comes back to us, and is told there); sqlx logs a slow statement
/// with its text; and our spans are for traces.
const LOG_ALWAYS: [&str; 4] =
    ["lapin::returned_messages=error", "lapin::channel=off", "sqlx::query=off", "shopbell::trace=off"];

/// Sends the log to stderr, as text to a terminal, else as JSON, one object a line; and traces where the environment asks
/// for them. What it returns is to be stopped at the end.
pub fn start(log_default: &str) -> Option<Traces> {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(log_default));
    for directive in LOG_ALWAYS {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let (traces, trouble) = match Traces::from_environment() {
        Some(Ok(traces)) => (Some(traces), None),
        Some(Err(trouble)) => (None, Some(trouble)),
        None => (None, None),
    };
    let spans = traces.as_ref().map(|traces| {
        let ours = filter_fn(|metadata| metadata.target() == traces::TARGET);
        tracing_opentelemetry::layer().with_tracer(traces.tracer()).with_filter(ours)
    });
    let log = fmt::layer().with_writer(std::io::stderr);
    let log = match std::io::stderr().is_terminal() {
        true => log.boxed(),
        false => log.json().flatten_event(true).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(spans).with(log.with_filter(filter)).init();
    if let Some(trouble) = trouble {
        tracing::error!("{trouble}");
    }
    traces
}

/// The counts of one replica. The books balance: received = stored + duplicate + dead-lettered.
#[derive(Debug)]
pub struct Metrics {
    /// Deliveries that ingest has dealt with.
    pub events_received: Counter,
    /// Of these, stored as a new notification.
    pub events_stored: Counter,
    /// Of these, stored before.
    pub events_duplicate: Counter,
    /// Of these, dead-lettered, by reason.
    pub events_dead_lettered: Family<ReasonLabel, Counter>,
    /// Open sessions.
    pub sessions: Gauge,
    /// Notifications sent to sessions.
    pub notifications_sent: Counter,
    /// Acks that moved a cursor.
    pub acks: Counter,
    /// Reads and handles that changed something.
    pub changes: Counter,
    /// Hints published for other replicas.
    pub hints_published: Counter,
    /// Hints received from other replicas.
    pub hints_received: Counter,
    /// Hints that the broker did not take in time.
    pub hints_refused: Counter,
    /// Pages read for sessions that were behind.
    pub pages_read: Counter,
    /// Queries that read them.
    pub page_queries: Counter,
    registry: Registry,
}

/// Why an event was dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A word of the contract.
    pub reason: Word,
}

/// A label whose values are constants of the program, so that their number is bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Word(pub &'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("shopbell");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let events_received = counter("events_received", "Deliveries that ingest has dealt with");
        let events_stored = counter("events_stored", "Events stored as a new notification");
        let events_duplicate = counter("events_duplicate", "Events that were stored before");
        let notifications_sent = counter("notifications_sent", "Notifications sent to sessions");
        let acks = counter("acks", "Acks that moved a cursor");
        let changes = counter("changes", "Reads and handles that changed something");
        let hints_published = counter("hints_published", "Fan-out hints published for other replicas");
        let hints_received = counter("hints_received", "Fan-out hints received from other replicas");
        let hints_refused = counter("hints_refused", "Fan-out hints that RabbitMQ did not take in time");
        let pages_read = counter("pages_read", "Pages read for sessions that were behind");
        let page_queries = counter("page_queries", "Queries that read pages");
        let events_dead_lettered = Family::default();
        registry.register(
            "events_dead_lettered",
            "Events that can never be stored, by reason",
            events_dead_lettered.clone(),
        );
        let sessions = Gauge::default();
        registry.register("sessions", "Open sessions", sessions.clone());
        Self {
            events_received,
            events_stored,
            events_duplicate,
            events_dead_lettered,
            sessions,
            notifications_sent,
            acks,
            changes,
            hints_published,
            hints_received,
            hints_refused,
            pages_read,
            page_queries,
            registry,
        }
    }
}

impl Metrics {
    /// The content type of [`Metrics::render`].
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// The OpenMetrics text for `/metrics`.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

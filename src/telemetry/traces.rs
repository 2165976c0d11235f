//! OpenTelemetry traces over OTLP. They are exported if `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector.
//!
//! Only events with a sampled `traceparent` are traced, through ingest, fan-out, send and ack. A notification that was read
//! from Postgres starts a new trace with a link to the event's, because it may be days old. Spans are recorded when their
//! work has ended, for all events of a batch together, so no span is ever entered.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::conventions::{self, BATCH, DELIVER, Operation, PROCESS, PUBLISH, SETTLE};
use crate::model::trace_context::{Source, TraceContext};

/// Most links of a batch's span, the default limit of OpenTelemetry.
const LINKS_MAX: usize = 128;
/// Most time to export the last spans.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// The destination of the spans of sessions.
const CLIENTS: &str = "shopbell.v1";

/// Set once at the start.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The exporter of spans.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the exporter if the environment configures it. The exporter reads the variables of OpenTelemetry itself.
    pub(super) fn from_environment() -> Option<Result<Self, String>> {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let endpoint =
            set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let disabled = std::env::var("OTEL_SDK_DISABLED")
            .is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        (endpoint && !disabled).then(|| {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .build();
            let exporter =
                exporter.map_err(|error| format!("traces cannot be exported: {error}"))?;
            let resource = match set("OTEL_SERVICE_NAME") {
                true => Resource::builder().build(),
                false => Resource::builder().with_service_name("shopbell").build(),
            };
            let provider = SdkTracerProvider::builder()
                .with_resource(resource)
                .with_batch_exporter(exporter)
                .build();
            TRACER.get_or_init(|| provider.tracer("shopbell"));
            Ok(Self { provider })
        })
    }

    /// Exports the last spans. It blocks, so call it outside async tasks.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}

/// Whether traces are exported.
pub fn are_on() -> bool {
    TRACER.get().is_some()
}

/// Parses the `traceparent` of a delivery or a hint. Returns `None` if its trace is not followed.
pub fn received(traceparent: &str) -> Option<TraceContext> {
    are_on().then(|| TraceContext::parse(traceparent, Source::Received))?
}

/// Parses a `traceparent` from the database. Returns `None` if its trace is not followed.
pub fn stored(traceparent: &str) -> Option<TraceContext> {
    are_on().then(|| TraceContext::parse(traceparent, Source::Stored))?
}

/// The position after a span of this process, unless a sampler rejected the span.
fn of_ended(span: &SpanContext, ended_at: SystemTime) -> Option<TraceContext> {
    let (trace_id, span_id) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
    span.is_sampled()
        .then(|| TraceContext::new(trace_id, span_id, Source::Ended(ended_at)))
}

fn span_context(trace: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(trace.trace_id()),
        SpanId::from_bytes(trace.span_id()),
        TraceFlags::SAMPLED,
        !matches!(trace.source(), Source::Ended(_)),
        TraceState::NONE,
    )
}

fn link(trace: &TraceContext) -> Link {
    Link::with_context(span_context(trace))
}

/// A span of messages that is not built yet.
fn of_messages(
    operation: Operation,
    kind: SpanKind,
    destination: &str,
    more: Vec<KeyValue>,
) -> SpanBuilder {
    let mut attributes = operation.attributes(destination);
    attributes.extend(more);
    SpanBuilder::from_name(operation.span_name(destination))
        .with_kind(kind)
        .with_attributes(attributes)
}

/// Records a span that follows `trace` and ends now: as its child, or linked to it if it was stored.
/// Returns the position after the span, unless a sampler rejected it.
fn follow(trace: &TraceContext, begun: SystemTime, span: SpanBuilder) -> Option<TraceContext> {
    let tracer = TRACER.get()?;
    let span = span.with_start_time(begun);
    let mut span = match trace.source() {
        Source::Stored => {
            tracer.build_with_context(span.with_links(vec![link(trace)]), &Context::new())
        }
        Source::Received | Source::Ended(_) => tracer.build_with_context(
            span,
            &Context::new().with_remote_span_context(span_context(trace)),
        ),
    };
    let now = SystemTime::now();
    span.end_with_timestamp(now);
    of_ended(span.span_context(), now)
}

/// The span of a publish, which ends when it is dropped.
#[derive(Debug)]
pub struct Publishing(Span);

impl Publishing {
    /// Begins the span of an event that a command of ours publishes.
    pub fn begin(exchange: &str, event_type: &str, id: &str) -> Option<Self> {
        let more = vec![
            KeyValue::new(conventions::ROUTING_KEY, event_type.to_owned()),
            KeyValue::new(conventions::MESSAGE_ID, id.to_owned()),
        ];
        let span = of_messages(PUBLISH, SpanKind::Producer, exchange, more);
        Some(Self(
            TRACER.get()?.build_with_context(span, &Context::new()),
        ))
    }
}

/// The `traceparent` for the event.
impl fmt::Display for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = self.0.span_context();
        write!(
            f,
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags().to_u8()
        )
    }
}

/// The span of a batch. It is a root span with a link to each event, because it has many parents.
#[derive(Debug)]
pub struct BatchTrace {
    queue: String,
    span: Span,
    begun: SystemTime,
}

impl BatchTrace {
    /// Returns `None` if no event of the batch is traced.
    pub fn begin<'a>(
        queue: impl FnOnce() -> String,
        deliveries: usize,
        traceparents: impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        let tracer = TRACER.get()?;
        let links: Vec<Link> = traceparents
            .filter_map(received)
            .map(|trace| link(&trace))
            .take(LINKS_MAX)
            .collect();
        if links.is_empty() {
            return None;
        }
        let count = KeyValue::new(
            conventions::BATCH_MESSAGE_COUNT,
            i64::try_from(deliveries).unwrap_or(i64::MAX),
        );
        let queue = queue();
        let span = of_messages(BATCH, SpanKind::Consumer, &queue, vec![count]).with_links(links);
        Some(Self {
            span: tracer.build_with_context(span, &Context::new()),
            queue,
            begun: SystemTime::now(),
        })
    }

    /// Records the transaction that began at `begun`.
    pub fn committed(&self, begun: SystemTime) {
        let span = SpanBuilder::from_name(conventions::COMMIT)
            .with_kind(SpanKind::Client)
            .with_attributes(conventions::commit_attributes());
        if let Some(batch) = of_ended(self.span.span_context(), begun) {
            follow(&batch, begun, span);
        }
    }

    /// Records the span of ingest in the trace of one event, and returns the position after it.
    pub fn stored(
        &self,
        traceparent: &str,
        id: &str,
        feed: &str,
        seq: i64,
    ) -> Option<TraceContext> {
        let more = vec![
            KeyValue::new(conventions::MESSAGE_ID, id.to_owned()),
            KeyValue::new(conventions::FEED, feed.to_owned()),
            KeyValue::new(conventions::SEQ, seq),
        ];
        let span = of_messages(PROCESS, SpanKind::Consumer, &self.queue, more)
            .with_links(vec![Link::with_context(self.span.span_context().clone())]);
        follow(&received(traceparent)?, self.begun, span)
    }
}

/// Records that a hint of the event was published to the other replicas.
pub fn published(trace: &TraceContext, exchange: &str, begun: SystemTime) {
    follow(
        trace,
        begun,
        of_messages(PUBLISH, SpanKind::Producer, exchange, Vec::new()),
    );
}

/// Records the write to a socket, and returns the position after it.
pub fn delivered(
    trace: &TraceContext,
    feed: &str,
    seq: i64,
    begun: SystemTime,
) -> Option<TraceContext> {
    let more = vec![
        KeyValue::new(conventions::PROTOCOL_NAME, conventions::WEBSOCKET),
        KeyValue::new(conventions::FEED, feed.to_owned()),
        KeyValue::new(conventions::SEQ, seq),
    ];
    follow(
        trace,
        begun,
        of_messages(DELIVER, SpanKind::Producer, CLIENTS, more),
    )
}

/// Records the wait for the client's ack.
pub fn acknowledged(delivered: &TraceContext) {
    let begun = match delivered.source() {
        Source::Ended(at) => at,
        Source::Received | Source::Stored => SystemTime::now(),
    };
    let more = vec![KeyValue::new(
        conventions::PROTOCOL_NAME,
        conventions::WEBSOCKET,
    )];
    follow(
        delivered,
        begun,
        of_messages(SETTLE, SpanKind::Client, CLIENTS, more),
    );
}

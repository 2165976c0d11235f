//! OpenTelemetry traces over OTLP, where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; otherwise nothing of it runs.
//!
//! Only what a publisher traces is traced: an event whose `traceparent` is sampled. Its trace goes on through ingest, fan-out,
//! send and ack. What was read from Postgres begins a trace of its own, linked to the event's: it may have lain there for
//! days. The spans are made when what they tell of is over, for all events of a batch at once, so no span is ever entered.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanKind, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::conventions::{self, BATCH, DELIVER, Operation, PROCESS, PUBLISH, SETTLE};

/// Most events that a batch's span is linked to: what OpenTelemetry keeps of a span by default.
const LINKS_MAX: usize = 128;
/// How long the last spans may take to be sent.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// What sessions send to, and are acknowledged by.
const CLIENTS: &str = "shopbell.v1";

/// Set once, before anything is traced.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends spans until it is stopped.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts, where the environment asks for it. The exporter reads OpenTelemetry's own variables itself.
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

    /// Sends what is left. Blocks: not for an async task.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}

/// Whether anything is traced.
pub fn are_on() -> bool {
    TRACER.get().is_some()
}

/// Where a trace goes on: a span that is over, of which what follows is a part, or to which it is linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    span: SpanContext,
    /// It lay in the database since.
    stored: bool,
    /// When it was over, where that was here.
    ended_at: Option<SystemTime>,
}

impl Origin {
    /// Of a `traceparent` (W3C Trace Context) that came with a message. `None` for what is not to be traced.
    pub fn received(traceparent: &str) -> Option<Self> {
        are_on().then(|| Self::read(traceparent, false))?
    }

    /// Of one that lay in the database.
    pub fn stored(traceparent: &str) -> Option<Self> {
        are_on().then(|| Self::read(traceparent, true))?
    }

    fn read(traceparent: &str, stored: bool) -> Option<Self> {
        let context = TraceContextPropagator::new().extract(&OneHeader(traceparent));
        let span = context.span().span_context().clone();
        span.is_sampled().then(|| {
            Self(Arc::new(Inner {
                span,
                stored,
                ended_at: None,
            }))
        })
    }

    fn of_ended(span: &SpanContext, ended_at: SystemTime) -> Self {
        Self(Arc::new(Inner {
            span: span.clone(),
            stored: false,
            ended_at: Some(ended_at),
        }))
    }

    fn link(&self) -> Link {
        Link::with_context(self.0.span.clone())
    }
}

/// As a `traceparent` of version 00 (W3C Trace Context §3.2.2).
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        traceparent(&self.0.span, f)
    }
}

fn traceparent(span: &SpanContext, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags().to_u8()
    )
}

struct OneHeader<'a>(&'a str);

impl Extractor for OneHeader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// A span of messages, to be made.
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

/// Makes a span that is a part of `origin`'s trace, or linked to it; ends now.
fn follow(origin: &Origin, begun: SystemTime, span: SpanBuilder) -> Option<Origin> {
    let tracer = TRACER.get()?;
    let span = span.with_start_time(begun);
    let mut span = match origin.0.stored {
        true => tracer.build_with_context(span.with_links(vec![origin.link()]), &Context::new()),
        false => tracer.build_with_context(
            span,
            &Context::new().with_remote_span_context(origin.0.span.clone()),
        ),
    };
    let now = SystemTime::now();
    span.end_with_timestamp(now);
    // The environment's sampler may have refused it.
    span.span_context()
        .is_sampled()
        .then(|| Origin::of_ended(span.span_context(), now))
}

/// A publish under way; ends when it is dropped.
#[derive(Debug)]
pub struct Publishing(Span);

impl Publishing {
    /// Of an event, by a program that is traced itself.
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

/// The `traceparent` that the event is to carry.
impl fmt::Display for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        traceparent(self.0.span_context(), f)
    }
}

/// A batch in work. Its span is a root, for it has as many parents as events: those are its links.
#[derive(Debug)]
pub struct Batch {
    queue: String,
    span: Span,
    begun: SystemTime,
}

impl Batch {
    /// `None` where nobody traces any of its events.
    pub fn begin<'a>(
        queue: impl FnOnce() -> String,
        deliveries: usize,
        traceparents: impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        let tracer = TRACER.get()?;
        let links: Vec<Link> = traceparents
            .filter_map(Origin::received)
            .map(|origin| origin.link())
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

    /// It was stored, in a transaction that began then.
    pub fn committed(&self, begun: SystemTime) {
        let span = SpanBuilder::from_name(conventions::COMMIT)
            .with_kind(SpanKind::Client)
            .with_attributes(conventions::commit_attributes());
        follow(
            &Origin::of_ended(self.span.span_context(), begun),
            begun,
            span,
        );
    }

    /// An event of it was stored: the part of ingest in the event's own trace.
    pub fn stored(&self, traceparent: &str, id: &str, feed: &str, seq: i64) -> Option<Origin> {
        let more = vec![
            KeyValue::new(conventions::MESSAGE_ID, id.to_owned()),
            KeyValue::new(conventions::FEED, feed.to_owned()),
            KeyValue::new(conventions::SEQ, seq),
        ];
        let span = of_messages(PROCESS, SpanKind::Consumer, &self.queue, more)
            .with_links(vec![Link::with_context(self.span.span_context().clone())]);
        follow(&Origin::received(traceparent)?, self.begun, span)
    }
}

/// Records that a hint of the event was published to the other replicas.
pub fn published(origin: &Origin, exchange: &str, begun: SystemTime) {
    follow(
        origin,
        begun,
        of_messages(PUBLISH, SpanKind::Producer, exchange, Vec::new()),
    );
}

/// A session wrote it to its socket; gives where the trace goes on.
pub fn delivered(origin: &Origin, feed: &str, seq: i64, begun: SystemTime) -> Option<Origin> {
    let more = vec![
        KeyValue::new(conventions::PROTOCOL_NAME, conventions::WEBSOCKET),
        KeyValue::new(conventions::FEED, feed.to_owned()),
        KeyValue::new(conventions::SEQ, seq),
    ];
    follow(
        origin,
        begun,
        of_messages(DELIVER, SpanKind::Producer, CLIENTS, more),
    )
}

/// The client acknowledged it: the span is the wait for that.
pub fn acknowledged(delivered: &Origin) {
    let begun = delivered.0.ended_at.unwrap_or_else(SystemTime::now);
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sampled_is_followed() {
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Origin::read(sampled, false).unwrap().to_string(), sampled);
        for other in [
            &sampled.replace("-01", "-00"),
            "00-0-0-01",
            "",
            "no traceparent at all",
        ] {
            assert_eq!(Origin::read(other, false), None, "{other}");
        }
    }
}

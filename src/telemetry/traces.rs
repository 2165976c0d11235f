//! OpenTelemetry traces over OTLP, where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; otherwise nothing of it runs.
//!
//! Names are those of the OpenTelemetry semantic conventions for messaging.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of our spans: traced, and kept out of the log.
pub(super) const TARGET: &str = "shopbell::trace";
/// Most events that a batch's span is linked to: what OpenTelemetry keeps of a span by default.
const LINKS_MAX: usize = 128;
/// How long the last spans may take to be sent.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends spans until it is stopped.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts, where the environment asks for it. The exporter reads OpenTelemetry's own variables itself.
    pub(super) fn from_environment() -> Option<Result<Self, String>> {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let endpoint = set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        (endpoint && !disabled).then(|| {
            let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build();
            let exporter = exporter.map_err(|error| format!("traces cannot be exported: {error}"))?;
            let resource = match set("OTEL_SERVICE_NAME") {
                true => Resource::builder().build(),
                false => Resource::builder().with_service_name("shopbell").build(),
            };
            let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
            Ok(Self { provider })
        })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("shopbell")
    }

    /// Sends what is left. Blocks: not for an async task.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}

/// The span of one batch: a root, for it has as many parents as events; those are its links.
pub fn batch<'a>(queue: &str, deliveries: usize, traceparents: impl Iterator<Item = &'a str>) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "process",
        otel.name = format!("process {queue}"),
        otel.kind = "consumer",
        messaging.system = "rabbitmq",
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = queue,
        messaging.batch.message_count = deliveries,
    );
    if !span.is_disabled() {
        let propagator = TraceContextPropagator::new();
        for traceparent in traceparents.take(LINKS_MAX) {
            let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
            let context = propagator.extract(&carrier);
            span.add_link(context.span().span_context().clone());
        }
    }
    span
}

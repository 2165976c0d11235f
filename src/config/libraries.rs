//! Variables of libraries: shown by `shopbell config`, never judged. Only known harmless values are
//! shown.

use url::Url;

use super::effective::{EffectiveSetting, Origin};

/// Replaces a value that may be a secret.
const HIDDEN: &str = "(set)";
/// How the variables of the libraries begin.
const PREFIXES: [&str; 2] = ["RUST_LOG", "OTEL_"];
/// Variables with a word or a name as value.
const WORDS: [&str; 6] = [
    "RUST_LOG",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
];
/// Variables with a number as value. Any other value is hidden.
const NUMBERS: [&str; 5] = [
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_TRACES_SAMPLER_ARG",
];
/// Variables with a URL as value. Only scheme, host and port are shown, because users and paths may
/// be keys.
const URLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// Whether a library reads this variable.
pub(super) fn is_read_by_a_library(variable: &str) -> bool {
    PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
}

/// The setting, with its value hidden if that may be a secret.
pub(super) fn setting(variable: String, value: &str) -> EffectiveSetting {
    let is_one_of = |list: &[&str]| list.contains(&variable.as_str());
    let shown = if is_one_of(&WORDS) {
        Some(value.to_owned())
    } else if is_one_of(&NUMBERS) {
        value.parse::<f64>().ok().map(|_| value.to_owned())
    } else if is_one_of(&URLS) {
        // URLs of unknown schemes have an opaque origin.
        let origin = Url::parse(value).ok().map(|url| url.origin());
        origin
            .filter(url::Origin::is_tuple)
            .map(|origin| origin.ascii_serialization())
    } else {
        None
    };
    EffectiveSetting {
        variable,
        value: Some(shown.unwrap_or_else(|| HIDDEN.into())),
        origin: Origin::Set,
        file: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shows(variable: &str, value: &str, expected: &str) {
        let setting = setting(variable.into(), value);
        assert_eq!(
            setting.value.as_deref(),
            Some(expected),
            "{variable}={value}"
        );
    }

    #[test]
    fn words_and_numbers_are_shown_and_the_rest_is_hidden() {
        for (variable, value, shown) in [
            (
                "RUST_LOG",
                "info,shopbell::ingest=debug",
                "info,shopbell::ingest=debug",
            ),
            ("OTEL_SERVICE_NAME", "shopbell-eu", "shopbell-eu"),
            (
                "OTEL_TRACES_SAMPLER",
                "parentbased_traceidratio",
                "parentbased_traceidratio",
            ),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25", "0.25"),
            (
                "OTEL_TRACES_SAMPLER_ARG",
                "endpoint=http://me:hidden@sampler:14250",
                "(set)",
            ),
            ("OTEL_BSP_SCHEDULE_DELAY", "100", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "hidden", "(set)"),
            ("OTEL_RESOURCE_ATTRIBUTES", "key=hidden", "(set)"),
            ("OTEL_OF_TOMORROW", "hidden", "(set)"),
        ] {
            shows(variable, value, shown);
        }
        for variable in [
            "HEADERS",
            "TRACES_HEADERS",
            "CERTIFICATE",
            "METRICS_ENDPOINT",
        ] {
            let variable = format!("OTEL_EXPORTER_OTLP_{variable}");
            shows(&variable, "api-key=hidden", "(set)");
        }
    }

    #[test]
    fn only_scheme_host_and_port_of_a_url_are_shown() {
        for variable in URLS {
            let url = "https://me:hidden@collector.example:4318/hidden/v1?key=hidden#hidden";
            shows(variable, url, "https://collector.example:4318");
            shows(variable, "http://collector:4318", "http://collector:4318");
            shows(
                variable,
                "https://hidden@collector.example",
                "https://collector.example",
            );
            for not_a_web_url in [
                "me:hidden@collector:4318",
                "collector:4318",
                "grpc://me:hidden@collector:4317",
                "hidden",
            ] {
                shows(variable, not_a_web_url, "(set)");
            }
        }
    }
}

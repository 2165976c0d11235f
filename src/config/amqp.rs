//! The settings of RabbitMQ.

use url::Url;

use super::environment::Environment;
use super::error::ConfigError;
use super::secret::Secret;
use super::settings::{
    AMQP_DECLARE, AMQP_PREFIX, AMQP_QUEUE_TYPE, AMQP_URL, INGEST_PARTITIONS, LEAN_HINTS_FROM,
};

/// RabbitMQ.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// `AMQP_URL`.
    pub url: Secret,
    /// `SHOPBELL_AMQP_PREFIX`.
    pub prefix: String,
    /// `SHOPBELL_INGEST_PARTITIONS`.
    pub partitions: u8,
    /// `SHOPBELL_AMQP_QUEUE_TYPE` is `classic`.
    pub has_classic_queues: bool,
    /// `SHOPBELL_LEAN_HINTS_FROM`, in gateways; `None` if it is 0.
    pub lean_hints_from: Option<u32>,
    /// `SHOPBELL_AMQP_DECLARE`.
    pub declare: bool,
}

impl Environment {
    /// Reads the settings of RabbitMQ only.
    pub fn amqp(mut self) -> Result<AmqpConfig, ConfigError> {
        let amqp = self.read_amqp();
        self.finish(amqp)
    }

    pub(super) fn read_amqp(&mut self) -> Option<AmqpConfig> {
        let parse = |url: &Secret| {
            let parsed = Url::parse(url.reveal()).ok();
            // Without a host, the password is a part of the path, which is shown.
            let has_host = |url: &Url| url.host_str().is_some_and(|host| !host.is_empty());
            let parsed =
                parsed.filter(|url| ["amqp", "amqps"].contains(&url.scheme()) && has_host(url));
            let expected = || format!("must be {}", AMQP_URL.kind.expected());
            Ok((url.clone(), parsed.ok_or_else(expected)?))
        };
        let url = self.secret(&AMQP_URL, parse, |(_, url)| Some(shown(url.clone())));
        let prefix = self.prefix(&AMQP_PREFIX);
        let declare = self.flag(&AMQP_DECLARE);
        let partitions = self.number(&INGEST_PARTITIONS);
        let queue_type = self.choice(&AMQP_QUEUE_TYPE);
        let lean_hints_from = self.number::<u32>(&LEAN_HINTS_FROM);
        Some(AmqpConfig {
            url: url?.0,
            prefix: prefix?,
            partitions: partitions?,
            has_classic_queues: queue_type? == "classic",
            lean_hints_from: Some(lean_hints_from?).filter(|from| *from > 0),
            declare: declare?,
        })
    }
}

/// The URL without its password, query and fragment.
fn shown(mut url: Url) -> String {
    // It fails for a URL that cannot have a password.
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_host_is_refused_and_not_shown() {
        for url in [
            "amqp:me:hidden@mq.example",
            "amqp:/me:hidden@mq.example/%2f",
            "amqp:///me:hidden@mq.example",
            "amqps:x=amqps://me:hidden@mq.example",
        ] {
            let environment = Environment::of(vec![("AMQP_URL".into(), url.into())]);
            let complaint = environment.amqp().unwrap_err().to_string();
            assert!(complaint.contains("must be a URL"), "{complaint}");
            assert!(!complaint.contains("hidden"), "{complaint}");
        }
    }
}

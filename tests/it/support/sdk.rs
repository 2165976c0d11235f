//! Publishers written by others: the official CloudEvents SDKs, each with the AMQP client of its
//! language.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::World;
use super::command::run_any;

/// Bound for the installation, with packages of the distribution, on a slow network.
const INSTALL_BOUND: Duration = Duration::from_secs(900);
/// Bound for publishing a few events.
const PUBLISH_BOUND: Duration = Duration::from_secs(60);

/// An SDK, and its publisher in `tests/sdk`.
#[derive(Debug, Clone, Copy)]
pub enum Sdk {
    /// `cloudevents` and `pika`.
    Python,
    /// `cloudevents` and `amqplib`.
    Node,
}

/// An event that RabbitMQ has confirmed to an SDK's publisher.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    pub id: String,
    /// Its data as published, byte for byte.
    pub data: String,
}

impl Sdk {
    /// Publishes to `world` over AMQP, in each form of the SDK, an event for `recipient`. If the SDK
    /// takes JSON unchanged, `json` is the data.
    pub async fn publish(self, world: &World, recipient: &str, json: &str) -> Vec<Published> {
        let mut publish = self.program("publish").await;
        publish
            .args([&world.name("events"), recipient, json])
            .env("AMQP_URL", world.publisher_amqp_url());
        published(publish).await
    }

    /// The same over HTTP, to this URL and with this token.
    pub async fn publish_over_http(
        self,
        url: &str,
        token: &str,
        recipient: &str,
        json: &str,
    ) -> Vec<Published> {
        let mut publish = self.program("publish_http").await;
        publish
            .args([url, recipient, json])
            .env("SHOPBELL_TOKEN", token);
        published(publish).await
    }

    /// A program of `tests/sdk`, with its SDK installed.
    async fn program(self, name: &str) -> Command {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut install = Command::new(checkout.join("scripts/install"));
        install.arg("sdks").stdin(Stdio::null());
        let installed = run_any(install, INSTALL_BOUND).await;
        let status = installed.status;
        assert_eq!(
            status,
            Some(0),
            "the CloudEvents SDKs could not be installed:\n{}",
            installed.stderr
        );
        let directory = Path::new(installed.stdout.trim_end());
        match self {
            Self::Python => {
                let mut program = Command::new(directory.join("python/bin/python"));
                program
                    .arg(checkout.join(format!("tests/sdk/python/{name}.py")))
                    .stdin(Stdio::null());
                program
            }
            Self::Node => {
                let mut program = Command::new("node");
                // From its stdin, because Node searches for modules beside the script or in the
                // working directory.
                let script = File::open(checkout.join(format!("tests/sdk/node/{name}.mjs")))
                    .expect("the checkout has it");
                program
                    .args(["--input-type=module", "-"])
                    .current_dir(directory.join("node"))
                    .stdin(script);
                program
            }
        }
    }
}

async fn published(publish: Command) -> Vec<Published> {
    let done = run_any(publish, PUBLISH_BOUND).await;
    let lines: Vec<Line> = done.succeeded().json_lines();
    lines.into_iter().map(Line::into_published).collect()
}

/// The output of a publisher for one event.
#[derive(Debug, Deserialize)]
struct Line {
    id: String,
    content_type: String,
    /// In base64.
    body: String,
}

impl Line {
    fn into_published(self) -> Published {
        /// The members of the JSON format that hold data.
        #[derive(Deserialize)]
        struct Structured {
            data: Option<Box<RawValue>>,
            data_base64: Option<String>,
        }
        let body = decode(&self.body);
        let data = if self.content_type.starts_with("application/cloudevents") {
            let structured: Structured =
                serde_json::from_str(&body).expect("a structured event is JSON");
            match (structured.data, structured.data_base64) {
                (Some(data), None) => data.get().to_owned(),
                (None, Some(encoded)) => decode(&encoded),
                other => panic!("{}: one or the other, not {other:?}", self.id),
            }
        } else {
            body
        };
        Published { id: self.id, data }
    }
}

fn decode(base64: &str) -> String {
    String::from_utf8(STANDARD.decode(base64).expect("base64")).expect("UTF-8")
}

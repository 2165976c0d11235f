//! A real OpenTelemetry collector, which prints the spans that it receives.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use super::command::run_any;
use super::log::Log;
use super::{PATIENCE, eventually};

/// Bound for the installation on a slow network.
const INSTALL_BOUND: Duration = Duration::from_secs(900);

/// A running collector. It ends when it is dropped.
pub struct Collector {
    address: SocketAddr,
    printed: Log,
    child: Child,
}

/// A span as it was received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// The id of its parent span; empty for a root.
    pub parent: String,
    pub name: String,
    /// `SPAN_KIND_…`.
    pub kind: String,
    /// Attributes, as `name: Type(value)`.
    pub attributes: Vec<String>,
    /// Traces and spans of its links.
    pub links: Vec<(String, String)>,
}

impl Collector {
    /// Installs it if it is missing, starts it and waits until it listens.
    pub async fn start() -> Self {
        let mut install =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
        install.arg("collector").stdin(Stdio::null());
        let installed = run_any(install, INSTALL_BOUND).await.succeeded();
        let [http, grpc] = [free_address(), free_address()];
        let mut child = Command::new(installed.stdout.trim_end())
            .arg("start")
            .args([
                "--otlp-http-endpoint",
                &http.to_string(),
                "--otlp-grpc-endpoint",
                &grpc.to_string(),
            ])
            .args([
                "--exporter",
                "blackhole",
                "--debug-log",
                "traces",
                "--debug-log-verbosity",
                "detailed",
            ])
            .arg("--disable-batching")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the collector starts");
        let printed = Log::default();
        printed.follow(child.stdout.take().expect("stdout is piped"));
        eventually("the collector listens", PATIENCE, async || {
            TcpStream::connect(http)
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        Self {
            address: http,
            printed,
            child,
        }
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        let (mut spans, mut in_links) = (Vec::<Span>::new(), false);
        for line in self.printed.text().lines().map(str::trim) {
            if line.starts_with("Span #") {
                spans.push(Span::default());
                in_links = false;
            }
            let Some(span) = spans.last_mut() else {
                continue;
            };
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim().to_owned();
            match (name.trim_end(), in_links) {
                ("Trace ID", _) => span.trace = value,
                ("Parent ID", _) => span.parent = value,
                ("ID", _) => span.id = value,
                ("Name", _) => span.name = value,
                ("Kind", _) => span.kind = value,
                ("Links", _) => in_links = true,
                ("-> Trace ID", true) => span.links.push((value, String::new())),
                ("-> ID", true) => {
                    span.links
                        .last_mut()
                        .expect("a link begins with its trace")
                        .1 = value
                }
                (name, false) => span.attributes.extend(
                    name.strip_prefix("-> ")
                        .map(|name| format!("{name}: {value}")),
                ),
                _ => {}
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The collector binds it a moment later. If another process takes the port meanwhile, the start
/// fails with an error.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("a listener has an address")
}

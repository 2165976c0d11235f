//! `shopbell healthcheck`: asks the service on this machine for `/readyz`, for container runtimes without curl.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{terminal, within};
use crate::config::Environment;
use crate::http::listener::reachable;

/// A service that needs longer to say that it is ready is not.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most of an answer that is looked at.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Writes what `/readyz` says; fails where that is not 200.
pub async fn run() -> anyhow::Result<()> {
    let address = reachable(Environment::of_process().ops_listen()?);
    let answer = within(TIMEOUT, "asking /readyz", ask(address))
        .await
        .with_context(|| {
            format!("no answer from {address} (SHOPBELL_OPS_LISTEN): is `shopbell serve` running?")
        })?;
    let (status, body) =
        parse(&answer).with_context(|| format!("what listens on {address} does not speak HTTP"))?;
    anyhow::ensure!(
        status == "200",
        "not ready: /readyz on {address} says {status}: {body}"
    );
    terminal::write_lines(&terminal::text_line(body))
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Status and body.
fn parse(answer: &str) -> Option<(&str, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    Some((status, body.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Some(("503", "{}")));
        for no_http in ["", "SSH-2.0\r\n\r\n", "HTTP/1.1 20"] {
            assert_eq!(parse(no_http), None);
        }
    }
}

//! `shopbell healthcheck`: requests `/readyz` of the service on this machine, for containers
//! without curl.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{terminal, within};
use crate::config::Environment;
use crate::http::listener::reachable;

/// A service that needs longer is not ready.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of a response that are read.
const RESPONSE_BYTES_MAX: u64 = 64 * 1024;

/// Prints the body of `/readyz`. Fails if the status is not 200.
pub async fn run() -> anyhow::Result<()> {
    let address = reachable(Environment::of_process().ops_listen()?);
    let response = within(TIMEOUT, "requesting /readyz", request(address))
        .await
        .with_context(|| {
            format!(
                "no response from {address} (SHOPBELL_OPS_LISTEN): is `shopbell serve` running?"
            )
        })?;
    let (status, body) =
        parse(&response).with_context(|| format!("the server on {address} does not use HTTP"))?;
    anyhow::ensure!(
        status == "200",
        "not ready: /readyz on {address} returned {status}: {body}"
    );
    terminal::write_lines(&terminal::text_line(body))
}

async fn request(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream
        .take(RESPONSE_BYTES_MAX)
        .read_to_end(&mut response)
        .await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

/// The status and the body of a response.
fn parse(response: &str) -> Option<(&str, &str)> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    Some((status, body.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_split_into_status_and_body() {
        let response = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parse(response), Some(("503", "{}")));
        for no_http in ["", "SSH-2.0\r\n\r\n", "HTTP/1.1 20"] {
            assert_eq!(parse(no_http), None);
        }
    }
}

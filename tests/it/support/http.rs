//! HTTP as bytes on a socket, so that a story sees the exact response, also to half a request.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head of a response.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// An HTTP response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body, or, after `101`, the bytes after the head.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts a problem document (RFC 9457) with `status` in head and body.
    #[track_caller]
    pub fn expect_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem: Problem = serde_json::from_slice(&self.body).expect("a problem is JSON");
        assert_eq!(
            problem.status, status,
            "the statuses of body and head differ: {self:?}"
        );
        assert!(!problem.title.is_empty(), "a problem has a title: {self:?}");
    }
}

#[derive(serde::Deserialize)]
struct Problem {
    status: u16,
    title: String,
}

/// `GET path` on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<Reply> {
    get_with(address, path, &[]).await
}

/// The same with these headers.
pub async fn get_with(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> io::Result<Reply> {
    request("GET", address, path, headers).await
}

/// Any request without a body, on a connection of its own.
pub async fn request(
    method: &str,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> io::Result<Reply> {
    send(method, address, path, headers, "").await
}

/// `POST path` with a body, on a connection of its own.
pub async fn post(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Reply> {
    let length = body.len().to_string();
    let headers: Vec<_> = [("Content-Length", length.as_str())]
        .into_iter()
        .chain(headers.iter().copied())
        .collect();
    send("POST", address, path, &headers, body).await
}

async fn send(
    method: &str,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the response ends with the connection or with its length, never in chunks.
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n{body}");
    exchange(&mut stream, &request).await
}

/// Writes `request` unchanged and reads the response. After a `101` the caller owns the connection.
pub async fn exchange(stream: &mut TcpStream, request: &str) -> io::Result<Reply> {
    stream.write_all(request.as_bytes()).await?;
    let (mut reply, mut ended) = (read_head(stream).await?, false);
    if reply.status == 101 {
        return Ok(reply);
    }
    let length = reply
        .header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(usize::MAX);
    while reply.body.len() < length && !ended {
        ended = stream.read_buf(&mut reply.body).await? == 0;
    }
    Ok(reply)
}

pub(super) async fn read_head(stream: &mut TcpStream) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return parse_head(&String::from_utf8_lossy(&bytes), body);
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the head of the reply does not end"));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            let seen = String::from_utf8_lossy(&bytes).into_owned();
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("closed after {seen:?}"),
            ));
        }
    }
}

fn parse_head(head: &str, body: Vec<u8>) -> io::Result<Reply> {
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no status line in {head:?}")))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Reply {
        status,
        headers,
        body,
    })
}

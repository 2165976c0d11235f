//! A client without WebSockets: it reads a stream of Server-Sent Events, polls, and posts its frames.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::{self, Reply};
use super::{PATIENCE, Token};

/// A client of the HTTP endpoints of one replica.
#[derive(Clone)]
pub struct StreamClient {
    address: SocketAddr,
    token: String,
    headers: Vec<(String, String)>,
}

/// One event of a stream.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct StreamEvent {
    pub id: Option<String>,
    pub retry: Option<u64>,
    pub frame: Value,
}

impl StreamEvent {
    pub fn kind(&self) -> &str {
        self.frame["type"].as_str().unwrap_or_default()
    }

    pub fn seq(&self) -> u64 {
        self.frame["seq"].as_u64().unwrap_or_default()
    }
}

/// An open stream.
pub struct Stream {
    /// The response without its body.
    pub head: Reply,
    connection: TcpStream,
    bytes: Vec<u8>,
    text: String,
    is_chunked: bool,
}

impl StreamClient {
    pub fn new(address: SocketAddr, token: &Token) -> Self {
        Self {
            address,
            token: format!("Bearer {}", token.sign()),
            headers: Vec::new(),
        }
    }

    /// The same with another header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Opens a stream by HTTP/1.1.
    pub async fn open(&self, path: &str) -> Stream {
        self.open_with(path, "1.1").await
    }

    /// Opens a stream by this version of HTTP.
    pub async fn open_with(&self, path: &str, version: &str) -> Stream {
        let mut connection = TcpStream::connect(self.address)
            .await
            .expect("a connection");
        let headers: String = self
            .all_headers()
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let request = format!(
            "GET {path} HTTP/{version}\r\nHost: {}\r\n{headers}\r\n",
            self.address
        );
        connection
            .write_all(request.as_bytes())
            .await
            .expect("the request is sent");
        let head = timeout(PATIENCE, http::read_head(&mut connection)).await;
        let mut head = head.expect("a response in time").expect("a response");
        let bytes = std::mem::take(&mut head.body);
        let is_chunked = head.header("transfer-encoding") == Some("chunked");
        Stream {
            head,
            connection,
            bytes,
            text: String::new(),
            is_chunked,
        }
    }

    /// The response to any `GET`, whole.
    pub async fn get(&self, path: &str) -> Reply {
        self.request("GET", path).await
    }

    /// The response to a request without a body.
    pub async fn request(&self, method: &str, path: &str) -> Reply {
        let headers = self.all_headers();
        let reply = timeout(
            PATIENCE,
            http::request(method, self.address, path, &headers),
        )
        .await;
        reply.expect("a response in time").expect("a response")
    }

    /// The frames of a poll.
    pub async fn poll(&self, path: &str) -> Vec<Value> {
        let reply = self.get(path).await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("application/json"))
        );
        serde_json::from_slice(&reply.body)
            .unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
    }

    /// The response to a `POST`.
    pub async fn post(&self, path: &str, body: &str) -> Reply {
        let headers = self.all_headers();
        let reply = timeout(PATIENCE, http::post(self.address, path, &headers, body)).await;
        reply.expect("a response in time").expect("a response")
    }

    /// Acks by the path of a feed.
    pub async fn ack(&self, feed: &str, seq: u64) {
        let reply = self
            .post(
                &format!("/v1/feeds/{feed}/ack"),
                &format!(r#"{{"seq":{seq}}}"#),
            )
            .await;
        assert_eq!(reply.status, 204, "{reply:?}");
    }

    /// Posts frames, and returns the replies.
    pub async fn send(&self, frames: Value) -> Vec<Value> {
        let reply = self.post("/v1/frames", &frames.to_string()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        serde_json::from_slice(&reply.body)
            .unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
    }

    fn all_headers(&self) -> Vec<(&str, &str)> {
        let given = self.headers.iter();
        let given = given.map(|(name, value)| (name.as_str(), value.as_str()));
        let mut headers: Vec<_> = given.collect();
        if !self.token.is_empty() {
            headers.push(("Authorization", &self.token));
        }
        headers
    }
}

impl Stream {
    /// The next event; `None` at the end of the body. Panics if neither arrives.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        timeout(PATIENCE, self.read())
            .await
            .expect("an event in time")
    }

    /// The next event of this type. Panics if the body ends before, or if it does not come in time.
    pub async fn next_of(&mut self, kind: &str) -> StreamEvent {
        let find = async {
            loop {
                let event = self.read().await;
                let event = event.unwrap_or_else(|| panic!("it ended before a {kind}"));
                if event.kind() == kind {
                    return event;
                }
            }
        };
        let found = timeout(PATIENCE, find).await;
        found.unwrap_or_else(|_| panic!("no {kind} in time"))
    }

    /// Takes the notifications of a feed in order.
    pub async fn take_seqs(&mut self, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            assert_eq!(self.next_of("notification").await.seq(), seq);
        }
    }

    /// The close, after which the body ends.
    pub async fn closed(mut self) -> StreamEvent {
        let close = self.next_of("close").await;
        assert_eq!(self.next().await, None, "an event after the close");
        close
    }

    async fn read(&mut self) -> Option<StreamEvent> {
        loop {
            self.decode();
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = parse(event);
                self.text = rest.to_owned();
                return Some(event);
            }
            let read = self.connection.read_buf(&mut self.bytes).await;
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Moves the complete chunks to the text.
    fn decode(&mut self) {
        if !self.is_chunked {
            let bytes = std::mem::take(&mut self.bytes);
            self.text += &String::from_utf8(bytes).expect("UTF-8");
            return;
        }
        while let Some(end) = self.bytes.windows(2).position(|two| two == b"\r\n") {
            let length = std::str::from_utf8(&self.bytes[..end]).expect("a length");
            let length = usize::from_str_radix(length, 16).expect("a length");
            if self.bytes.len() < end + 2 + length + 2 {
                return;
            }
            let chunk: Vec<u8> = self.bytes.drain(..end + 2 + length + 2).collect();
            let chunk = &chunk[end + 2..];
            assert_eq!(&chunk[length..], b"\r\n", "the end of a chunk");
            self.text += std::str::from_utf8(&chunk[..length]).expect("UTF-8");
        }
    }
}

fn parse(event: &str) -> StreamEvent {
    let (mut parsed, mut data) = (StreamEvent::default(), Vec::new());
    for line in event.lines() {
        match line.split_once(": ").expect("a field") {
            ("id", id) => parsed.id = Some(id.to_owned()),
            ("retry", wait) => parsed.retry = Some(wait.parse().expect("milliseconds")),
            ("data", line) => data.push(line),
            field => panic!("an unknown field {field:?}"),
        }
    }
    parsed.frame = serde_json::from_str(&data.join("\n")).expect("a frame");
    parsed
}

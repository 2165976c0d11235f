//! The issuer of tokens: a small HTTP server on a real socket, which publishes a key set and fails
//! in every way.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::SigningKey;

/// The path of the key set.
const PATH: &str = "/keys.json";

/// A running issuer. It ends when it is dropped.
pub struct Issuer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

/// The answer to each request.
#[derive(Clone)]
pub enum Answer {
    /// A status, more lines of the head, and a body.
    Response(u16, String, String),
    /// The body of a good response, without its end.
    Endless,
    /// Nothing, for as long as the client waits.
    Silence,
    /// The end of the connection.
    Nothing,
}

impl Issuer {
    /// Starts with a set of these keys.
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("an address is free");
        let address = listener.local_addr().expect("it is bound");
        let answer = Arc::new(Mutex::new(set(keys)));
        let requests = Arc::<AtomicUsize>::default();
        let (answers, counted) = (answer.clone(), requests.clone());
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = answers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                // It fails if the client has ended.
                tokio::spawn(async move { _ = answer.send(socket).await });
            }
        });
        Self {
            address,
            answer,
            requests,
            serving,
        }
    }

    /// The URL of the key set.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Publishes these keys from now on.
    pub fn publish(&self, keys: &[&SigningKey]) {
        self.answer_with(set(keys));
    }

    /// Answers like this from now on.
    pub fn answer_with(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// The number of connections so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn set(keys: &[&SigningKey]) -> Answer {
    let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
    Answer::Response(200, String::new(), json!({ "keys": keys }).to_string())
}

impl Answer {
    async fn send(self, mut socket: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if socket.read(&mut byte).await? == 0 {
                return Ok(());
            }
            head.extend(byte);
        }
        assert!(
            head.starts_with(format!("GET {PATH} HTTP/1.1\r\n").as_bytes()),
            "{}",
            String::from_utf8_lossy(&head)
        );
        match self {
            Self::Response(status, more, body) => {
                let length = body.len();
                let response =
                    format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\n{more}\r\n{body}");
                socket.write_all(response.as_bytes()).await
            }
            Self::Endless => {
                socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                loop {
                    socket.write_all(&[b' '; 4096]).await?;
                }
            }
            Self::Silence => socket.read(&mut [0]).await.map(drop),
            Self::Nothing => Ok(()),
        }
    }
}

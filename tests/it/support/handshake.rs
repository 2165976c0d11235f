//! The handshake of a merchant's client: its token, its page, and the result.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::frames::{FeedState, Frame, Welcome};
use super::http::{self, Reply};
use super::raw_socket::RawSocket;
use super::seen::Seen;
use super::{Merchant, PATIENCE, Token};

/// A merchant about to connect, with the parts of its handshake.
#[derive(Clone)]
pub struct Handshake {
    who: String,
    token: Presented,
    origin: Option<String>,
    headers: Vec<String>,
    query: Vec<String>,
    after: BTreeMap<String, u64>,
    versions: BTreeMap<String, u64>,
    /// Feed, version and epoch.
    placed: Option<(String, u64, String)>,
}

#[derive(Clone)]
enum Presented {
    Nothing,
    InHeader(String),
    AsSubprotocol(String),
}

impl Handshake {
    /// As `who`, with `token` in the `Authorization` header. This is a program, not a browser.
    pub fn new(who: &str, token: &Token) -> Self {
        let token = Presented::InHeader(token.sign());
        let (after, versions) = (BTreeMap::new(), BTreeMap::new());
        Self {
            who: who.to_owned(),
            token,
            origin: None,
            headers: Vec::new(),
            query: Vec::new(),
            after,
            versions,
            placed: None,
        }
    }

    /// Another token, as text, valid or not.
    pub fn token(mut self, token: String) -> Self {
        self.token = Presented::InHeader(token);
        self
    }

    /// No token at all.
    pub fn without_token(mut self) -> Self {
        self.token = Presented::Nothing;
        self
    }

    /// The token as a subprotocol, because a browser's script has no other way.
    pub fn by_subprotocol(mut self) -> Self {
        if let Presented::InHeader(token) = self.token {
            self.token = Presented::AsSubprotocol(token);
        }
        self
    }

    /// The `Origin` header of a browser.
    pub fn origin(mut self, origin: &str) -> Self {
        self.origin = Some(origin.to_owned());
        self
    }

    /// Any other header, for example of a proxy.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(format!("{name}: {value}\r\n"));
        self
    }

    /// This device has a cursor of its own.
    pub fn device(mut self, device: &str) -> Self {
        self.query.push(format!("device={device}"));
        self
    }

    /// Any other part of the query.
    pub fn with_query(mut self, query: &str) -> Self {
        self.query.push(query.to_owned());
        self
    }

    /// The client keeps its own place: it asks for all after `seq`.
    pub fn after(mut self, feed: &str, seq: u64) -> Self {
        self.query.push(format!("after={feed}:{seq}"));
        self.after.insert(feed.to_owned(), seq);
        self
    }

    /// The client has received the marks up to `version`.
    pub fn state(mut self, feed: &str, version: u64) -> Self {
        self.query.push(format!("state={feed}:{version}"));
        self.versions.insert(feed.to_owned(), version);
        self
    }

    /// The client keeps its own place and version of that epoch. The server may ignore them: the
    /// welcome decides.
    pub fn place(mut self, feed: &str, seq: u64, version: u64, epoch: &str) -> Self {
        self.query.push(format!("after={feed}:{seq}:{epoch}"));
        self.query.push(format!("state={feed}:{version}:{epoch}"));
        self.placed = Some((feed.to_owned(), version, epoch.to_owned()));
        self
    }

    /// Connects, and reads the welcome.
    pub async fn connect(&self, address: SocketAddr) -> Merchant {
        match self.try_connect(address).await {
            Ok(merchant) => merchant,
            Err(instead) => panic!("{} expected a welcome: {instead}", self.who),
        }
    }

    /// Connects, and reads the welcome. If that fails, the error describes the response.
    pub async fn try_connect(&self, address: SocketAddr) -> Result<Merchant, String> {
        let (welcome, socket) = self.open(address).await?;
        let mut versions = self.versions.clone();
        if let Some((feed, version, epoch)) = &self.placed {
            let is_used = |state: &FeedState| {
                state.feed == *feed && state.epoch == *epoch && *version <= state.version
            };
            versions.extend(
                welcome
                    .feeds
                    .iter()
                    .any(is_used)
                    .then(|| (feed.clone(), *version)),
            );
        }
        let seen = Seen::new(&self.who, &welcome, &self.after, &versions);
        Ok(Merchant::new(&self.who, welcome, seen, socket))
    }

    /// The same for a client that checks nothing: the welcome, and the socket after it.
    pub async fn open(
        &self,
        address: SocketAddr,
    ) -> Result<(Welcome, WebSocketStream<TcpStream>), String> {
        let (reply, mut socket) = self.knock(address).await?;
        if reply.status != 101 {
            return Err(format!("{reply:?}"));
        }
        assert_eq!(
            reply.header("sec-websocket-protocol"),
            self.expected_subprotocol(),
            "{reply:?}"
        );
        let message = timeout(PATIENCE, socket.next())
            .await
            .map_err(|_| "no first frame".to_owned())?;
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            other => return Err(format!("{other:?}")),
        };
        match Frame::parse(&text).map_err(|error| error.to_string())? {
            Frame::Welcome(welcome) => Ok((welcome, socket)),
            _ => Err(text.to_string()),
        }
    }

    /// Expects an HTTP response that refuses the handshake.
    pub async fn refused(&self, address: SocketAddr) -> Reply {
        let (reply, _) = self.knock(address).await.expect("a refusal is a response");
        assert_ne!(reply.status, 101, "{} was let in", self.who);
        reply
    }

    /// Expects that the upgrade completes and that only a close follows.
    pub async fn closed_at_once(&self, address: SocketAddr) -> Closed {
        let closed = self.closed_or_welcomed(address).await;
        closed.unwrap_or_else(|| panic!("{} expected a close and got a welcome", self.who))
    }

    /// Expects that the upgrade completes. `None` if a session begins.
    pub async fn closed_or_welcomed(&self, address: SocketAddr) -> Option<Closed> {
        let (reply, mut socket) = self.knock(address).await.expect("an upgrade");
        assert_eq!(reply.status, 101, "{reply:?}");
        assert_eq!(
            reply.header("sec-websocket-protocol"),
            self.expected_subprotocol(),
            "{reply:?}"
        );
        match timeout(PATIENCE, socket.next()).await.expect("a close") {
            Some(Ok(Message::Close(Some(frame)))) => Some(Closed::from(&frame)),
            Some(Ok(Message::Text(_))) => None,
            other => panic!("{} expected a close and got {other:?}", self.who),
        }
    }

    /// Connects as a client of bytes, which has read nothing yet.
    pub async fn connect_raw(&self, address: SocketAddr) -> RawSocket {
        let (reply, stream, read_ahead) = self.exchange(address).await.expect("an answer");
        assert_eq!(reply.status, 101, "{reply:?}");
        RawSocket::new(stream, read_ahead)
    }

    fn expected_subprotocol(&self) -> Option<&'static str> {
        matches!(self.token, Presented::AsSubprotocol(_)).then_some("shopbell.v1")
    }

    async fn knock(
        &self,
        address: SocketAddr,
    ) -> Result<(Reply, WebSocketStream<TcpStream>), String> {
        let (reply, stream, read_ahead) = self.exchange(address).await?;
        Ok((
            reply,
            WebSocketStream::from_partially_read(stream, read_ahead, Role::Client, None).await,
        ))
    }

    /// The opening handshake of RFC 6455 §4.1, by hand, so that a refusal can be read to its end.
    async fn exchange(&self, address: SocketAddr) -> Result<(Reply, TcpStream, Vec<u8>), String> {
        let key = STANDARD.encode(fastrand::u128(..).to_le_bytes());
        let query = if self.query.is_empty() {
            String::new()
        } else {
            format!("?{}", self.query.join("&"))
        };
        let mut request = format!(
            "GET /v1/ws{query} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        );
        match &self.token {
            Presented::Nothing => {}
            Presented::InHeader(token) => request += &format!("Authorization: Bearer {token}\r\n"),
            Presented::AsSubprotocol(token) => {
                request += &format!("Sec-WebSocket-Protocol: shopbell.v1, bearer.{token}\r\n");
            }
        }
        if let Some(origin) = &self.origin {
            request += &format!("Origin: {origin}\r\n");
        }
        request += &self.headers.concat();
        request += "\r\n";
        let handshake = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let reply = http::exchange(&mut stream, &request).await?;
            Ok::<_, std::io::Error>((reply, stream))
        };
        let (mut reply, stream) = timeout(PATIENCE, handshake)
            .await
            .map_err(|_| "no answer")?
            .map_err(|error| error.to_string())?;
        if reply.status == 101 {
            let accept = derive_accept_key(key.as_bytes());
            assert_eq!(
                reply.header("sec-websocket-accept"),
                Some(accept.as_str()),
                "{reply:?}"
            );
        }
        let read_ahead = if reply.status == 101 {
            std::mem::take(&mut reply.body)
        } else {
            Vec::new()
        };
        Ok((reply, stream, read_ahead))
    }
}

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The close code; 1006 if there was none.
    pub code: u16,
    /// The `code` in the JSON of the reason: a word.
    pub word: Option<String>,
    /// The time to reconnect, if the reason has one.
    pub retry_after_ms: Option<u64>,
}

impl Closed {
    /// The connection was lost without a close frame.
    pub const ABNORMAL: Self = Self {
        code: 1006,
        word: None,
        retry_after_ms: None,
    };
}

impl From<&CloseFrame> for Closed {
    fn from(frame: &CloseFrame) -> Self {
        #[derive(serde::Deserialize)]
        struct Reason {
            code: String,
            retry_after_ms: Option<u64>,
        }
        let reason: Option<Reason> = serde_json::from_str(&frame.reason).ok();
        Self {
            code: frame.code.into(),
            retry_after_ms: reason.as_ref().and_then(|reason| reason.retry_after_ms),
            word: reason.map(|reason| reason.code),
        }
    }
}

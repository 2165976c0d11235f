//! AMQP 0-9-1 byte by byte, for publishes that RabbitMQ confirms although no ordinary client sends
//! them.

use lapin::uri::AMQPUri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, url};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
/// In the header frame: content type, headers and delivery mode follow.
const PROPERTIES: u16 = 1 << 15 | 1 << 13 | 1 << 12;

/// A publish whose texts need not be valid.
#[derive(Debug, Clone)]
pub struct RawMessage {
    pub routing_key: Vec<u8>,
    pub content_type: Vec<u8>,
    /// The entries of the header table: name, type and value of each.
    pub headers: Vec<u8>,
    pub body: Vec<u8>,
}

/// A publisher without any checks.
pub struct RawPublisher {
    stream: TcpStream,
    exchange: String,
}

impl RawPublisher {
    /// Connects. All events go to `exchange`.
    pub async fn connect(amqp_url: &str, exchange: &str) -> Self {
        let stream = TcpStream::connect(url::authority(amqp_url))
            .await
            .expect("RabbitMQ can be reached");
        let mut raw = Self {
            stream,
            exchange: exchange.to_owned(),
        };
        let uri: AMQPUri = amqp_url.parse().expect("AMQP_URL is a URL");
        let user = uri.authority.userinfo;
        let plain = format!("\0{}\0{}", user.username, user.password);
        raw.write(b"AMQP\0\0\x09\x01").await;
        raw.expect((10, 10)).await; // connection.start
        let start_ok = [
            b"\0\0\0\0",
            &short(b"PLAIN")[..],
            &long(plain.as_bytes()),
            &short(b"en_US"),
        ]
        .concat();
        raw.write(&method(0, (10, 11), &start_ok)).await;
        let tune = raw.expect((10, 30)).await;
        // As the server asks for it, but without heartbeats, which are the last two bytes.
        raw.write(&method(0, (10, 31), &[&tune[..6], b"\0\0"].concat()))
            .await;
        let open = [short(uri.vhost.as_bytes()), short(b""), vec![0]].concat();
        for (channel, request, arguments) in [
            (0, (10, 40), &open[..]),
            (1, (20, 10), b"\0"),
            (1, (85, 10), b"\0"),
        ] {
            raw.write(&method(channel, request, arguments)).await; // connection.open, channel.open, confirm.select
            raw.expect((request.0, request.1 + 1)).await;
        }
        raw
    }

    /// Publishes one, persistent, and waits for its confirm.
    pub async fn publish(&mut self, message: &RawMessage) {
        let publish = [
            b"\0\0",
            &short(self.exchange.as_bytes())[..],
            &short(&message.routing_key),
            b"\0",
        ]
        .concat();
        let mut header = [0, 60, 0, 0].to_vec();
        header.extend((message.body.len() as u64).to_be_bytes());
        header.extend(PROPERTIES.to_be_bytes());
        header.extend(
            [
                short(&message.content_type),
                long(&message.headers),
                vec![2],
            ]
            .concat(),
        );
        let frames = [
            method(1, (60, 40), &publish),
            frame(HEADER, 1, &header),
            frame(BODY, 1, &message.body),
        ];
        self.write(&frames.concat()).await;
        self.expect((60, 80)).await; // basic.ack
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("RabbitMQ listens");
    }

    /// Reads the next frame, which must be this method, and returns its arguments.
    async fn expect(&mut self, (class, id): (u16, u16)) -> Vec<u8> {
        let read = async {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; length as usize + 1];
            self.stream.read_exact(&mut payload).await.map(|_| payload)
        };
        let payload = timeout(PATIENCE, read)
            .await
            .expect("RabbitMQ replies in time")
            .expect("RabbitMQ answers");
        let is_it = payload.starts_with(&[class.to_be_bytes(), id.to_be_bytes()].concat());
        assert!(is_it, "no method {class}.{id}: {}", payload.escape_ascii());
        payload[4..payload.len() - 1].to_vec()
    }
}

/// A header value: this many nested arrays.
pub fn nested_arrays(levels: usize) -> Vec<u8> {
    const LEVEL_BYTES: usize = 5;
    (0..levels)
        .rev()
        .flat_map(|inside| [b"A", &((inside * LEVEL_BYTES) as u32).to_be_bytes()[..]].concat())
        .collect()
}

fn method(channel: u16, (class, id): (u16, u16), arguments: &[u8]) -> Vec<u8> {
    frame(
        METHOD,
        channel,
        &[&class.to_be_bytes(), &id.to_be_bytes(), arguments].concat(),
    )
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend(long(payload));
    frame.push(FRAME_END);
    frame
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short string")], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

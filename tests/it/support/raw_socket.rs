//! A WebSocket client of bytes. It sends frames that no library sends, at any moment.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// First bytes of frames: the final bit and the opcode (RFC 6455 §5.2).
pub const TEXT: u8 = 0x81;
pub const FIRST_FRAGMENT: u8 = 0x01;
pub const CONTINUATION: u8 = 0x00;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;

/// A connection after its upgrade.
pub struct RawSocket {
    stream: TcpStream,
    read: Vec<u8>,
}

impl RawSocket {
    /// Continues on `stream`, after the bytes `read`.
    pub(super) fn new(stream: TcpStream, read: Vec<u8>) -> Self {
        Self { stream, read }
    }

    /// Sends these frames in one write; false if the server has ended the connection.
    pub async fn send(&mut self, frames: &[(u8, &[u8])]) -> bool {
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|(first, payload)| masked(*first, payload))
            .collect();
        self.send_bytes(&bytes).await
    }

    /// Sends these bytes; false if the server has ended the connection.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.stream.write_all(bytes))
            .await
            .expect("the server reads")
            .is_ok()
    }

    /// The first byte and the payload of the next frame; `None` at the end of the connection.
    pub async fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, length)) = header(&self.read)
                && self.read.len() >= header + length
            {
                let rest = self.read.split_off(header + length);
                let frame = std::mem::replace(&mut self.read, rest);
                return Some((frame[0], frame[header..].to_vec()));
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read))
                .await
                .expect("a frame or the end");
            if read.is_ok_and(|bytes| bytes == 0) || self.read.is_empty() {
                return None;
            }
        }
    }

    /// Reads until a close frame, and returns its code and its reason.
    pub async fn next_close(&mut self) -> (u16, String) {
        while let Some((first, payload)) = self.next_frame().await {
            if first == CLOSE {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (
                    code,
                    String::from_utf8(payload[2..].to_vec()).expect("a reason is UTF-8"),
                );
            }
        }
        panic!("the connection ended without a close");
    }

    /// Reads until this many notifications have arrived.
    pub async fn notifications(&mut self, count: usize) {
        let mut seen = 0;
        while seen < count {
            let (first, payload) = self.next_frame().await.expect("notifications");
            assert_ne!(first, CLOSE, "{}", String::from_utf8_lossy(&payload));
            seen += usize::from(payload.starts_with(br#"{"type":"notification""#));
        }
    }
}

/// A frame of a client, masked with zeros (RFC 6455 §5.3).
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()).expect("a small frame") {
        length @ ..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Lengths of a server's header and of its payload, if the header is complete.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        126 => Some((
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        )),
        127 => Some((
            10,
            u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        )),
        length => Some((2, length.into())),
    }
}

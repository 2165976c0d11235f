//! The headers of the frames that a server sends (RFC 6455 §5.2). Pure.

use super::{CLOSE, FINAL, PING, PONG, TEXT};

/// The kind of a frame that the server sends. It is never fragmented or masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
    /// A close.
    Close,
}

/// The header of a frame that the server sends.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; 10],
    length: u8,
}

impl Header {
    /// Makes the header of a frame with this payload length.
    pub fn new(kind: Kind, payload_bytes: usize) -> Self {
        let opcode = match kind {
            Kind::Text => TEXT,
            Kind::Ping => PING,
            Kind::Pong => PONG,
            Kind::Close => CLOSE,
        };
        let (mut bytes, length) = ([0; 10], payload_bytes as u64);
        bytes[0] = FINAL | opcode;
        let header_bytes = if payload_bytes < 126 {
            bytes[1] = payload_bytes as u8;
            2
        } else if let Ok(short) = u16::try_from(payload_bytes) {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&short.to_be_bytes());
            4
        } else {
            bytes[1] = 127;
            bytes[2..10].copy_from_slice(&length.to_be_bytes());
            10
        };
        Self {
            bytes,
            length: header_bytes,
        }
    }

    /// The bytes of the header.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

    use super::*;

    #[test]
    fn headers_are_equal_to_tungstenites() {
        let kinds = [
            (Kind::Text, OpCode::Data(Data::Text)),
            (Kind::Ping, OpCode::Control(Control::Ping)),
            (Kind::Pong, OpCode::Control(Control::Pong)),
            (Kind::Close, OpCode::Control(Control::Close)),
        ];
        for (kind, opcode) in kinds {
            for length in [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000] {
                let mut theirs = Vec::new();
                FrameHeader {
                    opcode,
                    ..FrameHeader::default()
                }
                .format(length, &mut theirs)
                .unwrap();
                assert_eq!(
                    Header::new(kind, length as usize).as_bytes(),
                    theirs,
                    "{kind:?} of {length}"
                );
            }
        }
    }
}

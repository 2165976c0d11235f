//! WebSocket frames of a server (RFC 6455): bytes of the client come in, frames go out. Pure.
//!
//! tungstenite's codec is not used, because each session would keep the largest buffer that it ever
//! needed, and because it hides fragments. A [`Decoder`] between two frames holds no memory. It
//! returns every fragment, so that the session can count it.

mod header;

use std::mem;

pub use self::header::{Header, Kind};

/// Longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// The longest header: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

/// A frame of a client. "Message" is the term of RFC 6455: one or more frames with a text or binary
/// payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A text message, whole.
    Text(String),
    /// A binary message. Its payload is not kept.
    Binary,
    /// A fragment of a message, but not the last one.
    Fragment,
    /// A ping, with the payload for the pong.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// A close, with its code.
    Close(Option<u16>),
}

/// A fault in the bytes of a client, after which no frame can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The framing is broken: close code 1002.
    Framing,
    /// A text is not UTF-8: close code 1007.
    NotUtf8,
    /// A message is longer than the bound: close code 1009.
    TooBig,
}

/// Decodes the frames of a client.
#[derive(Debug)]
pub struct Decoder {
    bytes_max: usize,
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    /// The frame with a complete header and an incomplete payload.
    frame: Option<Frame>,
    message: Option<Message>,
    /// The payload of a control frame, which may come between fragments.
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: u8,
    is_final: bool,
    left: usize,
    mask: [u8; 4],
}

#[derive(Debug)]
struct Message {
    is_text: bool,
    payload: Vec<u8>,
    /// Number of bytes of `payload` that are whole characters.
    checked: usize,
    /// Bytes of a binary message, which are not kept.
    dropped: usize,
}

impl Decoder {
    /// Makes a decoder of messages with at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            frame: None,
            message: None,
            control: Vec::new(),
        }
    }

    /// Takes bytes until a frame is complete. Returns `None` if the bytes end before.
    pub fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Incoming>, Fault> {
        if self.frame.is_none() {
            self.frame = self.take_header(bytes)?;
        }
        let Some(mut frame) = self.frame.take() else {
            return Ok(None);
        };
        self.take_payload(&mut frame, bytes);
        self.check_text()?;
        if frame.left > 0 {
            self.frame = Some(frame);
            return Ok(None);
        }
        self.complete(frame).map(Some)
    }

    fn take_header(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, Fault> {
        loop {
            let come = usize::from(self.header_bytes);
            if come >= 2 {
                // Before the rest, because a client that does not mask may never send six bytes.
                self.check_first_bytes()?;
                if come == header_bytes(self.header[1]) {
                    self.header_bytes = 0;
                    return self.check_length(come).map(Some);
                }
            }
            let Some((first, rest)) = bytes.split_first() else {
                return Ok(None);
            };
            self.header[come] = *first;
            self.header_bytes += 1;
            *bytes = rest;
        }
    }

    /// Checks the first two bytes of a header by the rules for clients (RFC 6455 §5.2, §5.4, §5.5).
    fn check_first_bytes(&self) -> Result<(), Fault> {
        let [first, second, ..] = self.header;
        let is_allowed = match first & 0x0f {
            CONTINUATION => self.message.is_some(),
            TEXT | BINARY => self.message.is_none(),
            CLOSE | PING | PONG => {
                first & FINAL != 0 && usize::from(second & !MASKED) <= CONTROL_BYTES_MAX
            }
            _ => false,
        };
        match is_allowed && first & RESERVED == 0 && second & MASKED != 0 {
            true => Ok(()),
            false => Err(Fault::Framing),
        }
    }

    /// Checks the length of a complete header, and begins a message.
    fn check_length(&mut self, header_bytes: usize) -> Result<Frame, Fault> {
        let [first, second, ..] = self.header;
        let opcode = first & 0x0f;
        let (extended, mask) = self.header[2..header_bytes].split_at(header_bytes - 6);
        let written = extended
            .iter()
            .fold(0, |length, byte| length << 8 | u64::from(*byte));
        let (length, shortest, longest) = match extended.len() {
            0 => (u64::from(second & !MASKED), 0, u64::MAX),
            2 => (written, 126, u64::MAX),
            _ => (written, 65_536, u64::MAX >> 1),
        };
        // A length has its shortest form, and its highest bit is 0 (RFC 6455 §5.2).
        if !(shortest..=longest).contains(&length) {
            return Err(Fault::Framing);
        }
        let mask = [mask[0], mask[1], mask[2], mask[3]];
        if matches!(opcode, TEXT | BINARY) {
            self.message = Some(Message {
                is_text: opcode == TEXT,
                payload: Vec::new(),
                checked: 0,
                dropped: 0,
            });
        }
        let come = match &self.message {
            Some(message) if opcode < CLOSE => message.payload.len() + message.dropped,
            _ => 0,
        };
        // The client chooses the length, so it is compared as `u64`.
        if opcode < CLOSE && length > (self.bytes_max - come) as u64 {
            return Err(Fault::TooBig);
        }
        Ok(Frame {
            opcode,
            is_final: first & FINAL != 0,
            left: length as usize,
            mask,
        })
    }

    fn take_payload(&mut self, frame: &mut Frame, bytes: &mut &[u8]) {
        let (come, rest) = bytes.split_at(frame.left.min(bytes.len()));
        *bytes = rest;
        frame.left -= come.len();
        let payload = match &mut self.message {
            _ if frame.opcode >= CLOSE => &mut self.control,
            Some(message) if message.is_text => &mut message.payload,
            Some(message) => {
                message.dropped += come.len();
                return;
            }
            None => return,
        };
        let unmasked = come
            .iter()
            .zip(frame.mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask);
        payload.extend(unmasked);
        // The next part of the payload continues at this byte of the mask.
        frame.mask.rotate_left(come.len() % 4);
    }

    /// Checks the new bytes of a text. A text that cannot become UTF-8 fails at once (RFC 6455 §8.1).
    fn check_text(&mut self) -> Result<(), Fault> {
        let Some(message) = self.message.as_mut().filter(|message| message.is_text) else {
            return Ok(());
        };
        match std::str::from_utf8(&message.payload[message.checked..]) {
            Ok(text) => message.checked += text.len(),
            Err(error) if error.error_len().is_none() => message.checked += error.valid_up_to(),
            Err(_) => return Err(Fault::NotUtf8),
        }
        Ok(())
    }

    fn complete(&mut self, frame: Frame) -> Result<Incoming, Fault> {
        match frame.opcode {
            PING => Ok(Incoming::Ping(mem::take(&mut self.control))),
            PONG => {
                self.control = Vec::new();
                Ok(Incoming::Pong)
            }
            CLOSE => close_of(&mem::take(&mut self.control)),
            _ if !frame.is_final => Ok(Incoming::Fragment),
            _ => match self.message.take() {
                Some(message) if message.is_text => String::from_utf8(message.payload)
                    .map(Incoming::Text)
                    .map_err(|_| Fault::NotUtf8),
                _ => Ok(Incoming::Binary),
            },
        }
    }
}

/// The length of a header, from its second byte.
fn header_bytes(second: u8) -> usize {
    let length_bytes = match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length_bytes + 4
}

/// Parses the payload of a close: nothing, or a code and a reason (RFC 6455 §5.5.1).
fn close_of(payload: &[u8]) -> Result<Incoming, Fault> {
    match payload {
        [] => Ok(Incoming::Close(None)),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let is_allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            match std::str::from_utf8(reason) {
                Ok(_) if is_allowed => Ok(Incoming::Close(Some(code))),
                Ok(_) => Err(Fault::Framing),
                Err(_) => Err(Fault::NotUtf8),
            }
        }
        [_] => Err(Fault::Framing),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

//! The frames of AMQP 0-9-1 in a stream of bytes.

/// The length of the protocol header, which a client sends before its first frame.
const PROTOCOL_HEADER_BYTES: usize = 8;
/// The head of a frame: type, channel, length.
const HEAD_BYTES: usize = 7;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
/// The octet that ends a frame.
const FRAME_END: u8 = 0xce;
/// The class `basic`.
const BASIC: [u8; 2] = [0, 60];
/// Class and method of `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// In a content header frame: class and weight, before the size of the body.
const BODY_SIZE_AT: usize = 4;

/// Splits a stream into frames.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// The protocol header was taken, or there is none.
    begun: bool,
}

/// A frame with its head and its last octet, or the protocol header.
pub struct Frame(pub Vec<u8>);

impl Frames {
    /// The stream of a client.
    pub fn of_client() -> Self {
        Self::default()
    }

    /// The stream of RabbitMQ.
    pub fn of_server() -> Self {
        Self {
            begun: true,
            ..Self::default()
        }
    }

    /// Adds bytes, and takes the frames that are whole.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.bytes.extend(bytes);
        let (mut frames, mut begin) = (Vec::new(), 0);
        while let Some(length) = self.next_length(begin) {
            let end = begin + length;
            frames.push(Frame(self.bytes[begin..end].to_vec()));
            (self.begun, begin) = (true, end);
        }
        self.bytes.drain(..begin);
        frames
    }

    /// The length of the next frame if it is whole.
    fn next_length(&self, begin: usize) -> Option<usize> {
        let rest = &self.bytes[begin..];
        let length = if self.begun {
            let length = rest.get(3..HEAD_BYTES)?;
            let length = length.try_into().ok().map(u32::from_be_bytes)?;
            // With the octet that ends it.
            HEAD_BYTES + length as usize + 1
        } else {
            PROTOCOL_HEADER_BYTES
        };
        (rest.len() >= length).then_some(length)
    }
}

impl Frame {
    /// The number of its channel.
    pub fn channel(&self) -> [u8; 2] {
        [self.0[1], self.0[2]]
    }

    /// Whether it is a method frame with this class and method.
    pub fn is_method(&self, method: [u8; 4]) -> bool {
        self.is(METHOD) && self.payload().starts_with(&method)
    }

    /// The exchange of a delivery. `None` if it is another frame.
    pub fn delivered_from(&self) -> Option<&[u8]> {
        if !self.is_method(DELIVER) {
            return None;
        }
        let (_consumer_tag, rest) = short(&self.payload()[DELIVER.len()..])?;
        // The delivery tag, and whether it is a redelivery.
        Some(short(rest.get(8 + 1..)?)?.0)
    }

    /// Whether it is a content header, and the body that follows has more bytes than these.
    pub fn has_body_above(&self, bytes: usize) -> bool {
        let size = self.payload().get(BODY_SIZE_AT..BODY_SIZE_AT + 8);
        let size = size.and_then(|size| size.try_into().ok());
        self.is(HEADER) && size.map(u64::from_be_bytes) > Some(bytes as u64)
    }

    /// Whether it belongs to the method before it: a content header or a body.
    pub fn is_content(&self) -> bool {
        !self.is(METHOD)
    }

    fn is(&self, kind: u8) -> bool {
        self.0.len() > HEAD_BYTES && self.0[0] == kind
    }

    fn payload(&self) -> &[u8] {
        self.0.get(HEAD_BYTES..).unwrap_or_default()
    }
}

/// The frames of a content without properties: its header and its body.
pub fn content(channel: [u8; 2], body: &[u8]) -> Vec<u8> {
    let mut header = BASIC.to_vec();
    // The weight, which is always 0.
    header.extend([0; 2]);
    header.extend((body.len() as u64).to_be_bytes());
    // No property.
    header.extend([0; 2]);
    [frame(HEADER, channel, &header), frame(BODY, channel, body)].concat()
}

fn frame(kind: u8, channel: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&[kind], &channel[..], &length[..], payload, &[FRAME_END]].concat()
}

/// A short string and the bytes after it.
fn short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

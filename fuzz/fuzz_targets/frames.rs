//! Bytes of a client become WebSocket frames, and texts become frames of the protocol.
//!
//! The first byte of the input is the size of the pieces in which the others arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shopbell::gateway::session::framing::{CONTROL_BYTES_MAX, Decoder, Fault, Incoming};
use shopbell::model::protocol::ClientFrame;
use shopbell_fuzz::within;

const TEXT_BYTES_MAX: usize = 1_024;
/// A message and a control frame, each with the reserve of its buffer.
const MEMORY_BYTES: usize = 2 * TEXT_BYTES_MAX + 2 * CONTROL_BYTES_MAX + 1_024;

fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else {
        return;
    };
    let whole = decoded(bytes, bytes.len().max(1));
    let pieces = decoded(bytes, usize::from(*piece).max(1));
    assert_eq!(whole, pieces, "the result does not depend on TCP segments");
    for incoming in whole.0 {
        match incoming {
            Incoming::Text(text) => {
                assert!(text.len() <= TEXT_BYTES_MAX);
                check_text(&text);
                let again = decoded(&masked(&text), 3);
                assert_eq!(again, (vec![Incoming::Text(text)], None));
            }
            Incoming::Ping(payload) => assert!(payload.len() <= CONTROL_BYTES_MAX),
            Incoming::Close(Some(code)) => assert!((1_000..5_000).contains(&code)),
            Incoming::Close(None) | Incoming::Binary | Incoming::Fragment | Incoming::Pong => {}
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_text(text);
    }
});

/// The frames before the first fault. The decoder never uses more memory than its bound.
fn decoded(bytes: &[u8], piece: usize) -> (Vec<Incoming>, Option<Fault>) {
    let mut decoder = Decoder::new(TEXT_BYTES_MAX);
    let mut all = Vec::new();
    for mut piece in bytes.chunks(piece) {
        loop {
            match within(MEMORY_BYTES, || decoder.take(&mut piece)) {
                Ok(Some(incoming)) => all.push(incoming),
                Ok(None) => break,
                Err(fault) => return (all, Some(fault)),
            }
        }
        assert!(piece.is_empty(), "bytes were left");
    }
    (all, None)
}

fn masked(text: &str) -> Vec<u8> {
    let length = text.len() as u16;
    let mut frame = match length {
        0..126 => vec![0x81, 0x80 | length as u8],
        _ => [&[0x81, 0xfe][..], &length.to_be_bytes()].concat(),
    };
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

fn check_text(text: &str) {
    // Each number of a list has at least two bytes, and becomes eight.
    match within(32 * text.len() + 4_096, || ClientFrame::parse(text)) {
        Some(ClientFrame::Ack { feed, .. }) => assert!(feed.len() <= text.len()),
        Some(ClientFrame::Read { seqs, .. }) => {
            assert!(seqs.is_none_or(|seqs| seqs.len() < text.len()))
        }
        Some(ClientFrame::Handle { seqs, .. }) => assert!(seqs.len() < text.len()),
        Some(ClientFrame::Auth { token }) => assert!(token.len() <= text.len()),
        Some(ClientFrame::DeviceState(_) | ClientFrame::Ping | ClientFrame::Unknown) | None => {}
    }
}

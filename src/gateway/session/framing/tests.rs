//! Frames of clients, whole and in pieces, and the faults in them.

use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as TheirFrame;
use tokio_tungstenite::tungstenite::protocol::frame::FrameSocket;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::*;

/// A client's frame, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x5a, 0x00, 0xff, 0x13];
    let mut bytes = vec![first];
    let length = payload.len();
    match length {
        0..126 => bytes.push(MASKED | length as u8),
        126..65_536 => {
            bytes.push(MASKED | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(MASKED | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

fn decoded(bytes: &[u8], piece: usize, bytes_max: usize) -> Result<Vec<Incoming>, Fault> {
    let (mut decoder, mut all) = (Decoder::new(bytes_max), Vec::new());
    for mut piece in bytes.chunks(piece) {
        while let Some(incoming) = decoder.take(&mut piece)? {
            all.push(incoming);
        }
    }
    Ok(all)
}

#[track_caller]
fn check(frames: &[(u8, &[u8])], expected: &Result<Vec<Incoming>, Fault>) {
    let bytes: Vec<u8> = frames
        .iter()
        .flat_map(|(first, payload)| frame(*first, payload))
        .collect();
    for piece in [1, 2, 3, 7, bytes.len().max(1)] {
        assert_eq!(
            &decoded(&bytes, piece, 1_000),
            expected,
            "in pieces of {piece}"
        );
    }
}

#[test]
fn messages_are_joined_and_fragments_are_returned() {
    let text = Incoming::Text("Hellö".into());
    check(&[(0x81, "Hellö".as_bytes())], &Ok(vec![text.clone()]));
    check(
        &[
            (0x01, b"Hell"),
            (0x89, b"p"),
            (0x00, b""),
            (0x00, b"\xc3"),
            (0x80, b"\xb6"),
            (0x8a, b""),
        ],
        &Ok(vec![
            Incoming::Fragment,
            Incoming::Ping(b"p".into()),
            Incoming::Fragment,
            Incoming::Fragment,
            text,
            Incoming::Pong,
        ]),
    );
    check(
        &[(0x82, &[0; 999]), (0x81, &[b'x'; 1_000])],
        &Ok(vec![Incoming::Binary, Incoming::Text("x".repeat(1_000))]),
    );
    check(
        &[(0x88, b""), (0x88, b"\x03\xe8bye")],
        &Ok(vec![Incoming::Close(None), Incoming::Close(Some(1000))]),
    );
}

#[test]
fn each_fault_has_its_name() {
    for first in [
        0xc1, 0xa1, 0x91, 0x83, 0x87, 0x8b, 0x8f, 0x80, 0x00, 0x09, 0x08,
    ] {
        check(&[(first, b"x")], &Err(Fault::Framing));
    }
    check(&[(0x01, b"x"), (0x81, b"x")], &Err(Fault::Framing));
    check(&[(0x89, &[0; 126])], &Err(Fault::Framing));
    for payload in [
        &b"\x03"[..],
        b"\x03\xed",
        b"\x03\xee",
        b"\x00\x01",
        b"\xff\xff",
    ] {
        check(&[(0x88, payload)], &Err(Fault::Framing));
    }
    check(&[(0x88, b"\x03\xe8\xff")], &Err(Fault::NotUtf8));
    check(&[(0x81, b"\xff")], &Err(Fault::NotUtf8));
    check(&[(0x81, &[b'x'; 1_001])], &Err(Fault::TooBig));
    check(
        &[(0x01, &[b'x'; 600]), (0x80, &[b'x'; 401])],
        &Err(Fault::TooBig),
    );
    check(&[(0x02, &[0; 600]), (0x80, &[0; 401])], &Err(Fault::TooBig));
}

#[test]
fn a_fault_is_found_before_the_rest_of_its_frame() {
    let fault = |bytes: &[u8]| decoded(bytes, 3, 1_000);
    assert_eq!(fault(&[0x81, 0x01]), Err(Fault::Framing), "no mask");
    assert_eq!(fault(&[0x89, 0xfe]), Err(Fault::Framing), "a long ping");
    // The mask is zero. The two bytes cannot begin a character.
    let surrogate = [0x01, 0xe4, 0, 0, 0, 0, 0xed, 0xa0];
    assert_eq!(fault(&surrogate), Err(Fault::NotUtf8));
    let begun = [0x01, 0x81, 0, 0, 0, 0, 0xe2, 0x00, 0xe4, 0, 0, 0, 0];
    assert_eq!(fault(&begun), Ok(vec![Incoming::Fragment]));
    assert_eq!(fault(&[&begun[..], b"x"].concat()), Err(Fault::NotUtf8));
}

#[test]
fn a_length_has_its_shortest_form() {
    let with_length = |length: &[u8]| {
        let bytes = [&[0x82], length, &[0; 4]].concat();
        decoded(&bytes, 4, 1_000)
    };
    let not_complete = Ok(vec![]);
    assert_eq!(with_length(&[0xfe, 0, 125]), Err(Fault::Framing));
    assert_eq!(with_length(&[0xfe, 0, 126]), not_complete);
    assert_eq!(with_length(&[0xfe, 0xff, 0xff]), Err(Fault::TooBig));
    for (length, fault) in [
        (0x0000_ffff, Fault::Framing),
        (0x0001_0000, Fault::TooBig),
        (u64::MAX >> 1, Fault::TooBig),
        (1 << 63, Fault::Framing),
        (u64::MAX, Fault::Framing),
    ] {
        let header = [&[0xff][..], &u64::to_be_bytes(length)].concat();
        assert_eq!(with_length(&header), Err(fault), "{length}");
    }
}

#[test]
fn messages_and_control_frames_may_have_the_greatest_size() {
    let text = "x".repeat(1_000);
    check(
        &[(0x81, text.as_bytes())],
        &Ok(vec![Incoming::Text(text.clone())]),
    );
    let (start, end) = text.as_bytes().split_at(600);
    let parts = vec![Incoming::Fragment, Incoming::Text(text.clone())];
    check(&[(0x01, start), (0x80, end)], &Ok(parts));
    let ping = [0; CONTROL_BYTES_MAX];
    check(&[(0x89, &ping)], &Ok(vec![Incoming::Ping(ping.into())]));
    check(&[(0x81, &[b'x'; 1_001])], &Err(Fault::TooBig));
    check(&[(0x89, &[0; CONTROL_BYTES_MAX + 1])], &Err(Fault::Framing));
}

#[test]
fn a_decoder_between_frames_holds_no_memory() {
    let mut decoder = Decoder::new(100_000);
    let bytes = [
        frame(0x81, &[b'x'; 90_000]),
        frame(0x89, &[0; 125]),
        frame(0x8a, &[0; 125]),
    ]
    .concat();
    let mut rest = &bytes[..];
    while decoder.take(&mut rest).unwrap().is_some() {}
    assert!(rest.is_empty() && decoder.message.is_none());
    assert_eq!(decoder.control.capacity(), 0);
}

proptest! {
    #[test]
    fn frames_of_tungstenite_are_read_in_any_pieces(
        texts in vec(("\\PC{0,300}", vec(any::<u8>(), 0..126), 1_usize..5), 0..6),
        piece in 1_usize..200,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        let mut socket = FrameSocket::new(&mut bytes);
        let mut send = |frame: TheirFrame| {
            let mut frame = frame;
            frame.header_mut().mask = Some([9, 8, 7, 6]);
            socket.send(frame).unwrap();
        };
        for (text, ping, parts) in texts {
            let parts: Vec<&[u8]> = text.as_bytes().chunks(text.len() / parts + 1).collect();
            for (index, part) in parts.iter().enumerate() {
                let opcode = OpCode::Data(if index == 0 { Data::Text } else { Data::Continue });
                let is_last = index + 1 == parts.len();
                send(TheirFrame::message(part.to_vec(), opcode, is_last));
                if !is_last {
                    send(TheirFrame::ping(ping.clone()));
                    expected.extend([Incoming::Fragment, Incoming::Ping(ping.clone())]);
                }
            }
            if !parts.is_empty() {
                expected.push(Incoming::Text(text.clone()));
            }
        }
        prop_assert_eq!(decoded(&bytes, piece, 10_000), Ok(expected));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_hold_more_than_its_bound(
        bytes in vec(any::<u8>(), 0..600),
        piece in 1_usize..50,
    ) {
        let mut decoder = Decoder::new(200);
        'all: for mut piece in bytes.chunks(piece) {
            loop {
                match decoder.take(&mut piece) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
                let held = decoder.message.as_ref().map_or(0, |message| message.payload.len());
                prop_assert!(held <= 200 && decoder.control.len() <= CONTROL_BYTES_MAX);
            }
        }
    }
}

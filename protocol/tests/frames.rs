//! Framing: what was sent is what is read, however it was split; anything else is an error, within bounds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use proptest::prelude::*;
use protocol::{
    Decoder, Frame, FrameError, FrameType, HEADER, MAX_PAYLOAD, MAX_REQUEST, Sender, encode, header,
};

/// Feeds `bytes` in pieces of these sizes, over and over, and gives every frame to `on_frame`.
fn decode(
    sender: Sender,
    mut bytes: &[u8],
    sizes: &[usize],
    mut on_frame: impl FnMut(Frame<'_>),
) -> Result<(), FrameError> {
    let mut decoder = Decoder::new(sender);
    let mut sizes = sizes.iter().cycle();
    while !bytes.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty() && space.len() <= HEADER + MAX_REQUEST);
        let count = space.len().min(bytes.len()).min(*sizes.next().unwrap());
        space[..count].copy_from_slice(&bytes[..count]);
        decoder.filled(count);
        bytes = &bytes[count..];
        while let Some(frame) = decoder.next_frame()? {
            on_frame(frame);
        }
    }
    assert!(!decoder.is_partial());
    Ok(())
}

#[test]
fn what_is_behind_the_last_frame() {
    let mut bytes = Vec::new();
    Frame { kind: FrameType::Stdin, payload: b"in" }.encode(&mut bytes).unwrap();
    bytes.extend_from_slice(b"\xff no frame");
    let mut decoder = Decoder::new(Sender::Host);
    decoder.space()[..bytes.len()].copy_from_slice(&bytes);
    decoder.filled(bytes.len());
    assert_eq!(decoder.next_frame().unwrap().unwrap().payload, b"in");
    assert_eq!(decoder.into_rest(), b"\xff no frame");
    assert!(Decoder::new(Sender::Host).into_rest().is_empty());
}

fn kind(sender: Sender) -> impl Strategy<Value = FrameType> {
    let kinds: Vec<_> = FrameType::ALL.iter().copied().filter(|kind| kind.sent_by(sender)).collect();
    prop::sample::select(kinds)
}

fn frames(sender: Sender) -> impl Strategy<Value = Vec<(FrameType, Vec<u8>)>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..300),
        1 => (any::<u8>(), 4000..=MAX_PAYLOAD).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let frame = (kind(sender), payload).prop_map(|(kind, mut payload)| {
        payload.truncate(kind.max_payload());
        (kind, payload)
    });
    prop::collection::vec(frame, 0..12)
}

proptest! {
    #[test]
    fn round_trip_under_any_splitting(
        (sender, frames) in prop_oneof![Just(Sender::Host), Just(Sender::Agent)]
            .prop_flat_map(|sender| (Just(sender), frames(sender))),
        sizes in prop::collection::vec(1..5000usize, 1..8),
    ) {
        let mut bytes = Vec::new();
        for (kind, payload) in &frames {
            Frame { kind: *kind, payload }.encode(&mut bytes).unwrap();
        }
        let mut read = Vec::new();
        decode(sender, &bytes, &sizes, |frame| read.push((frame.kind, frame.payload.to_vec()))).unwrap();
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn garbage_is_an_error_or_frames(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        let mut decoder = Decoder::new(Sender::Host);
        let count = decoder.space().len().min(bytes.len());
        decoder.space()[..count].copy_from_slice(&bytes[..count]);
        decoder.filled(count);
        let mut taken = 0;
        while let Ok(Some(frame)) = decoder.next_frame() {
            prop_assert!(frame.kind.sent_by(Sender::Host) && frame.payload.len() <= frame.kind.max_payload());
            taken += HEADER + frame.payload.len();
        }
        prop_assert!(taken <= count);
    }

    #[test]
    fn too_long_is_refused_by_its_header(
        kind in kind(Sender::Host),
        beyond in prop_oneof![1..1000u32, Just(u32::MAX - MAX_REQUEST as u32)],
    ) {
        let length = kind.max_payload() + beyond as usize;
        let mut count = 0;
        let error = decode(Sender::Host, &header(kind, length), &[1], |_| count += 1).unwrap_err();
        let refused = matches!(error, FrameError::TooLong { length: found, .. } if found == length);
        prop_assert!(refused);
        prop_assert_eq!(count, 0);
    }
}

#[test]
fn a_header_makes_no_memory_of_what_it_only_claims() {
    let mut decoder = Decoder::new(Sender::Host);
    let mut sent = 0;
    let mut bytes = header(FrameType::Request, MAX_REQUEST).to_vec();
    bytes.resize(HEADER + MAX_REQUEST, b' ');
    while sent < bytes.len() {
        let space = decoder.space();
        assert!(space.len() <= sent.max(4096), "{} bytes of room after {sent}", space.len());
        let count = space.len().min(1000).min(bytes.len() - sent);
        space[..count].copy_from_slice(&bytes[sent..sent + count]);
        decoder.filled(count);
        sent += count;
        assert_eq!(decoder.next_frame().unwrap().is_some(), sent == bytes.len());
    }
}

#[test]
fn types_of_the_wrong_side_and_of_no_side_are_refused() {
    for byte in 0..=u8::MAX {
        let bytes = [0, 0, 0, 0, byte];
        let read = |sender| decode(sender, &bytes, &[5], |_| ());
        match FrameType::from_byte(byte) {
            None => {
                assert!(matches!(read(Sender::Host), Err(FrameError::UnknownType(found)) if found == byte));
                assert!(matches!(read(Sender::Agent), Err(FrameError::UnknownType(found)) if found == byte));
            }
            Some(kind) => {
                assert_eq!(kind as u8, byte);
                assert!(kind.sent_by(Sender::Host) || kind.sent_by(Sender::Agent));
                for sender in [Sender::Host, Sender::Agent] {
                    assert_eq!(read(sender).is_ok(), kind.sent_by(sender), "{kind:?} by {sender:?}");
                }
            }
        }
    }
}

#[test]
fn a_payload_that_is_too_long_is_not_encoded() {
    let mut bytes = vec![1, 2];
    let long = vec![0; MAX_PAYLOAD + 1];
    let error = Frame { kind: FrameType::Stdin, payload: &long }.encode(&mut bytes).unwrap_err();
    assert_eq!(error.to_string(), "Stdin frame of 65537 bytes, of which there may be 65536");
    assert_eq!(bytes, [1, 2]);
    let exec = protocol::Exec::new(protocol::Command::Shell("x".repeat(MAX_REQUEST)));
    assert!(matches!(encode(&protocol::Request::Exec(exec)), Err(FrameError::TooLong { .. })));
}

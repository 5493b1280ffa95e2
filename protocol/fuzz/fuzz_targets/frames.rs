//! Any bytes as what one side sent, read in pieces of any size: frames within their bounds, or an error; a control message that can
//! be read can be written, and reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{
    Control, Decoder, Error, Exit, FileEvent, FileInfo, Frame, FrameType, HEADER, Hello, Process, Request, Sender, Signal,
    Started, WindowSize, encode,
};
use std::fmt::Debug;

fn same<T: Control + Debug + PartialEq>(frame: Frame<'_>) {
    let Ok(message) = frame.message::<T>() else { return };
    // A request that fits may not fit any more with every field written out.
    let Ok(bytes) = encode(&message) else { return };
    let again: T =
        Frame { kind: frame.kind, payload: &bytes[HEADER..] }.message().expect("our own JSON is read");
    assert_eq!(again, message);
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (host, piece, mut bytes) = input;
    let sender = if host { Sender::Host } else { Sender::Agent };
    let mut decoder = Decoder::new(sender);
    while !bytes.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty());
        let count = space.len().min(bytes.len()).min(usize::from(piece) + 1);
        space[..count].copy_from_slice(&bytes[..count]);
        decoder.filled(count);
        bytes = &bytes[count..];
        loop {
            let Ok(next) = decoder.next_frame() else { return };
            let Some(frame) = next else { break };
            assert!(frame.kind.sent_by(sender) && frame.payload.len() <= frame.kind.max_payload());
            match frame.kind {
                FrameType::Hello => same::<Hello>(frame),
                FrameType::Request => same::<Request>(frame),
                FrameType::Started => same::<Started>(frame),
                FrameType::Error => same::<Error>(frame),
                FrameType::Exit => same::<Exit>(frame),
                FrameType::Process => same::<Process>(frame),
                FrameType::FileInfo => same::<FileInfo>(frame),
                FrameType::FileEvent => same::<FileEvent>(frame),
                FrameType::Resize => same::<WindowSize>(frame),
                FrameType::Signal => same::<Signal>(frame),
                _ => (),
            }
        }
    }
});

//! Frames: `u32 length, little endian | u8 type | payload`. The length counts the payload alone.

use crate::message::Control;
use thiserror::Error;

/// Bytes before a payload.
pub const HEADER: usize = 5;

/// The longest payload in bytes, but for a request.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// How much raw data to put into a frame: with its header it fills one vsock packet, where [`MAX_PAYLOAD`] would take two.
pub const CHUNK: usize = MAX_PAYLOAD - HEADER;

/// The longest payload of [`FrameType::Request`] in bytes: a command line and its environment may have 2 MiB in Linux
/// (a quarter of the stack's limit, execve(2)).
pub const MAX_REQUEST: usize = 2 << 20;

/// What is wrong with a frame. The stream it came from is of no further use.
#[derive(Debug, Error)]
pub enum FrameError {
    /// No frame has this type.
    #[error("frame of unknown type {0}")]
    UnknownType(u8),
    /// The other side never sends this type.
    #[error("{0:?} frame from the wrong side")]
    WrongSide(FrameType),
    /// The payload is longer than its type may be.
    #[error("{kind:?} frame of {length} bytes, of which there may be {max}", max = .kind.max_payload())]
    TooLong {
        /// The frame's type.
        kind: FrameType,
        /// Bytes of the payload.
        length: usize,
    },
    /// Another type was due.
    #[error("{found:?} frame where {expected:?} was expected")]
    Unexpected {
        /// What came.
        found: FrameType,
        /// What was due.
        expected: FrameType,
    },
    /// The payload of a control frame is not the JSON that its type asks for.
    #[error("{kind:?} frame cannot be read")]
    Json {
        /// The frame's type.
        kind: FrameType,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Who sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The side that asks.
    Host,
    /// PID 1 of the guest.
    Agent,
}

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal from $($sender:ident)|+;)*) => {
        /// What a frame is. The numbers are part of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FrameType { $($(#[$doc])* $name = $value,)* }

        impl FrameType {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The type with this number.
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($value => Some(Self::$name),)* _ => None }
            }

            /// Whether this side may send it.
            pub const fn sent_by(self, sender: Sender) -> bool {
                match self { $(Self::$name => matches!(sender, $(Sender::$sender)|+),)* }
            }
        }
    };
}

frame_types! {
    /// [`crate::Hello`]: the first frame of the control stream.
    Hello = 1 from Agent;
    /// [`crate::Request`]: the first frame of every other stream.
    Request = 2 from Host;
    /// [`crate::Started`].
    Started = 3 from Agent;
    /// [`crate::Error`]: the last frame of its stream.
    Error = 4 from Agent;
    /// [`crate::Exit`]: the last frame of its stream; all output came before it.
    Exit = 5 from Agent;
    /// [`crate::Process`]: one entry of a list.
    Process = 6 from Agent;
    /// No payload. What was asked for is done.
    Done = 7 from Agent;
    /// [`crate::FileInfo`]: what was asked about, or one entry of a list.
    FileInfo = 8 from Agent;
    /// [`crate::FileEvent`]: what has happened to a file that is watched.
    FileEvent = 9 from Agent;

    /// Raw bytes for the command's standard input, or what is typed at its terminal.
    Stdin = 16 from Host;
    /// No payload. The standard input ends; at a terminal it is an end-of-file character.
    StdinEnd = 17 from Host;
    /// [`crate::WindowSize`]: the terminal has another size.
    Resize = 18 from Host;
    /// [`crate::message::Signal`].
    Signal = 19 from Host;
    /// Raw bytes from the command's standard output, or from its terminal.
    Stdout = 20 from Agent;
    /// Raw bytes from the command's standard error.
    Stderr = 21 from Agent;

    /// A piece of a file, or of a tar stream.
    Data = 32 from Host | Agent;
    /// No payload. The file, or the tar stream, is complete.
    DataEnd = 33 from Host | Agent;
}

impl FrameType {
    /// The longest payload in bytes.
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Request => MAX_REQUEST,
            Self::Done | Self::StdinEnd | Self::DataEnd => 0,
            _ => MAX_PAYLOAD,
        }
    }
}

/// The bytes before a payload of `length` bytes, for writers that have the payload in place already.
/// The other side refuses a length beyond [`FrameType::max_payload`].
pub const fn header(kind: FrameType, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [a, b, c, d, kind as u8]
}

/// One frame, its payload still where it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: FrameType,
    /// Its content.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Appends the frame to `out`. A payload that is too long for its type is an error and leaves `out` as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let length = self.payload.len();
        if length > self.kind.max_payload() {
            return Err(FrameError::TooLong { kind: self.kind, length });
        }
        out.extend_from_slice(&header(self.kind, length));
        out.extend_from_slice(self.payload);
        Ok(())
    }

    /// The control message in this frame; an error if the frame is of another type or its JSON is another's.
    pub fn message<T: Control>(&self) -> Result<T, FrameError> {
        if self.kind != T::TYPE {
            return Err(FrameError::Unexpected { found: self.kind, expected: T::TYPE });
        }
        serde_json::from_slice(self.payload).map_err(|source| FrameError::Json { kind: self.kind, source })
    }
}

/// The bytes of a frame with a control message; an error if it is too long.
pub fn encode<T: Control>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)
        .map_err(|source| FrameError::Json { kind: T::TYPE, source })?;
    let length = bytes.len() - HEADER;
    if length > T::TYPE.max_payload() {
        return Err(FrameError::TooLong { kind: T::TYPE, length });
    }
    bytes[..HEADER].copy_from_slice(&header(T::TYPE, length));
    Ok(bytes)
}

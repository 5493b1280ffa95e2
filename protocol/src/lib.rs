//! What the host and the agent (PID 1 of the guest) say to each other, over vsock streams. No I/O of its own.
//!
//! A stream carries frames ([`frame`]): a length, a type, a payload. Control payloads are JSON ([`message`]), because a
//! snapshot keeps an old agent alive next to a newer host: unknown fields are ignored, absent ones have defaults. Data is raw.
//!
//! # Streams
//! - The agent connects to the host's [`HOST_PORT`] once it is ready and sends [`Hello`]. This control stream stays open; the
//!   host may send [`Request::PowerOff`] and [`Request::Reseed`] on it, one after the other. The agent connects
//!   again when it breaks.
//! - The host opens a stream to the guest's [`AGENT_PORT`] for each request. The first frame is a [`Request`]; what follows
//!   stands at each of its variants. The agent closes the stream after its last answer. Nothing is multiplexed: the credit
//!   of the stream is the back-pressure.
//! - The streams of [`Request::Forward`] and [`Request::ForwardUdp`] carry something else after their request.
//! - The host ends its own direction of any other one only to give up: an end of stream before the last answer, half-closed or in full, ends
//!   what was asked for. The end of a command's input is a frame, [`FrameType::StdinEnd`].

pub mod config;
pub mod decoder;
pub mod file;
pub mod frame;
pub mod message;

pub use config::{CA_CERTIFICATES, Config, Network6Config, NetworkConfig};
pub use decoder::Decoder;
pub use file::{FileEvent, FileEventKind, FileInfo, FileKind, FileRequest};
pub use frame::{
    CHUNK, Frame, FrameError, FrameType, HEADER, MAX_PAYLOAD, MAX_REQUEST, Sender, encode, header,
};
pub use message::{
    Command, Control, Error, ErrorCode, Exec, Exit, Hello, Limits, Process, Request, Signal, Started,
    Truncated, WindowSize,
};

/// The version of this protocol, in [`Hello`]. It grows when an older side could not ignore what is new.
pub const VERSION: u32 = 1;

/// The vsock port of the host that the agent connects to (host CID 2).
pub const HOST_PORT: u32 = 1024;

/// The vsock port of the guest that the agent listens on.
pub const AGENT_PORT: u32 = 1024;

/// How many streams the agent serves at once; it closes those beyond.
pub const MAX_STREAMS: usize = 1023;

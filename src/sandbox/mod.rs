//! A sandbox as the host sees it: a directory, a process that runs its machine and holds its lock, and streams to the agent
//! in it.
//!
//! [`boot`] starts its machine, on the disk that it has, and returns when its agent has come up; [`Handle::exec`] runs a command in
//! it. A sandbox that is kept outlives whoever has started it: [`adopt()`] finds it again. The directory belongs to whoever holds
//! the lock in it, see [`directory`]; that the process has ended is known from its pidfd.

mod adopt;
mod command;
mod connect;
mod directory;
mod embedded;
mod exec;
mod files;
mod frames;
mod handle;
mod id;
mod identity;
mod kernel;
mod launch;
mod network;
mod port;
mod process;
mod record;
mod traffic;

pub(crate) use adopt::{AdoptError, Found, adopt};
pub(crate) use command::Command;
pub(crate) use directory::{Claim, Directory, DirectoryError, Sandboxes};
pub(crate) use exec::{Event, Exec, ExecError, Input, Output};
pub(crate) use files::{Entries, FileEvents, Sink, Source};
pub(crate) use frames::{FrameReader, StreamError};
pub(crate) use handle::{Ending, Handle};
pub(crate) use kernel::{Kernel, KernelError};
pub(crate) use launch::{Begin, Launch, LaunchError, boot, reseed};
pub(crate) use network::{Access, AccessChange, HOST, resolvers};
pub(crate) use port::{Listener, Port, PortError, PortProtocol};
pub(crate) use record::{Fate, Job, Record};
pub(crate) use traffic::{Traffic, Way};

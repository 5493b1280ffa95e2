//! A sandbox as the host sees it: a directory, a process that runs its machine and holds its lock, and streams to the agent
//! in it.
//!
//! [`launch`] makes one of an image and returns when its agent has come up; [`Handle::exec`] runs a command in it. The
//! directory belongs to whoever holds the lock in it, see [`directory`]; that the process has ended is known from its pidfd.

mod connect;
mod directory;
mod embedded;
mod exec;
mod frames;
mod handle;
mod id;
mod kernel;
mod launch;
mod process;

pub(crate) use directory::{DirectoryError, Sandboxes};
pub(crate) use exec::{Event, Exec, ExecError, Input, Output};
pub(crate) use frames::StreamError;
pub(crate) use handle::{Ending, Handle};
pub(crate) use kernel::{Kernel, KernelError};
pub(crate) use launch::{Launch, LaunchError, launch};

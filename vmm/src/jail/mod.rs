//! What the process of a machine gives up before the guest runs.
//!
//! ```text
//!   SelfReport::open ─▶ enter_process ─▶ threads start, each: enter_thread(its kind) ─▶ enter_thread(Main) ─▶ vCPUs run
//! ```
//!
//! [`enter_process`] stands first, while the process has one thread: no_new_privs, Landlock and capabilities belong to a
//! thread and are inherited. seccomp comes last, thread by thread. A thread also inherits the filter of the thread that
//! starts it, and the kernel then asks both; so that a forked machine can start its threads, the filter of
//! [`Thread::Main`] allows whatever the others may do. It pays to start the threads before Main enters its own.
//!
//! A thread that ends before the vCPUs run, as the one that copies pages of a snapshot ahead, needs none: the guest has no part in what
//! it does.
//!
//! The one exception is [`Thread::Net`], the only thread that may make sockets, of TCP, UDP and ICMP echo: that is more than
//! Main is to have for life, and its thread has to be started before Main enters its filter. A live fork, of which only
//! the forking thread survives, cannot start it from Main. It will have to be made by a thread of its own, which waits for
//! nothing but that order, under the filters of Main and Net united; that thread becomes the child's first one, starts its
//! network thread, and enters Main's filter then.
//!
//! A call that a filter does not allow ends the process by SIGSYS, with a record in the kernel's audit log.

mod filter;
mod pagemap;
mod process;
mod report;
mod syscalls;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

pub use filter::{enter_thread, filter};
pub use pagemap::Pagemap;
pub use process::enter_process;
pub use report::SelfReport;
pub use syscalls::KICK_SIGNAL;

/// The kinds of threads, which differ in what they may ask of the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Thread {
    /// Sets the machine up, serves the control socket, starts the other threads and, for as long as it lives, may fork and
    /// build a new machine.
    Main,
    /// Runs one vCPU.
    Vcpu,
    /// Reads and writes the disk.
    Disk,
    /// Moves the bytes of vsock and of the entropy device, and gives back what the guest does not use of its memory.
    Io,
    /// Is the guest's network, by sockets of the host.
    Net,
}

impl Thread {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Main, Self::Vcpu, Self::Disk, Self::Io, Self::Net];
}

/// The layers of the jail, as the kernel answered when they were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Layers {
    /// No execve gives privileges.
    pub no_new_privs: bool,
    /// Whether other processes of the same user may trace this one and read its memory.
    pub dumpable: bool,
    /// The capabilities left in any set, a bit each.
    pub capabilities: u64,
    /// None: the kernel has no Landlock, or it is not enabled.
    pub landlock: Option<Landlock>,
    /// The limits in force.
    pub limits: Limits,
    /// Whether the process has namespaces of its own.
    pub namespaces: bool,
    /// The SHA-256, in hexadecimal, of the filter of each kind of thread; of [`Thread::Net`] where the machine has a network. A thread that cannot enter its filter ends.
    pub seccomp: BTreeMap<Thread, String>,
}

/// What Landlock denies: everything of what it handles, since no rule grants anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Landlock {
    /// The version of its interface. From 4 on it handles TCP, from 6 on signals and abstract Unix sockets.
    pub abi: u32,
    /// Handled rights to files, `LANDLOCK_ACCESS_FS_*`.
    pub files: u64,
    /// Handled rights to the network, `LANDLOCK_ACCESS_NET_*`. A machine with a network may connect, and not listen.
    pub net: u64,
    /// What ends at the process and its forks, `LANDLOCK_SCOPE_*`.
    pub scope: u64,
}

/// Resource limits. Soft and hard limit are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a core file.
    pub core: u64,
    /// Open descriptors.
    pub open_files: u64,
    /// Bytes of a file; none: as many as the file system takes.
    pub file_size: Option<u64>,
}

impl Layers {
    /// What a jail must have and this one has not: `--require-jail` ends the machine then. Namespaces are not asked for:
    /// many hosts deny them to ordinary users.
    ///
    /// # Errors
    /// [`JailError::Missing`], which names the first layer that is not there.
    pub fn require(&self) -> Result<(), JailError> {
        let layers = [
            ("no_new_privs", self.no_new_privs),
            ("undumpable memory", !self.dumpable),
            ("an empty capability set", self.capabilities == 0),
            ("Landlock", self.landlock.is_some()),
            ("seccomp", Thread::ALL.iter().all(|&thread| self.has_filter(thread))),
        ];
        match layers.into_iter().find(|(_, there)| !there) {
            Some((layer, _)) => Err(JailError::Missing { layer }),
            None => Ok(()),
        }
    }

    /// A thread that the machine has not needs none.
    fn has_filter(&self, thread: Thread) -> bool {
        thread == Thread::Net || self.seccomp.contains_key(&thread)
    }
}

/// The jail could not be entered. The process may have given up a part already and must end.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A descriptor that is to be kept is not open.
    #[error("the jail: descriptor {fd} is not open")]
    NotOpen {
        /// Its number.
        fd: RawFd,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The process has more than one thread, and the others would stay outside.
    #[error("the jail: the process has {threads} threads already")]
    Threads {
        /// How many, this one included.
        threads: u64,
    },
    /// The kernel has refused a step.
    #[error("the jail: {step}")]
    Step {
        /// What was asked for.
        step: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Landlock is there but has refused.
    #[error("the jail: Landlock")]
    Landlock(#[source] landlock::RulesetError),
    /// A filter could not be made or installed.
    #[error("the jail: the seccomp filter of a thread ({thread:?})")]
    Seccomp {
        /// The kind of the thread.
        thread: Thread,
        /// Why.
        #[source]
        source: seccompiler::Error,
    },
    /// A required layer is not in force.
    #[error("the jail: this host does not give {layer}")]
    Missing {
        /// Its name.
        layer: &'static str,
    },
}

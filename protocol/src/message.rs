//! The control messages: JSON with camelCase keys. Unknown keys are ignored, and `null` is the same as absent where a field is
//! optional.

use crate::{Config, FileEvent, FileInfo, FileRequest, FrameType};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt;

/// A message that has a frame type of its own.
pub trait Control: Serialize + DeserializeOwned {
    /// The type of its frames.
    const TYPE: FrameType;
}

macro_rules! control {
    ($($message:ident),*) => { $(impl Control for $message { const TYPE: FrameType = FrameType::$message; })* };
}
control!(Hello, Request, Started, Error, Exit, Process, FileInfo, FileEvent, Signal);

impl Control for WindowSize {
    const TYPE: FrameType = FrameType::Resize;
}

/// The agent is ready: the first frame on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The agent's [`crate::VERSION`].
    pub version: u32,
    /// The agent's release.
    pub agent_version: String,
    /// The guest kernel's release, as in `uname -r`.
    #[serde(default)]
    pub kernel: String,
    /// When the agent began, in microseconds of the guest's clock since boot.
    #[serde(default)]
    pub began_us: u64,
    /// When the agent was ready, by the same clock.
    #[serde(default)]
    pub ready_us: u64,
    /// Whether it takes the configuration of another machine, see [`Request::Reseed`].
    #[serde(default)]
    pub becomes_another: bool,
}

/// What the host asks for: the first frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// Runs a command. Answer: [`Started`], or [`Error`] if it could not be started.
    ///
    /// In the foreground the stream then carries Stdin, StdinEnd, Resize and Signal frames one way, and Stdout and Stderr frames
    /// the other, up to one [`Exit`]. Whatever the command left running is killed with it. Stdin that the command does not read
    /// holds up what comes behind it; [`Request::Kill`] on another stream gets through.
    ///
    /// Detached, the stream ends after [`Started`].
    Exec(Exec),
    /// Lists the commands that run, and the last 256 detached ones that have ended. Answer: one [`Process`] each, then Done.
    List,
    /// Waits for a command. Answer: [`Exit`], or [`Error`] with [`ErrorCode::NoSuchProcess`]. Asked again, it answers again.
    Wait {
        /// From [`Started`].
        pid: u32,
    },
    /// Signals a command. Answer: Done, or [`Error`] with [`ErrorCode::NoSuchProcess`] or [`ErrorCode::ProcessEnded`].
    Kill {
        /// From [`Started`].
        pid: u32,
        /// As in [`Signal`]. Without one the command is ended as by a timeout: SIGTERM to every process, two seconds, SIGKILL.
        #[serde(default)]
        signal: Option<i32>,
    },
    /// The output of a detached command. Answer: [`Started`], Stdout and Stderr frames with up to 1 MiB of what it wrote
    /// before, then with what it writes, then [`Exit`]. A host that reads too slowly loses the oldest; `truncated` tells.
    ///
    /// Stdin and Resize frames go to the command's terminal, where it has one. StdinEnd leaves: once what was sent before it
    /// is written, and the output up to then has been answered, the answer is Done.
    Attach {
        /// From [`Started`].
        pid: u32,
        /// So many pieces of its output, each a frame, are left out: the host has had them before.
        #[serde(default)]
        skip: u64,
    },
    /// Unpacks a tar stream beneath a directory: Data frames follow, then DataEnd. Answer: Done, or [`Error`] at any time.
    ///
    /// No entry leaves the directory, whatever symlinks say. Files appear under their names when they are whole. Modes and the
    /// times of files are kept; owners are not.
    Upload {
        /// The directory, absolute. It is made if it is missing, with its parents.
        path: String,
        /// Who owns what is made: as [`Exec::user`]. Root without one.
        #[serde(default)]
        owner: Option<String>,
    },
    /// A file or a tree as a tar stream, whose entries begin with the last component of the path. Answer: Data frames, then
    /// DataEnd, or [`Error`] at any time.
    Download {
        /// The file or directory, absolute.
        path: String,
        /// If the path itself is a symlink, to take what it points to.
        #[serde(default)]
        follow: bool,
    },
    /// Joins the stream to a TCP port of the guest's own loopback, 127.0.0.1 or else ::1: a published port. No answer, and no frame
    /// after this one: what follows are the bytes of the connection, both ways. Each end of file of one side is one of the other.
    /// The stream is closed without one where nobody listens at the port, or where the connection breaks.
    Forward {
        /// The port.
        port: u16,
    },
    /// Joins the stream to a UDP port of the guest's own loopback, 127.0.0.1 or else ::1, for one client of a published port. No answer,
    /// and no frame after this one: what follows are datagrams of at most 65,507 bytes, each with its length before it as a
    /// little-endian `u16`, both ways, until the host ends the stream. One that nobody takes is lost.
    ForwardUdp {
        /// The port.
        port: u16,
    },
    /// Something about one file or directory. The answer stands at each operation.
    File(FileRequest),
    /// Ends every process, writes the disk back and powers off. Answer: Done, before it begins.
    PowerOff {
        /// Between SIGTERM and SIGKILL, in milliseconds; the wait is over when no process is left. 2,000 without it.
        #[serde(default)]
        grace_ms: Option<u64>,
    },
    /// Before the machine is saved: halts every command. From now on a stream that breaks ends no command: those in the foreground live
    /// on without one. Answer: Done.
    Suspend,
    /// The machine was not saved: as if [`Self::Suspend`] had not been. Answer: Done.
    Continue,
    /// After a restore: reseeds the kernel's random numbers, sets the clock, makes the machine what it is to be, and lets the commands
    /// go on. Answer: Done, or [`Error`]; the commands stand still after one about the random numbers, and go on after any other.
    Reseed {
        /// The time of day: nanoseconds since 1970, UTC. A guest whose KVM tells it what the host's clock says takes that.
        wall_time_ns: u64,
        /// Random bytes of the host, 32 to 512.
        entropy: Vec<u8>,
        /// What the machine is now, where it is another than the one that was saved; its `root_device` is not looked at. Without it
        /// the machine is the same.
        #[serde(default)]
        config: Option<Box<Config>>,
    },
}

/// A command to run, see [`Request::Exec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// What to run.
    pub command: Command,
    /// The working directory, absolute; `/` without one. [`ErrorCode::Cwd`] if it cannot be entered.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The environment. PATH, HOME and, at a terminal, TERM have defaults.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `uid`, `uid:gid`, `name` or `name:group`; root without one.
    #[serde(default)]
    pub user: Option<String>,
    /// After how many milliseconds the command is ended: SIGTERM to every process, two seconds, SIGKILL. None or 0: never.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// To give it a terminal of this size; everything is then Stdout.
    #[serde(default)]
    pub tty: Option<WindowSize>,
    /// Whether Stdin frames will come; else the standard input is /dev/null. A terminal always takes them.
    #[serde(default)]
    pub stdin: bool,
    /// After how many bytes each of the two output streams is cut; what comes then is read and dropped. None: never.
    #[serde(default)]
    pub output_limit: Option<u64>,
    /// To run it in the background; its output is kept for [`Request::Attach`].
    #[serde(default)]
    pub detached: bool,
    /// What it may use, with all its children.
    #[serde(default)]
    pub limits: Limits,
}

impl Exec {
    /// The command with every choice at its default.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            cwd: None,
            env: BTreeMap::new(),
            user: None,
            timeout_ms: None,
            tty: None,
            stdin: false,
            output_limit: None,
            detached: false,
            limits: Limits::default(),
        }
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// A program and its arguments, without a shell. A name without a slash is looked for in the command's own PATH.
    Argv(Vec<String>),
    /// A line for `/bin/bash -c` where the image has it, else for `/bin/sh -c`.
    Shell(String),
}

/// Limits of one command and its children; none where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Memory in MiB (cgroup memory.max).
    pub memory_mib: Option<u64>,
    /// Processes and threads (cgroup pids.max).
    pub pids: Option<u64>,
    /// Thousandths of a CPU, at least 10 (cgroup cpu.max).
    pub cpu_millis: Option<u32>,
}

/// The size of a terminal in characters, and its [`FrameType::Resize`] frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A signal for the command's process group; SIGKILL goes to every process of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signal {
    /// Its number on x86-64 Linux, 1 to 64.
    pub signal: i32,
}

/// A command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Its main process in the guest; it names the command until the number is used again.
    pub pid: u32,
}

/// A command has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exit {
    /// What its main process returned, unless a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended its main process.
    pub signal: Option<i32>,
    /// Whether it was ended because its time was up.
    pub timed_out: bool,
    /// Which output is not complete.
    pub truncated: Truncated,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// From its start to the end of its main process, in milliseconds.
    pub duration_ms: u64,
}

/// Which output is not complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Truncated {
    /// Standard output, or the terminal.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// A command in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// As in [`Started`].
    pub pid: u32,
    /// The shell line, or the arguments joined by blanks; at most 4 KiB.
    pub command: String,
    /// When it began: milliseconds since 1970, UTC, by the guest's clock.
    pub start_time_ms: u64,
    /// Whether it runs in the background.
    #[serde(default)]
    pub detached: bool,
    /// Whether it runs in the background at a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// How many are attached to it.
    #[serde(default)]
    pub attached: u32,
    /// How it ended; none while it runs.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// Why a request was not carried out: the last frame of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Error {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what failed, on what, why.
    pub message: String,
    /// The system's error number, where there was one.
    #[serde(default)]
    pub errno: Option<i32>,
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// The program is not there: 127 to a shell.
    NotFound,
    /// The program is there and cannot be run: 126 to a shell.
    NotExecutable,
    /// A shell line, and neither /bin/bash nor /bin/sh is there.
    NoShell,
    /// The working directory cannot be entered.
    Cwd,
    /// The user, or the group, is not known to the image.
    User,
    /// No command has this pid.
    NoSuchProcess,
    /// The command has ended already.
    ProcessEnded,
    /// A file or directory could not be read or written; the message names it, and `errno` says why.
    File,
    /// The tar stream is damaged, or holds what is not unpacked.
    Archive,
    /// The request makes no sense; the message says what.
    BadRequest,
    /// The guest's kernel refused something that should work.
    Internal,
    /// From a newer agent.
    #[serde(other)]
    Other,
}

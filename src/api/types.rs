//! What goes over the wire of `/v1` and `/api`. The daemon's operations know nothing of it: a second wire is a sibling.

mod sandbox;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::code::{self, Transcript};
pub(crate) use sandbox::{
    Change, Create, Denial, DenialParameters, Env, ListParameters, Network, NetworkLimits, NetworkMode, Port,
    PortProtocol, Sandbox, Stop,
};

/// `GET /sandboxes/{id}/logs`.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogParameters {
    /// Whether to wait for more, until the job has ended.
    pub(crate) follow: Option<bool>,
    /// So many lines of text at most, the last ones.
    pub(crate) tail: Option<usize>,
}

/// A command.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exec {
    /// A line for bash, or sh where there is no bash; with `args` a program.
    #[schema(min_length = 1)]
    pub(crate) command: String,
    /// Its arguments, without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<Vec<String>>,
    /// A directory of the guest; that of the image where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^/")]
    pub(crate) cwd: Option<String>,
    /// Variables, beside those of the image and of the sandbox; one that is null is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<Env>,
    /// A name or a number, and perhaps `:group`; that of the image where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Seconds; 0: none. 30 where it is absent, none for an upgraded connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub(crate) timeout: Option<f64>,
    /// A terminal of this size. For an upgraded connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tty: Option<protocol::WindowSize>,
    /// Whether input will come. For an upgraded connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stdin: Option<bool>,
}

impl Exec {
    /// A program and its arguments.
    pub(crate) fn with(self, words: Vec<String>) -> Self {
        let mut words = words.into_iter();
        Self { command: words.next().unwrap_or_default(), args: Some(words.collect()), ..self }
    }
}

/// What a command has printed, and how it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecResult {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    #[serde(flatten)]
    pub(crate) end: End,
}

/// How a command has ended; what says nothing is left out.
#[allow(clippy::struct_excessive_bools, reason = "each is a member of the document")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct End {
    /// 124 at its deadline, 128+N after signal N.
    #[schema(required)]
    pub(crate) exit_code: i32,
    /// The signal that has ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<i32>,
    /// Its time was up.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) timed_out: bool,
    /// Not all of its output is here.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) truncated: bool,
    /// Of want of memory a process of it was killed.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) oom_killed: bool,
    /// From its start to its end.
    #[schema(required)]
    pub(crate) duration_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's way")]
fn is_false(value: &bool) -> bool {
    !value
}

impl From<protocol::Exit> for End {
    fn from(exit: protocol::Exit) -> Self {
        let code = exit.exit_code.or(exit.signal.map(|signal| signal.saturating_add(128)));
        Self {
            exit_code: if exit.timed_out { 124 } else { code.unwrap_or(125) },
            signal: exit.signal,
            timed_out: exit.timed_out,
            truncated: exit.truncated.stdout || exit.truncated.stderr,
            oom_killed: exit.oom_killed,
            duration_ms: exit.duration_ms,
        }
    }
}

/// Code that is to be run.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunCode {
    /// At most 4 MiB of UTF-8.
    pub(crate) code: String,
    /// `python` where it is absent.
    pub(crate) language: Option<String>,
    /// Seconds; 0: none. 30 where it is absent.
    #[schema(minimum = 0)]
    pub(crate) timeout: Option<f64>,
    /// As of `exec`, and so are the next two.
    #[schema(pattern = "^/")]
    pub(crate) cwd: Option<String>,
    pub(crate) env: Option<Env>,
    pub(crate) user: Option<String>,
    /// Not there yet.
    pub(crate) context_id: Option<String>,
}

/// What code has come to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CodeResult {
    #[serde(flatten)]
    pub(crate) end: CodeEnd,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) logs: Logs,
}

/// The same, line by line.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Logs {
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

/// How code has ended: without what it has printed, the last event of a stream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CodeEnd {
    /// The exit code is 0.
    pub(crate) success: bool,
    /// The last line of standard output that is not blank: as JSON where it is JSON, else as a string; null where there is none.
    #[schema(value_type = serde_json::Value)]
    pub(crate) results: Box<RawValue>,
    /// Why there was no success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(flatten)]
    pub(crate) end: End,
}

impl CodeEnd {
    pub(crate) fn new(exit: protocol::Exit, transcript: &Transcript) -> Self {
        let error = code::error(&exit, transcript);
        let end = End::from(exit);
        Self { success: end.exit_code == 0, results: transcript.results(), error, end }
    }
}

impl CodeResult {
    pub(crate) fn new(exit: protocol::Exit, transcript: &Transcript) -> Self {
        let mut end = CodeEnd::new(exit, transcript);
        end.end.truncated |= transcript.stdout.truncated || transcript.stderr.truncated;
        let (stdout, stderr) = (transcript.stdout.text(), transcript.stderr.text());
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        let logs = Logs { stdout: lines(&stdout), stderr: lines(&stderr) };
        Self { end, stdout, stderr, logs }
    }
}

/// A command for the background.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Run {
    /// A line for bash, or sh where there is no bash.
    #[schema(min_length = 1)]
    pub(crate) command: String,
    /// As of `exec`, and so are the next two.
    #[schema(pattern = "^/")]
    pub(crate) cwd: Option<String>,
    pub(crate) env: Option<Env>,
    pub(crate) user: Option<String>,
    /// Seconds; 0, and nothing: none.
    #[schema(minimum = 0)]
    pub(crate) timeout: Option<f64>,
}

/// A command in the background.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Pid {
    pub(crate) pid: u32,
    /// For `kill`: 1 to 64. Without it the command is ended as by a timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub(crate) signal: Option<i32>,
}

/// A command in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) command: String,
    /// RFC 3339.
    pub(crate) start_time: String,
    pub(crate) running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
}

impl From<protocol::Process> for Process {
    fn from(process: protocol::Process) -> Self {
        Self {
            pid: process.pid,
            command: process.command,
            start_time: time(process.start_time_ms),
            running: process.exit.is_none(),
            exit_code: process.exit.map(|exit| End::from(exit).exit_code),
        }
    }
}

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[allow(clippy::struct_field_names, reason = "the wire's names")]
pub(crate) struct Version {
    /// The daemon's release.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Its store.
    pub(crate) home: String,
}

/// RFC 3339 of milliseconds since 1970; a guest may say any number.
pub(super) fn time(ms: u64) -> String {
    let last = Duration::from_secs(253_402_300_799); // 9999-12-31
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(ms).min(last);
    humantime::format_rfc3339_millis(time).to_string()
}

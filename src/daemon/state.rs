//! Where a sandbox is in its life.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm::exit::ExitReason;

use crate::sandbox::{Ending, Handle};

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Its machine is coming up.
    Creating,
    /// Commands can be run in it.
    Running,
    /// Its machine stands still, its memory is kept.
    Paused,
    /// Its memory is on the disk, and it has no machine.
    Sleeping,
    /// It has no machine; its disk is kept.
    Stopped,
    /// Its machine has ended by itself or could not be started.
    Failed,
}

/// From what a machine has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StartedFrom {
    /// A kernel, which has booted.
    Kernel,
    /// Where an earlier one of its kind had booted, before anything was run in that.
    Warm,
    /// A snapshot.
    Snapshot,
    /// Where it had fallen asleep.
    Sleep,
}

/// How the machine of a sandbox has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Start {
    pub(crate) from: StartedFrom,
    /// Until commands could be run, in ms.
    pub(crate) ms: u64,
    /// Why it has booted, where it was to go on from somewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fallback: Option<String>,
}

impl Start {
    /// Commands can be run now.
    pub(super) fn from(from: StartedFrom, began: Instant) -> Self {
        Self { from, ms: began.elapsed().as_millis() as u64, fallback: None }
    }
}

/// The state, and what belongs to it.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) state: State,
    /// The machine, where one runs.
    pub(super) handle: Option<Arc<Handle>>,
    /// Why there is none any more.
    pub(super) reason: Option<String>,
    /// A user has asked for the end.
    pub(super) stopping: bool,
    /// A machine runs and cannot be talked to. Without a handle it cannot even be ended.
    pub(super) lost: bool,
    /// It is about to be put to sleep because nothing is done in it: whoever wants something waits for its turn.
    pub(super) dozes: bool,
    /// When something was asked last of one that sleeps by itself: its stream may not be there yet.
    pub(super) asked: Option<Instant>,
    /// How the machine has started, where this daemon has started it.
    pub(super) start: Option<Start>,
}

impl State {
    /// All there are.
    pub(super) const ALL: [Self; 6] =
        [Self::Creating, Self::Running, Self::Paused, Self::Sleeping, Self::Stopped, Self::Failed];

    /// Whether a machine takes memory.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, Self::Creating | Self::Running | Self::Paused)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Sleeping => "sleeping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Status {
    pub(super) fn creating() -> Self {
        Self {
            state: State::Creating,
            handle: None,
            reason: None,
            stopping: false,
            lost: false,
            dozes: false,
            asked: None,
            start: None,
        }
    }

    pub(super) fn up(handle: Arc<Handle>, paused: bool) -> Self {
        let state = if paused { State::Paused } else { State::Running };
        Self { state, handle: Some(handle), ..Self::creating() }
    }

    pub(super) fn sleeping() -> Self {
        Self { state: State::Sleeping, ..Self::creating() }
    }

    pub(super) fn stopped() -> Self {
        Self { state: State::Stopped, reason: Some("it was stopped".to_owned()), ..Self::creating() }
    }

    /// After the end of a machine; `stopping`: a user has asked for it.
    pub(super) fn ended(ending: &Ending, stopping: bool) -> Self {
        let expected = matches!(
            ending.reason,
            Some(ExitReason::Shutdown | ExitReason::Ttl { .. } | ExitReason::Idle { .. })
        );
        let state = if stopping || expected { State::Stopped } else { State::Failed };
        let reason = if stopping { "it was stopped".to_owned() } else { ending.to_string() };
        Self { state, reason: Some(reason), ..Self::creating() }
    }

    pub(super) fn lost(handle: Option<Arc<Handle>>, reason: String) -> Self {
        Self { handle, lost: true, ..Self::failed(reason) }
    }

    /// Whether a machine takes memory.
    pub(super) fn is_up(&self) -> bool {
        self.state.is_up() || self.lost
    }

    pub(super) fn failed(reason: String) -> Self {
        Self { state: State::Failed, reason: Some(reason), ..Self::creating() }
    }
}

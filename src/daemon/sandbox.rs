//! One sandbox as the daemon keeps it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::FrameType;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::chain;
use super::error::DaemonError;
use super::events::{Events, Kind};
use super::metrics::Metrics;
use super::state::{Start, State, Status};
use super::watch::Watches;
use crate::sandbox::{Directory, Ending, Exec, ExecError, Handle, Record, StreamError};

/// The agent has to answer a request within this time. The streams of a machine on a loaded, emulated CPU need seconds.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// The streams of a machine end a little before its process does.
const ENDING: Duration = Duration::from_secs(2);

/// What cannot be done when a command's stream fails.
const RUN: &str = "run a command in";

/// One sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(super) directory: Arc<Directory>,
    record: Mutex<Record>,
    status: Mutex<Status>,
    /// Whoever changes the state holds this, from the first step to the last.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// Whoever writes the record holds this.
    pub(super) writing: tokio::sync::Mutex<()>,
    pub(super) watches: Watches,
    /// Told of all output of its job, and of the end of it.
    pub(super) output: watch::Sender<()>,
    /// Cancelled when it was removed and nothing of it is left.
    pub(super) released: CancellationToken,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
}

/// What a sandbox is at this moment.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) id: String,
    pub(crate) record: Record,
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
    /// A machine runs, and cannot be talked to.
    pub(crate) lost: bool,
    /// How its machine has started, where that is known.
    pub(crate) start: Option<Start>,
}

impl Sandbox {
    pub(super) fn new(
        directory: Arc<Directory>,
        record: Record,
        status: Status,
        events: Events,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (record, status) = (Mutex::new(record), Mutex::new(status));
        let (turn, writing) = (Arc::default(), tokio::sync::Mutex::default());
        let (watches, output, released) =
            (Watches::default(), watch::Sender::default(), CancellationToken::new());
        Self { directory, record, status, turn, writing, watches, output, released, events, metrics }
    }

    /// Returns when it was removed and nothing of it is left.
    pub(crate) async fn released(&self) {
        self.released.cancelled().await;
    }

    pub(crate) fn id(&self) -> &str {
        self.directory.id().as_str()
    }

    /// A copy of all that is to be shown.
    pub(crate) fn view(&self) -> View {
        let (state, reason, lost, start) = {
            let status = self.status();
            (status.state, status.reason.clone(), status.lost, status.start.clone())
        };
        View { id: self.id().to_owned(), record: self.record().clone(), state, reason, lost, start }
    }

    pub(crate) fn state(&self) -> State {
        self.status().state
    }

    pub(crate) fn name(&self) -> String {
        self.record().name.clone()
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wrong_state(&self, action: &'static str) -> DaemonError {
        let (name, state) = (self.name(), self.state());
        if state == State::Sleeping {
            DaemonError::Asleep { action, name }
        } else {
            DaemonError::State { action, name, state }
        }
    }

    /// The machine, if the state is one of `states`.
    pub(super) fn machine(&self, action: &'static str, states: &[State]) -> Result<Arc<Handle>, DaemonError> {
        let machine = {
            let now = self.status();
            now.handle.clone().filter(|_| states.contains(&now.state))
        };
        match machine {
            Some(machine) => Ok(machine),
            None => self.is_not_lost().and_then(|()| Err(self.wrong_state(action))),
        }
    }

    pub(super) fn is_not_lost(&self) -> Result<(), DaemonError> {
        let reason = {
            let status = self.status();
            status.lost.then(|| status.reason.clone().unwrap_or_default())
        };
        reason.map_or(Ok(()), |reason| Err(DaemonError::Lost { name: self.name(), reason }))
    }

    /// `handle` has ended. False if that is known, or another machine has taken its place.
    pub(super) fn ended(&self, handle: &Arc<Handle>, ending: &Ending) -> bool {
        let mut status = self.status();
        let current = status.handle.as_ref().is_some_and(|current| Arc::ptr_eq(current, handle));
        if current {
            self.metrics.exit(ending, status.stopping);
            if let Some(network) = ending.network {
                self.metrics.network(handle, network);
            }
            let job_ended = self.record().job.as_ref().is_some_and(|job| job.exit.is_some());
            let stopped = status.stopping;
            *status = Status::ended(ending, stopped);
            if stopped && job_ended {
                status.reason = Some("its command has ended".to_owned());
            }
            self.tell_end(status.state, status.reason.as_deref());
            self.output.send_replace(());
        }
        current
    }

    /// Its machine could not be started.
    pub(super) fn has_failed(&self, error: &DaemonError) {
        let reason = chain(error);
        *self.status() = Status::failed(reason.clone());
        self.tell(Kind::Failed, Some(&reason));
    }

    /// Starts a command.
    pub(crate) async fn exec(&self, exec: protocol::Exec) -> Result<Exec, DaemonError> {
        let handle = self.machine(RUN, &[State::Running])?;
        let began = Instant::now();
        let started = self.answered(RUN, &handle, handle.exec(exec)).await;
        self.metrics.exec(began.elapsed(), started.is_ok());
        started
    }

    /// Signals a command; without a signal it is ended as by a timeout. False if it has ended already.
    pub(crate) async fn kill(&self, pid: u32, signal: Option<i32>) -> Result<bool, DaemonError> {
        let action = "signal a command in";
        let handle = self.machine(action, &[State::Running])?;
        match self.answered(action, &handle, handle.ask(&protocol::Request::Kill { pid, signal })).await {
            Ok(()) => Ok(true),
            Err(DaemonError::Exec { source: ExecError::Refused(refused), .. })
                if refused.code == protocol::ErrorCode::ProcessEnded =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The commands that run, and the last detached ones that have ended.
    pub(crate) async fn processes(&self) -> Result<Vec<protocol::Process>, DaemonError> {
        let action = "list the commands of";
        let handle = self.machine(action, &[State::Running])?;
        self.answered(action, &handle, handle.processes()).await
    }

    /// The end of a command, whenever it comes.
    pub(crate) async fn wait(&self, pid: u32) -> Result<protocol::Exit, DaemonError> {
        let action = "wait for a command in";
        let handle = self.machine(action, &[State::Running])?;
        match handle.wait(pid).await {
            Ok(exit) => Ok(exit),
            Err(error) => Err(self.explain(action, Some(&handle), error).await),
        }
    }

    /// The output of a detached command, and its end.
    pub(crate) async fn attach(&self, pid: u32) -> Result<Exec, DaemonError> {
        let action = "attach to a command in";
        let handle = self.machine(action, &[State::Running])?;
        self.answered(action, &handle, handle.attach(pid, 0)).await
    }

    /// Why the stream of a command has broken off.
    pub(crate) async fn cause(&self, error: ExecError) -> DaemonError {
        let handle = self.status().handle.clone();
        self.explain(RUN, handle.as_deref(), error).await
    }

    pub(super) async fn answered<T>(
        &self,
        action: &'static str,
        handle: &Handle,
        answer: impl Future<Output = Result<T, ExecError>>,
    ) -> Result<T, DaemonError> {
        self.answered_within(ANSWER, action, handle, answer).await
    }

    pub(super) async fn answered_within<T>(
        &self,
        limit: Duration,
        action: &'static str,
        handle: &Handle,
        answer: impl Future<Output = Result<T, ExecError>>,
    ) -> Result<T, DaemonError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.explain(action, Some(handle), error).await),
            Err(_) => Err(self.silent(action, limit)),
        }
    }

    pub(super) fn silent(&self, action: &'static str, limit: Duration) -> DaemonError {
        DaemonError::Silent { action, name: self.name(), seconds: limit.as_secs() }
    }

    /// Why a request has failed: the end of the machine, if that is what it was.
    pub(super) async fn explain(
        &self,
        action: &'static str,
        handle: Option<&Handle>,
        error: ExecError,
    ) -> DaemonError {
        let name = self.name();
        if !is_broken(&error) {
            return DaemonError::Exec { action, name, source: error };
        }
        let reason = match handle {
            Some(handle) => match tokio::time::timeout(ENDING, handle.ended()).await {
                Ok(Ok(ending)) => Some(ending.to_string()),
                _ => None,
            },
            None => self.status().reason.clone(),
        };
        match reason {
            Some(reason) => DaemonError::Ended { action, name, reason },
            None => DaemonError::Exec { action, name, source: error },
        }
    }
}

fn is_broken(error: &ExecError) -> bool {
    matches!(error, ExecError::Connect(_) | ExecError::Stream(StreamError::Io(_) | StreamError::End))
}

/// Whether a frame from a client may go to a command's stream as it is.
pub(crate) fn is_input(kind: FrameType) -> bool {
    matches!(kind, FrameType::Stdin | FrameType::StdinEnd | FrameType::Resize | FrameType::Signal)
}

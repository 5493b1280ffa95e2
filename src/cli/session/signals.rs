//! The signals that ask a command line to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::error::{CliError, Interrupt};

/// From its making on none of them ends this process by itself.
pub(in crate::cli) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Signals {
    pub(in crate::cli) fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(CliError::Runtime);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Does `work`, unless one of them comes before it is done: `advice` is what to tell then.
    pub(in crate::cli) async fn guard<T, E: Into<CliError>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
        advice: &'static str,
    ) -> Result<T, CliError> {
        tokio::select! {
            done = work => done.map_err(Into::into),
            signal = self.next() => Err(CliError::Interrupted { signal, advice }),
        }
    }

    /// The next one. Dropped before it returns, none is lost.
    pub(in crate::cli) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.hangup.recv() => Interrupt::Hup,
            _ = self.interrupt.recv() => Interrupt::Int,
            _ = self.quit.recv() => Interrupt::Quit,
            _ = self.terminate.recv() => Interrupt::Term,
        }
    }
}

//! Terminals that outlive their connections: detached commands of the guest's agent, which keeps what they have shown. So they
//! outlive the daemon too, and it knows nothing of them but what the agent tells.

use protocol::WindowSize;

use super::error::DaemonError;
use super::sandbox::{ANSWER, Sandbox};
use crate::sandbox::{Event, Exec};

/// So many may a sandbox have at once. Where several are opened at the same moment there can be a few more.
const MAX_TERMINALS: usize = 32;
/// The agent keeps no more, in bytes; a guest that says more is not believed.
const MAX_SHOWN: usize = 1 << 20;

/// A terminal that runs.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    pid: u32,
    /// Milliseconds since 1970, by the guest's clock.
    pub(crate) started_ms: u64,
    /// How many are connected to it.
    pub(crate) clients: u32,
}

impl Terminal {
    /// Never another's, as a process id alone could be.
    pub(crate) fn id(&self) -> String {
        format!("{}-{:x}", self.pid, self.started_ms)
    }

    fn of(process: &protocol::Process) -> Option<Self> {
        let runs = process.terminal && process.exit.is_none();
        let (pid, started_ms, clients) = (process.pid, process.start_time_ms, process.attached);
        runs.then_some(Self { pid, started_ms, clients })
    }
}

impl Sandbox {
    /// The terminals that run, the oldest first.
    pub(crate) async fn terminals(&self) -> Result<Vec<Terminal>, DaemonError> {
        Ok(self.processes().await?.iter().filter_map(Terminal::of).collect())
    }

    pub(crate) async fn terminal(&self, id: &str) -> Result<Terminal, DaemonError> {
        let found = self.terminals().await?.into_iter().find(|terminal| terminal.id() == id);
        found.ok_or_else(|| self.no_terminal(id))
    }

    fn no_terminal(&self, id: &str) -> DaemonError {
        DaemonError::NoTerminal { id: id.chars().take(100).collect(), sandbox: self.name() }
    }

    /// Starts `shell`, which has a `tty`, as a terminal of its own.
    pub(crate) async fn open_terminal(&self, mut shell: protocol::Exec) -> Result<Terminal, DaemonError> {
        if self.terminals().await?.len() >= MAX_TERMINALS {
            return Err(DaemonError::TooManyTerminals { limit: MAX_TERMINALS, sandbox: self.name() });
        }
        shell.detached = true;
        let pid = self.exec(shell).await?.pid;
        let found = self.terminals().await?.into_iter().find(|terminal| terminal.pid == pid);
        found.ok_or_else(|| self.no_terminal(&pid.to_string()))
    }

    /// What it has shown, then what it shows; its input is the terminal's.
    pub(crate) async fn attach_terminal(&self, terminal: &Terminal) -> Result<Exec, DaemonError> {
        self.attach(terminal.pid).await
    }

    /// Ends it, with all that runs in it; returns when it has ended.
    pub(crate) async fn close_terminal(&self, terminal: &Terminal) -> Result<(), DaemonError> {
        self.kill(terminal.pid, None).await?;
        let ended = tokio::time::timeout(ANSWER, self.wait(terminal.pid)).await;
        ended.unwrap_or_else(|_| Err(self.silent("end a terminal of", ANSWER))).map(drop)
    }

    /// Returns when it has the text.
    pub(crate) async fn type_in(&self, terminal: &Terminal, text: &str) -> Result<(), DaemonError> {
        self.visit(terminal, Visit::Type(text)).await.map(drop)
    }

    /// Returns when it has the size.
    pub(crate) async fn resize_terminal(
        &self,
        terminal: &Terminal,
        size: WindowSize,
    ) -> Result<(), DaemonError> {
        self.visit(terminal, Visit::Resize(size)).await.map(drop)
    }

    /// The last of what it has shown.
    pub(crate) async fn shown(&self, terminal: &Terminal) -> Result<Vec<u8>, DaemonError> {
        self.visit(terminal, Visit::Look).await
    }

    /// Attaches, does it and leaves; what is answered is what was shown until then.
    async fn visit(&self, terminal: &Terminal, visit: Visit<'_>) -> Result<Vec<u8>, DaemonError> {
        let Exec { mut input, mut output, .. } = self.attach_terminal(terminal).await?;
        let visit = async {
            let sent = match visit {
                Visit::Type(text) => input.write(text.as_bytes()).await,
                Visit::Resize(size) => input.resize(size).await,
                Visit::Look => Ok(()),
            };
            if sent.is_ok() {
                // Why it cannot be sent, the answer tells.
                let _ = input.end().await;
            }
            let mut shown = Vec::new();
            loop {
                match output.next_until_left().await {
                    Ok(None) => return Ok(shown),
                    Ok(Some(Event::Stdout(bytes) | Event::Stderr(bytes))) => {
                        shown.extend_from_slice(&bytes[..bytes.len().min(MAX_SHOWN - shown.len())]);
                    }
                    Ok(Some(Event::Exit(_))) => return Err(self.no_terminal(&terminal.id())),
                    Err(error) => return Err(self.cause(error).await),
                }
            }
        };
        tokio::time::timeout(ANSWER, visit)
            .await
            .unwrap_or_else(|_| Err(self.silent("use a terminal of", ANSWER)))
    }
}

enum Visit<'a> {
    Type(&'a str),
    Resize(WindowSize),
    Look,
}

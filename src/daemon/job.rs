//! The job of a sandbox: the command that it is there for. It starts with the machine, and the machine stops when it has
//! ended. What it writes is kept in the sandbox's log.
//!
//! In the guest it is a detached command, which outlives the daemon: the next one attaches to it, and goes on with the log where
//! the last one has left it.

use std::sync::Arc;
use std::time::Duration;

use protocol::Exit;

use super::create::blocking;
use super::error::DaemonError;
use super::life::GRACE;
use super::log::{Reader, Stream, Writer};
use super::sandbox::Sandbox;
use super::{Daemon, chain};
use crate::sandbox::{Event, Handle};

/// Before a stream that has broken off is tried again.
const PAUSE: Duration = Duration::from_secs(1);

impl Daemon {
    /// Starts the job of a sandbox whose machine has just come up, if it has one.
    pub(super) async fn start_job(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handle: &Arc<Handle>,
    ) -> Result<(), DaemonError> {
        let Some(mut exec) = sandbox.record().job.as_ref().map(|job| job.exec.clone()) else { return Ok(()) };
        let directory = Arc::clone(&sandbox.directory);
        let opened = blocking(move || {
            Ok(Writer::open(directory).and_then(|mut log| {
                log.begin()?;
                Ok(log)
            }))
        });
        let log = opened.await?.map_err(|e| sandbox.host("write the log of", e))?;
        exec.detached = true;
        let pid = sandbox.exec(exec).await?.pid;
        if let Some(job) = &mut sandbox.record().job {
            (job.pid, job.exit) = (Some(pid), None);
        }
        sandbox.write_record().await?;
        self.follow_job(sandbox, handle, pid, log);
        Ok(())
    }

    /// Finds the job of a sandbox again whose machine runs.
    pub(super) fn find_job(self: &Arc<Self>, sandbox: &Arc<Sandbox>, handle: &Arc<Handle>) {
        let pid = sandbox.record().job.as_ref().filter(|job| job.exit.is_none()).and_then(|job| job.pid);
        let Some(pid) = pid else { return };
        match Writer::open(Arc::clone(&sandbox.directory)) {
            Ok(log) => self.follow_job(sandbox, handle, pid, log),
            Err(error) => tracing::error!(sandbox = sandbox.id(), %error, "its log cannot be written"),
        }
    }

    fn follow_job(self: &Arc<Self>, sandbox: &Arc<Sandbox>, handle: &Arc<Handle>, pid: u32, mut log: Writer) {
        let (daemon, sandbox, handle) = (Arc::clone(self), Arc::clone(sandbox), Arc::clone(handle));
        tokio::spawn(async move {
            let exit = loop {
                let followed;
                (log, followed) = follow(&sandbox, &handle, pid, log).await;
                match followed {
                    Ok(exit) => break Some(exit),
                    Err(error) => tracing::debug!(sandbox = sandbox.id(), %error, "its job is lost sight of"),
                }
                tokio::select! {
                    _ = handle.ended() => break None,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            };
            if exit.is_some() || !sandbox.has_fallen_asleep(&handle) {
                daemon.job_ended(&sandbox, exit).await;
            }
        });
    }

    /// `exit`: none where the machine has ended before.
    async fn job_ended(self: &Arc<Self>, sandbox: &Arc<Sandbox>, exit: Option<Exit>) {
        let removes = {
            let mut record = sandbox.record();
            let Some(job) = &mut record.job else { return };
            job.exit = exit.or(job.exit);
            job.removes
        };
        if removes {
            // Somebody may have been faster.
            let _ = self.remove(Arc::clone(sandbox)).await;
            return;
        }
        let Some(exit) = exit else { return };
        tracing::info!(sandbox = sandbox.id(), exit = ?exit, "its job has ended");
        if let Err(error) = sandbox.write_record().await {
            tracing::error!(sandbox = sandbox.id(), error = %chain(&error), "the end of its job is not kept");
        }
        sandbox.output.send_replace(());
        // It fails where somebody else has stopped it.
        let _ = self.stop(sandbox, GRACE).await;
    }
}

impl Sandbox {
    /// Whether there is more to come in the log.
    pub(crate) fn job_runs(&self) -> bool {
        self.state().is_up() && self.record().job.as_ref().is_some_and(|job| job.exit.is_none())
    }

    /// What its job has written so far, and what tells of more.
    pub(crate) async fn log(&self) -> Result<(Reader, tokio::sync::watch::Receiver<()>), DaemonError> {
        if self.record().job.is_none() {
            return Err(DaemonError::NoJob(self.name()));
        }
        let (directory, more) = (Arc::clone(&self.directory), self.output.subscribe());
        let reader = blocking(move || Ok(Reader::open(directory))).await?;
        Ok((reader.map_err(|e| self.host("read the log of", e))?, more))
    }
}

/// Writes to the log until the job has ended, or the stream has.
async fn follow(
    sandbox: &Sandbox,
    handle: &Handle,
    pid: u32,
    mut log: Writer,
) -> (Writer, Result<Exit, crate::sandbox::ExecError>) {
    // Its input is kept: without it the stream would end.
    let mut attached = match handle.attach(pid, log.next()).await {
        Ok(attached) => attached,
        Err(error) => return (log, Err(error)),
    };
    let mut told = false;
    loop {
        let (stream, bytes) = match attached.output.next().await {
            Ok(Event::Stdout(bytes)) => (Stream::Stdout, bytes),
            Ok(Event::Stderr(bytes)) => (Stream::Stderr, bytes),
            Ok(Event::Exit(exit)) => return (log, Ok(exit)),
            Err(error) => return (log, Err(error)),
        };
        // In place: a piece goes to the page cache, and only a disk that is slow holds this thread up.
        if let Err(error) = log.push(stream, &bytes)
            && !std::mem::replace(&mut told, true)
        {
            tracing::error!(sandbox = sandbox.id(), %error, "its log cannot be written");
        }
        sandbox.output.send_replace(());
    }
}

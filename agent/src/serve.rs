//! What the host asks for on a stream.

use crate::process::{Process, Wake};
use crate::stream::{Stream, StreamError};
use crate::{Agent, attach, exec, failure, files, forward, kmsg, power, refusal, start_thread, vsock};
use protocol::{Error, ErrorCode, FrameType, Request};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Accepts streams for ever.
pub fn accept_forever(agent: &Arc<Agent>, listener: &OwnedFd) -> ! {
    loop {
        match vsock::accept(listener) {
            Ok(socket) => serve_in_thread(agent, socket),
            Err(error) => {
                kmsg::warning(format_args!("accept: {error}"));
                // Out of descriptors or memory: those who have them need a moment.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Serves one stream in a thread of its own, or closes it if there are too many.
pub fn serve_in_thread(agent: &Arc<Agent>, socket: OwnedFd) {
    let Some(count) = agent.enter() else { return };
    let agent = Arc::clone(agent);
    let served = start_thread(move || {
        serve(&agent, socket);
        drop(count);
    });
    if let Err(error) = served {
        kmsg::warning(format_args!("a thread for a stream: {error}"));
    }
}

/// Serves one stream to its end.
pub fn serve(agent: &Arc<Agent>, socket: OwnedFd) {
    let mut stream = Stream::new(socket);
    // A stream that ends early wants no answer.
    let Ok(request) = stream.read(|frame| frame.message::<Request>()) else { return };
    let done = match request {
        Err(error) => stream.message(&refusal(ErrorCode::BadRequest, with_source(&error))),
        Ok(Request::Exec(exec)) => {
            exec::exec(agent, &exec, stream);
            return;
        }
        Ok(Request::List) => list(agent, &stream),
        Ok(Request::Wait { pid }) => wait(agent, pid, &stream),
        Ok(Request::Kill { pid, signal }) => stream.answer(kill(agent, pid, signal)),
        Ok(Request::Attach { pid, skip }) => attach::attach(agent, pid, skip, stream),
        Ok(Request::Upload { path, owner }) => files::upload(&mut stream, &path, owner.as_deref()),
        Ok(Request::Download { path, follow }) => files::download(&stream, &path, follow),
        Ok(Request::Forward { port }) => forward::forward(stream, port),
        Ok(Request::File(request)) => files::file(&mut stream, &request),
        Ok(Request::PowerOff { grace_ms }) => {
            drop(stream.mark(FrameType::Done));
            power::off(agent, grace_ms)
        }
        Ok(Request::Reseed { wall_time_ns, entropy }) => stream.answer(power::reseed(wall_time_ns, &entropy)),
    };
    // The host sees the end of the stream, whichever side it came from.
    drop(done);
}

/// An error with what caused it.
pub(crate) fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// The signal with this number, 1 to 64.
pub(crate) fn signal(number: i32) -> Option<Signal> {
    // SAFETY: every one of these numbers is a signal on Linux, and it is only passed to kill(2), which musl and glibc leave alone.
    (1..=64).contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) })
}

fn find(agent: &Agent, pid: u32) -> Result<Arc<Process>, Error> {
    agent.processes.get(pid).ok_or_else(|| refusal(ErrorCode::NoSuchProcess, format!("no process {pid}")))
}

fn list(agent: &Agent, stream: &Stream) -> Result<(), StreamError> {
    for process in agent.processes.list() {
        stream.message(&process.entry())?;
    }
    stream.mark(FrameType::Done)
}

fn kill(agent: &Agent, pid: u32, number: Option<i32>) -> Result<(), Error> {
    let process = find(agent, pid)?;
    let running =
        match number {
            None => process.end(),
            Some(number) => process.signal(signal(number).ok_or_else(|| {
                refusal(ErrorCode::BadRequest, format!("signal {number}: not from 1 to 64"))
            })?),
        };
    if running { Ok(()) } else { Err(refusal(ErrorCode::ProcessEnded, format!("process {pid} has ended"))) }
}

fn wait(agent: &Agent, pid: u32, stream: &Stream) -> Result<(), StreamError> {
    let (process, wake) = match watched(agent, pid) {
        Ok(found) => found,
        Err(error) => return stream.message(&error),
    };
    loop {
        if let Some(exit) = process.exit() {
            return stream.message(&exit);
        }
        until_woken(&wake, stream)?;
    }
}

/// A command, and what wakes this thread when something happens to it.
pub(crate) fn watched(agent: &Agent, pid: u32) -> Result<(Arc<Process>, Arc<Wake>), Error> {
    let process = find(agent, pid)?;
    let wake = Arc::new(Wake::new().map_err(|errno| failure(ErrorCode::Internal, "eventfd", errno))?);
    process.watch(&wake);
    Ok((process, wake))
}

/// Waits until something has happened; an error if it is that the host has gone.
fn until_woken(wake: &Wake, stream: &Stream) -> Result<(), StreamError> {
    let mut fds = [PollFd::new(wake, PollFlags::IN), PollFd::new(stream, PollFlags::RDHUP)];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => (),
        Err(error) => return Err(StreamError::Broken(error)),
    }
    let [woken, gone] = fds.map(|fd| !fd.revents().is_empty());
    if gone {
        return Err(StreamError::Ended);
    }
    if woken {
        wake.clear();
    }
    Ok(())
}

//! What the host asks for on a stream.

use crate::process::{Process, Wake};
use crate::stream::{Stream, StreamError};
use crate::{
    Agent, attach, datagrams, exec, failure, files, forward, kmsg, lock, power, refusal, start_thread, vsock,
};
use protocol::{Error, ErrorCode, FrameType, Request};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// So many threads wait for the next stream at most: starting one costs more than keeping it.
const MAX_IDLE: usize = 4;

/// The threads that serve streams. Each accepts one, serves it to its end and accepts again. Of those that have none one waits at the
/// listener, the others for its place.
#[derive(Debug)]
struct Servers {
    agent: Arc<Agent>,
    listener: Mutex<OwnedFd>,
    /// How many have none.
    idle: AtomicUsize,
}

/// Serves every stream that comes to `listener`, for ever, in threads of its own.
pub fn start(agent: &Arc<Agent>, listener: OwnedFd) -> std::io::Result<()> {
    let agent = Arc::clone(agent);
    let servers = Arc::new(Servers { agent, listener: Mutex::new(listener), idle: AtomicUsize::new(0) });
    // The second is there when the first has a stream.
    servers.add()?;
    servers.add()
}

impl Servers {
    fn add(self: &Arc<Self>) -> std::io::Result<()> {
        self.idle.fetch_add(1, Ordering::Relaxed);
        let servers = Arc::clone(self);
        start_thread(move || servers.serve()).inspect_err(|_| {
            self.idle.fetch_sub(1, Ordering::Relaxed);
        })
    }

    fn serve(self: Arc<Self>) {
        loop {
            let socket = self.accept();
            if self.idle.fetch_sub(1, Ordering::Relaxed) == 1
                && let Err(error) = self.add()
            {
                // Nobody would accept the streams by which others are ended.
                kmsg::warning(format_args!("a thread for streams: {error}"));
                self.idle.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // One too many is closed.
            if let Some(count) = self.agent.enter() {
                serve(&self.agent, socket);
                drop(count);
            }
            // In one step: counted for a moment, it would be taken for one that accepts.
            let stays = |idle| (idle < MAX_IDLE).then_some(idle + 1);
            if self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, stays).is_err() {
                return;
            }
        }
    }

    fn accept(&self) -> OwnedFd {
        let listener = lock(&self.listener);
        loop {
            match vsock::accept(&listener) {
                Ok(socket) => return socket,
                Err(error) => {
                    kmsg::warning(format_args!("accept: {error}"));
                    // Out of descriptors or memory: those who have them need a moment.
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

/// Serves one stream to its end.
fn serve(agent: &Arc<Agent>, socket: OwnedFd) {
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
        Ok(Request::ForwardUdp { port }) => datagrams::forward(stream, port),
        Ok(Request::File(request)) => files::file(&mut stream, &request),
        Ok(Request::PowerOff { grace_ms }) => {
            drop(stream.mark(FrameType::Done));
            power::off(agent, grace_ms)
        }
        Ok(Request::Reseed { wall_time_ns, entropy, config }) => {
            stream.answer(power::reseed(agent, wall_time_ns, &entropy, config))
        }
        Ok(Request::Suspend) => {
            power::suspend(agent);
            stream.mark(FrameType::Done)
        }
        Ok(Request::Continue) => {
            power::go_on(agent);
            stream.mark(FrameType::Done)
        }
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

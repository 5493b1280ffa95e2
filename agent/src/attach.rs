//! The output of a detached command, for whoever attaches to it; at a terminal also what is typed there.

use crate::exec::stdio;
use crate::process::{Output, Process, Wake};
use crate::serve::watched;
use crate::stream::{Stream, StreamError};
use crate::{Agent, refusal};
use protocol::{ErrorCode, FrameType, Started, Truncated, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Carries out an Attach request.
pub(crate) fn attach(agent: &Agent, pid: u32, skip: u64, stream: Stream) -> Result<(), StreamError> {
    let (process, wake) = match watched(agent, pid) {
        Ok((process, _)) if !process.detached => {
            let message = format!("process {pid} runs in the foreground; its output goes to who started it");
            return stream.message(&refusal(ErrorCode::BadRequest, message));
        }
        Ok(found) => found,
        Err(error) => return stream.message(&error),
    };
    let _attached = process.attach();
    stream.message(&Started { pid })?;
    let terminal = process.terminal();
    Attachment {
        process,
        wake,
        stream,
        terminal,
        input: Vec::new(),
        frame: Vec::new(),
        sent: 0,
        position: skip,
        lost: false,
        leaves: None,
    }
    .run()
}

/// One host that is attached. As with the pump, input is received only when the piece before it has been written, and output is looked for
/// only when the piece before it has been sent. Neither holds up the other: what is typed may be what ends a flood.
struct Attachment {
    process: Arc<Process>,
    wake: Arc<Wake>,
    stream: Stream,
    terminal: Option<OwnedFd>,
    /// What is not written yet.
    input: Vec<u8>,
    /// A piece of output, of which `sent` bytes have been sent.
    frame: Vec<u8>,
    sent: usize,
    /// In the output.
    position: u64,
    /// Whether some of it was dropped before it could be sent.
    lost: bool,
    /// Where in the output the host leaves.
    leaves: Option<u64>,
}

impl Attachment {
    fn run(mut self) -> Result<(), StreamError> {
        loop {
            self.take_input()?;
            self.send()?;
            if self.is_blocked() {
                self.wait()?;
                continue;
            }
            if self.leaves.is_some_and(|end| self.position >= end) {
                return self.stream.mark(FrameType::Done);
            }
            let expected = self.position;
            match self.process.output(&mut self.position) {
                Output::Piece(kind, bytes) => {
                    self.lost |= self.position != expected + 1;
                    self.frame.clear();
                    self.frame.extend_from_slice(&protocol::header(kind, bytes.len()));
                    self.frame.extend_from_slice(&bytes);
                    self.sent = 0;
                }
                Output::Exit(mut exit) => {
                    if self.lost {
                        // Which of the two it was is not known any more.
                        exit.truncated = Truncated { stdout: true, stderr: true };
                    }
                    return self.stream.message(&exit);
                }
                Output::Nothing => self.wait()?,
            }
        }
    }

    /// Sends what is there, as far as there is room.
    fn send(&mut self) -> Result<(), StreamError> {
        if self.is_blocked() {
            self.sent += self.stream.try_send(&self.frame[self.sent..])?;
        }
        Ok(())
    }

    /// Whether the host has not taken all of a piece yet.
    const fn is_blocked(&self) -> bool {
        self.sent < self.frame.len()
    }

    /// Takes what the host has sent, as far as the terminal takes it.
    fn take_input(&mut self) -> Result<(), StreamError> {
        let mut received = false;
        while self.leaves.is_none() {
            self.write_input();
            if !self.input.is_empty() {
                return Ok(());
            }
            match self.stream.next_frame()? {
                Some(frame) => match frame.kind {
                    FrameType::Stdin => {
                        if self.terminal.is_some() {
                            self.input.extend_from_slice(frame.payload);
                        }
                    }
                    FrameType::StdinEnd => self.leaves = Some(self.process.output_end()),
                    FrameType::Resize => {
                        let size: WindowSize = frame.message()?;
                        if let Some(terminal) = &self.terminal {
                            // It fails only for what is no terminal.
                            let _ = stdio::resize(terminal, size);
                        }
                    }
                    _ => return Err(StreamError::Ended),
                },
                None if received => return Ok(()),
                None => {
                    self.stream.receive(RecvFlags::DONTWAIT)?;
                    received = true;
                }
            }
        }
        Ok(())
    }

    fn write_input(&mut self) {
        let Some(terminal) = self.terminal.as_ref().filter(|_| !self.input.is_empty()) else { return };
        match rustix::io::write(terminal, &self.input) {
            Ok(count) => drop(self.input.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => (),
            Err(_) => {
                // Nobody reads there any more; what still comes is dropped.
                self.input.clear();
                self.terminal = None;
            }
        }
    }

    /// Waits until something has happened; an error if it is that the host has gone.
    fn wait(&self) -> Result<(), StreamError> {
        let mut wanted = PollFlags::RDHUP;
        // Behind the end of its input there is nothing to take.
        wanted.set(PollFlags::IN, self.input.is_empty() && self.leaves.is_none());
        wanted.set(PollFlags::OUT, self.is_blocked());
        // More output than is sent already wakes nobody.
        let woken = if self.is_blocked() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&*self.wake, woken), PollFd::new(&self.stream, wanted)];
        let terminal = self.terminal.as_ref().filter(|_| !self.input.is_empty());
        fds.extend(terminal.map(|terminal| PollFd::new(terminal, PollFlags::OUT)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(StreamError::Broken(error)),
        }
        if fds[1].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Err(StreamError::Ended);
        }
        if !fds[0].revents().is_empty() {
            self.wake.clear();
        }
        Ok(())
    }
}

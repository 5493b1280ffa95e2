//! The side of whoever runs the machine.

use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use net::engine::Limits;
use net::policy::Policy;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::{Greeting, MAX_LINE, Metrics, Request, Response, Status};
use crate::devices::net::NumberedDenial;
use crate::spec::{Target, Transport, VERSION};

/// A connection to a machine's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<Timed>,
    timeout: Duration,
    greeting: Greeting,
    pidfd: OwnedFd,
}

/// A connection of which only the machine's process is known yet. That is enough to end it, whatever else it says.
#[derive(Debug)]
pub struct Contact {
    stream: Timed,
    timeout: Duration,
    /// The pidfd comes with it.
    first: u8,
    pidfd: OwnedFd,
}

/// A stream that a whole exchange has one deadline on.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    end: Instant,
}

/// A machine that cannot be reached or does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection failed, or nothing came in time.
    #[error("no answer from the machine's control socket")]
    Io(#[from] io::Error),
    /// The machine has ended the connection: it is ending itself.
    #[error("the machine has closed its control socket")]
    Closed,
    /// What came is not of this protocol.
    #[error("the machine's control socket sent {what}")]
    Protocol {
        /// What came.
        what: &'static str,
        /// Why it is wrong, where more can be said.
        source: Option<serde_json::Error>,
    },
    /// The machine's process is of a version that this program does not know.
    #[error(
        "the machine runs version {0} of the control protocol, and this program knows {VERSION}: use the program that started it"
    )]
    Version(u32),
    /// The machine has refused or failed.
    #[error("{0}")]
    Refused(String),
}

impl Contact {
    /// Waits for the first byte. The whole greeting has to come within `timeout`, and so does each answer after it.
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Self, ControlError> {
        let stream = Timed { stream, end: Instant::now() + timeout };
        let (first, pidfd) = receive_with_descriptor(&stream)?;
        Ok(Self { stream, timeout, first, pidfd })
    }

    /// Refers to the machine's process for as long as it is open, whatever becomes of its number.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Reads the rest of the greeting.
    pub fn greeted(self) -> Result<Client, ControlError> {
        let Self { stream, timeout, first, pidfd } = self;
        let mut stream = BufReader::new(stream);
        let mut line = vec![first];
        read_line(&mut stream, &mut line)?;
        let greeting: Greeting = parse(&line)?;
        if greeting.version != VERSION {
            return Err(ControlError::Version(greeting.version));
        }
        Ok(Client { stream, timeout, greeting, pidfd })
    }
}

impl Client {
    /// Reads the greeting, which has to come within `timeout`, as each answer after it.
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Self, ControlError> {
        Contact::new(stream, timeout)?.greeted()
    }

    /// What the machine has said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Refers to the machine's process for as long as it is open, whatever becomes of its number.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Keeps only the reference to the machine's process.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// How the machine is.
    pub fn status(&mut self) -> Result<Status, ControlError> {
        match self.ask(&Request::Status)? {
            Response::Status(status) => Ok(status),
            other => Err(unexpected(other)),
        }
    }

    /// What it has cost.
    pub fn metrics(&mut self) -> Result<Metrics, ControlError> {
        match self.ask(&Request::Metrics)? {
            Response::Metrics(metrics) => Ok(metrics),
            other => Err(unexpected(other)),
        }
    }

    /// Gives it another network policy; flows that it does not allow are ended.
    pub fn set_network(&mut self, policy: Policy) -> Result<(), ControlError> {
        self.done(&Request::SetNetwork { policy })
    }

    /// Gives its network other limits.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), ControlError> {
        self.done(&Request::SetLimits { limits })
    }

    /// Tells it of the host's name servers.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) -> Result<(), ControlError> {
        self.done(&Request::SetResolvers { resolvers })
    }

    /// What its network policy has denied after number `after`, oldest first; not all of it where it is much.
    pub fn denials(&mut self, after: u64) -> Result<Vec<NumberedDenial>, ControlError> {
        match self.ask(&Request::Denials { after })? {
            Response::Denials { denials } => Ok(denials),
            other => Err(unexpected(other)),
        }
    }

    /// Halts it.
    pub fn pause(&mut self) -> Result<(), ControlError> {
        self.done(&Request::Pause)
    }

    /// Goes on after a pause.
    pub fn resume(&mut self) -> Result<(), ControlError> {
        self.done(&Request::Resume)
    }

    /// Writes it, paused, to `file`, which is empty and open for reading and writing; returns when it is on the disk.
    pub fn save(&mut self, file: BorrowedFd<'_>) -> Result<(), ControlError> {
        match self.ask_with(&Request::Save, Some(file))? {
            Response::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Has it write which pages of its RAM are not those of the snapshot any more to `file`, which is empty and open for writing.
    pub fn touched(&mut self, file: BorrowedFd<'_>) -> Result<(), ControlError> {
        match self.ask_with(&Request::Touched, Some(file))? {
            Response::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Ends it at once. Its process may live for some ms more: see [`pidfd`](Self::pidfd).
    pub fn kill(&mut self) -> Result<(), ControlError> {
        self.done(&Request::Kill)
    }

    /// Where its sockets of published ports are.
    pub fn ports(&mut self) -> Result<Vec<(Transport, SocketAddr)>, ControlError> {
        match self.ask(&Request::Ports)? {
            Response::Ports { addresses, udp } => {
                let of = |transport| move |address| (transport, address);
                let tcp = addresses.into_iter().map(of(Transport::Tcp));
                Ok(tcp.chain(udp.into_iter().map(of(Transport::Udp))).collect())
            }
            other => Err(unexpected(other)),
        }
    }

    /// Publishes one more: `listener` is a TCP socket that listens, or a UDP socket that is bound.
    pub fn add_port(&mut self, listener: BorrowedFd<'_>, target: Target) -> Result<(), ControlError> {
        match self.ask_with(&Request::AddPort(target), Some(listener))? {
            Response::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Closes the socket at `address`, if there is one.
    pub fn remove_port(&mut self, transport: Transport, address: SocketAddr) -> Result<(), ControlError> {
        self.done(&match transport {
            Transport::Tcp => Request::RemovePort { address },
            Transport::Udp => Request::RemoveUdpPort { address },
        })
    }

    fn done(&mut self, request: &Request) -> Result<(), ControlError> {
        match self.ask(request)? {
            Response::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, ControlError> {
        self.ask_with(request, None)
    }

    fn ask_with(
        &mut self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Response, ControlError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        let stream = self.stream.get_mut();
        stream.end = Instant::now() + self.timeout;
        // The descriptor goes with the first byte.
        let sent = descriptor.map_or(Ok(0), |descriptor| stream.send_with(&line, descriptor))?;
        stream.write_all(&line[sent..])?;
        line.clear();
        read_line(&mut self.stream, &mut line)?;
        parse(&line)
    }
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// Sends a part of `bytes`, and a descriptor with it.
    fn send_with(&self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        self.stream.set_write_timeout(self.left()?)?;
        Ok(sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
    }
}

impl io::Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl io::Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unexpected(response: Response) -> ControlError {
    match response {
        Response::Error { message } => ControlError::Refused(message),
        _ => ControlError::Protocol { what: "the answer to another request", source: None },
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Result<T, ControlError> {
    serde_json::from_slice(line).map_err(|source| ControlError::Protocol {
        what: "a line that is not understood",
        source: Some(source),
    })
}

/// Appends a line to `line`, with its end.
fn read_line(stream: &mut BufReader<Timed>, line: &mut Vec<u8>) -> Result<(), ControlError> {
    stream.by_ref().take(MAX_LINE as u64).read_until(b'\n', line)?;
    match line.last() {
        Some(b'\n') => Ok(()),
        _ if line.len() >= MAX_LINE => Err(ControlError::Protocol { what: "too long a line", source: None }),
        _ => Err(ControlError::Closed),
    }
}

/// The first byte of the greeting and the descriptor that comes with it.
fn receive_with_descriptor(stream: &Timed) -> Result<(u8, OwnedFd), ControlError> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        stream.stream.set_read_timeout(stream.left()?)?;
        match recvmsg(&stream.stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.map_err(io::Error::from)?,
        }
    };
    if received.bytes == 0 {
        return Err(ControlError::Closed);
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let pidfd = descriptor.ok_or(ControlError::Protocol { what: "no pidfd", source: None })?;
    Ok((byte[0], pidfd))
}

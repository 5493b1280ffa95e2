//! The first line of a client of the host: `CONNECT <port>\n`.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// The longest line, with its end.
pub(super) const MAX_LINE: usize = 32;

/// What a client has said so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// A port of the guest. The line is taken from the socket, and nothing of what follows it.
    Connect(u32),
    /// Not the whole line yet.
    Incomplete,
    /// Something else, or it has gone.
    Invalid,
}

/// Looks at what `socket` holds. An incomplete line stays there, so that nothing is kept for clients that say nothing.
pub(super) fn read(socket: &OwnedFd) -> Greeting {
    let mut line = [0; MAX_LINE];
    let held = match recv(socket, &mut line, RecvFlags::PEEK) {
        Ok((held, _)) if held > 0 => held,
        Err(Errno::AGAIN | Errno::INTR) => return Greeting::Incomplete,
        Ok(_) | Err(_) => return Greeting::Invalid,
    };
    let Some(end) = line[..held].iter().position(|&byte| byte == b'\n') else {
        return if held < MAX_LINE { Greeting::Incomplete } else { Greeting::Invalid };
    };
    match (parse(&line[..end]), recv(socket, &mut line[..=end], RecvFlags::empty())) {
        (Some(port), Ok((taken, _))) if taken == end + 1 => Greeting::Connect(port),
        _ => Greeting::Invalid,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?;
    // The standard parser takes a sign as well.
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(port).ok()?.parse().ok()
}

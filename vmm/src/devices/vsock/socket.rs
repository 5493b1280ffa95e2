//! Reads and writes of a client's socket, a stream socket of any kind which is non-blocking; of guest memory where they lie.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::{Shutdown, shutdown, sockopt};
use vm_memory::VolatileSlice;

/// Without SIGPIPE for a client that has gone, whatever the process does with that signal.
const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Sends what the socket takes of `bytes`.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its whole length during the call.
    unsafe { send_raw(socket, bytes.as_ptr(), bytes.len()) }
}

/// Sends what the socket takes of `slice`.
pub(super) fn send_from_guest(socket: &OwnedFd, slice: &VolatileSlice<'_>) -> io::Result<usize> {
    let guard = slice.ptr_guard();
    // SAFETY: `slice` is mapped for its whole length while the guard lives. The guest may write to it meanwhile: only the
    // kernel reads it, so that no reference to it exists here.
    unsafe { send_raw(socket, guard.as_ptr(), slice.len()) }
}

/// # Safety
/// `len` bytes from `start` on are mapped and readable during the call.
unsafe fn send_raw(socket: &OwnedFd, start: *const u8, len: usize) -> io::Result<usize> {
    // SAFETY: as the caller says; the descriptor is open.
    let sent = unsafe { libc::send(socket.as_raw_fd(), start.cast(), len, FLAGS) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives at most `len` bytes to the start of `slice`; none at the end of file.
pub(super) fn receive_to_guest(socket: &OwnedFd, slice: &VolatileSlice<'_>, len: usize) -> io::Result<usize> {
    let len = len.min(slice.len());
    let guard = slice.ptr_guard_mut();
    // SAFETY: `slice` is mapped and at least `len` bytes long while the guard lives. The guest may look at it meanwhile:
    // only the kernel writes it, so that no reference to it exists here. No dirty pages are tracked (bitmap of type `()`).
    let read = unsafe { libc::recv(socket.as_raw_fd(), guard.as_ptr().cast(), len, libc::MSG_DONTWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// The end of file of one direction. Fails where the client has gone, which is told by an event.
pub(super) fn end(socket: &OwnedFd, direction: Shutdown) {
    let _ = shutdown(socket, direction);
}

/// The client of this TCP socket sees a reset when it is closed, and not an end of file.
pub(super) fn reset(socket: &OwnedFd) {
    // Fails where there is nobody any more.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

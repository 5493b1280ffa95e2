//! vsock sockets: neither std nor rustix knows them.

use libc::{AF_VSOCK, SOCK_CLOEXEC, SOCK_STREAM, VMADDR_CID_ANY, VMADDR_CID_HOST, sockaddr_vm, timeval};
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The pending streams of a burst: all that there may be.
const BACKLOG: i32 = protocol::MAX_STREAMS as i32;

/// SO_VM_SOCKETS_CONNECT_TIMEOUT of vsock(7), as of 64-bit machines.
const SO_CONNECT_TIMEOUT: i32 = 6;
/// The kernel's own are two seconds, and on a host that is short of CPU its answer may take longer. It takes our first stream once: one that
/// we give up is not taken again.
static CONNECT_TIMEOUT: timeval = timeval { tv_sec: 30, tv_usec: 0 };

/// Listens on a port of this machine.
pub fn listen(port: u32) -> Result<OwnedFd, Error> {
    let socket = socket()?;
    let (address, length) = address(VMADDR_CID_ANY, port);
    // SAFETY: `address` is a sockaddr_vm of `length` bytes that lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Connects to a port of the host.
pub fn connect(port: u32) -> Result<OwnedFd, Error> {
    let socket = socket()?;
    let (timeout, length) = (&raw const CONNECT_TIMEOUT, size_of::<timeval>() as u32);
    // SAFETY: `timeout` is of `length` bytes, and lives for ever.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), AF_VSOCK, SO_CONNECT_TIMEOUT, timeout.cast(), length)
    })?;
    let (address, length) = address(VMADDR_CID_HOST, port);
    // SAFETY: `address` is a sockaddr_vm of `length` bytes that lives through the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// The next stream of a listener.
pub fn accept(listener: &OwnedFd) -> Result<OwnedFd, Error> {
    let null = std::ptr::null_mut();
    // SAFETY: without an address there is nothing to write to.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), null, null.cast(), SOCK_CLOEXEC) })?;
    // SAFETY: accept4 returned it just now; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn socket() -> Result<OwnedFd, Error> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0) })?;
    // SAFETY: socket returned it just now; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> (sockaddr_vm, u32) {
    // SAFETY: a structure of integers, for which zero is valid.
    let mut address: sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = AF_VSOCK as u16;
    address.svm_cid = cid;
    address.svm_port = port;
    (address, size_of::<sockaddr_vm>() as u32)
}

fn check(result: i32) -> Result<i32, Error> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

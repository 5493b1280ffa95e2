//! Sockets of the host, which never wait.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvAncillaryBuffer, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto,
    sockopt,
};
use rustix::process::{Resource, getrlimit};

/// How many sockets there may be of `most`: no more than `part` parts in eight of the descriptors that this process may have, since
/// others need some as well.
pub(super) fn bounded(most: usize, part: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    most.min(usize::try_from(limit / 8).unwrap_or(usize::MAX).saturating_mul(part)).max(1)
}

/// A socket for what `address` is of.
pub(super) fn socket(
    address: &IpAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)
}

/// A stream on its way to `address`. `true`: it is there already.
pub(super) fn connect(address: &SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let socket = socket(&address.ip(), SocketType::STREAM, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    // A peer that vanishes is noticed, after hours: nobody else looks after a flow on which nothing is said.
    sockopt::set_socket_keepalive(&socket, true)?;
    match rustix::net::connect(&socket, &outside(*address)?) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

/// Makes closing `socket` a reset.
pub(super) fn reset_at_close(socket: impl AsFd) {
    // It fails on none that is a stream.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// A socket for datagrams from and to anywhere, which keeps in mind those that did not arrive ([`failed`]).
pub(super) fn udp(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket(&address.ip(), SocketType::DGRAM, None)?;
    let (level, option) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, which is alive and as long as it is said to be.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    // Without it nobody is told.
    debug_assert_eq!(result, 0, "IP_RECVERR");
    Ok(socket)
}

/// Whom a datagram did not reach, and why not, for as long as there are such.
pub(super) fn failed(socket: impl AsFd) -> Option<(SocketAddr, Errno)> {
    let why = match sockopt::socket_error(&socket) {
        Ok(Err(error)) => error,
        // A datagram that was sent since has taken it.
        _ => Errno::CONNREFUSED,
    };
    let mut control = RecvAncillaryBuffer::default();
    let message = rustix::net::recvmsg(&socket, &mut [], &mut control, RecvFlags::ERRQUEUE).ok()?;
    let to = SocketAddr::try_from(message.address?).ok()?;
    Some((SocketAddr::new(inside(to.ip()), to.port()), why))
}

/// A socket for datagrams of `address` alone.
pub(super) fn udp_to(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket(&address.ip(), SocketType::DGRAM, None)?;
    rustix::net::connect(&socket, &outside(*address)?)?;
    Ok(socket)
}

/// A socket for echo requests, which the host's administrator may have forbidden (`net.ipv4.ping_group_range`).
pub(super) fn ping(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let protocol: Protocol = if address.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    socket(&address.ip(), SocketType::DGRAM, Some(protocol))
}

/// Sends a datagram to `address`.
pub(super) fn send_to(socket: impl AsFd, payload: &[u8], address: &SocketAddr) -> Result<(), Errno> {
    let to = outside(*address)?;
    let send = || rustix::net::sendto(&socket, payload, SendFlags::NOSIGNAL, &to);
    // The first error may be that of an earlier datagram.
    send().or_else(|_| send()).map(|_| ())
}

/// Takes a datagram, and says how long it is and who has sent it.
pub(super) fn receive_from(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, SocketAddr), Errno> {
    let (len, _, from) = rustix::net::recvfrom(socket, buffer, RecvFlags::empty())?;
    let from = from.ok_or(Errno::DESTADDRREQ)?;
    let from = SocketAddr::try_from(from)?;
    // Without the scope and the flow label that IPv6 may have.
    Ok((len, SocketAddr::new(inside(from.ip()), from.port())))
}

#[cfg(not(any(test, fuzzing)))]
#[allow(clippy::unnecessary_wraps, reason = "what stands in for it can fail")]
const fn outside(address: SocketAddr) -> Result<SocketAddr, Errno> {
    Ok(address)
}

#[cfg(not(any(test, fuzzing)))]
const fn inside(address: IpAddr) -> IpAddr {
    address
}

/// Tests and fuzzing talk to nobody but this machine: 8.0.0.0/8 stands for its loopback, 2600::1 for ::1, and there is nothing else.
#[cfg(any(test, fuzzing))]
fn outside(address: SocketAddr) -> Result<SocketAddr, Errno> {
    let ip = match address.ip() {
        IpAddr::V4(v4) if v4.octets()[0] == 8 => {
            let [_, b, c, d] = v4.octets();
            IpAddr::from([127, b, c, d])
        }
        IpAddr::V6(v6) if v6 == std::net::Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 1) => {
            std::net::Ipv6Addr::LOCALHOST.into()
        }
        ip => ip,
    };
    if ip.is_loopback() { Ok(SocketAddr::new(ip, address.port())) } else { Err(Errno::NETUNREACH) }
}

#[cfg(any(test, fuzzing))]
fn inside(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [_, b, c, d] = v4.octets();
            IpAddr::from([8, b, c, d])
        }
        IpAddr::V6(_) => std::net::Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

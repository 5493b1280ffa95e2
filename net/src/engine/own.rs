//! Which addresses are this machine's own. What listens there takes a guest's connection for one of the machine itself, and a firewall
//! that looks at what comes in does not see it.
//!
//! The kernel is asked each time, since addresses come and go. Nothing is sent for that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::addr::SocketAddrArg as _;

use super::socket;
use crate::policy;

/// Any port will do (discard, RFC 863).
const PORT: u16 = 9;
/// "Do not send. Only probe path" (Linux, include/linux/socket.h).
const MSG_PROBE: libc::c_int = 0x10;

/// Of nobody (RFC 6666). If it is somebody's all the same, [`is_own6`] asks once more, as if nothing were certain.
const NOBODY6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, PORT);

/// Whether what is sent to `address` stays on this machine. Of IPv6 that is not said of what only a route makes its own (`ip route add
/// local`), without any address.
///
/// # Errors
/// The kernel does not say; `EMFILE` and the like.
pub fn is_own(address: IpAddr) -> Result<bool, Errno> {
    match address {
        IpAddr::V4(v4) => is_own4(v4),
        IpAddr::V6(v6) => {
            // A NAT64 may run here as well.
            let embedded = policy::embedded(address).map_or(Ok(false), is_own4)?;
            Ok(embedded || is_own6(v6)?)
        }
    }
}

/// Of IPv4 the kernel says it for certain: it sends from no address that is not its own, whatever it is allowed to bind to. To compare
/// the source that it would choose with the destination is not enough: a second address of an interface is reached from the first.
fn is_own4(address: Ipv4Addr) -> Result<bool, Errno> {
    let spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
    let info =
        libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
    may_send(address.into(), libc::IPPROTO_IP, libc::IP_PKTINFO, info)
}

/// Of IPv6 it says it as well, and of the address at which a network's routers answer (RFC 4291, section 2.6.1) where it is one of them;
/// unless it has been allowed to send from everybody's (`net.ipv6.ip_nonlocal_bind`).
fn is_own6(address: Ipv6Addr) -> Result<bool, Errno> {
    Ok(may_send6(address, address)? && (!may_send6(NOBODY6, address)? || is_reached_from_itself(address)?))
}

fn may_send6(from: Ipv6Addr, to: Ipv6Addr) -> Result<bool, Errno> {
    let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
    may_send(to.into(), libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
}

/// Whether the source that the control message has, of this level and kind, may be that of a datagram to `to`.
fn may_send<T>(to: IpAddr, level: libc::c_int, kind: libc::c_int, info: T) -> Result<bool, Errno> {
    #[repr(C)]
    struct Control<T> {
        header: libc::cmsghdr,
        info: T,
    }
    let socket = socket::socket(&to, SocketType::DGRAM, None)?;
    let to = SocketAddr::new(to, PORT).as_any();
    // SAFETY: all zeroes is valid for both of these plain structures.
    let (mut header, mut message): (libc::cmsghdr, libc::msghdr) = unsafe { std::mem::zeroed() };
    // SAFETY: it computes a length.
    header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<T>() as u32) } as _;
    header.cmsg_level = level;
    header.cmsg_type = kind;
    let mut control = Control { header, info };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.addr_len();
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message has no data, and its name and its control message, whose header says how long it is, outlive the call.
    let probed = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, MSG_PROBE) };
    if probed >= 0 {
        return Ok(true);
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        // Of older kernels and of newer ones.
        Some(Errno::INVAL | Errno::NETUNREACH) => Ok(false),
        other => Err(other.unwrap_or(Errno::INVAL)),
    }
}

/// Whether `address` is sent to from itself, as all own addresses are (RFC 6724, section 5, rule 1), or may be a network's that its
/// source is in: rather one too many than the one of its routers, of which this machine may be one.
fn is_reached_from_itself(address: Ipv6Addr) -> Result<bool, Errno> {
    let socket = socket::socket(&address.into(), SocketType::DGRAM, None)?;
    if rustix::net::connect(&socket, &SocketAddr::new(address.into(), PORT)).is_err() {
        // No way there, of which there always is one to an own address.
        return Ok(false);
    }
    let IpAddr::V6(source) = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?.ip() else {
        return Ok(false);
    };
    let host_bits = address.to_bits().trailing_zeros();
    Ok(source.to_bits().checked_shr(host_bits) == address.to_bits().checked_shr(host_bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_own_and_documentation_is_not() {
        for (address, own) in [
            ("127.0.0.1", true),
            ("127.200.3.4", true),
            ("64:ff9b::127.0.0.1", true),
            ("::1", true),
            ("192.0.2.7", false),
            ("255.255.255.255", false),
            ("64:ff9b::192.0.2.7", false),
            ("2001:db8::7", false),
        ] {
            assert_eq!(is_own(address.parse().unwrap()), Ok(own), "{address}");
        }
    }
}

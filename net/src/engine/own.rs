//! Which addresses are this machine's own. What listens there takes a guest's connection for one of the machine itself, and a firewall
//! that looks at what comes in does not see it.
//!
//! The kernel is asked each time, since addresses come and go. Nothing is sent for that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::SocketType;

use super::socket;
use crate::policy;

/// Any port will do (discard, RFC 863).
const PORT: u16 = 9;
/// "Do not send. Only probe path" (Linux, include/linux/socket.h).
const MSG_PROBE: libc::c_int = 0x10;

/// Whether what is sent to `address` stays on this machine.
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
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        info: libc::in_pktinfo,
    }
    // SAFETY: all zeroes is valid for each of these plain structures.
    let (mut control, mut to, mut message): (Control, libc::sockaddr_in, libc::msghdr) =
        unsafe { std::mem::zeroed() };
    let octets = libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
    // SAFETY: it computes a length.
    control.header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as u32) } as _;
    control.header.cmsg_level = libc::IPPROTO_IP;
    control.header.cmsg_type = libc::IP_PKTINFO;
    control.info.ipi_spec_dst = octets;
    to.sin_family = libc::AF_INET as libc::sa_family_t;
    to.sin_port = PORT.to_be();
    to.sin_addr = octets;
    message.msg_name = (&raw mut to).cast();
    message.msg_namelen = size_of_val(&to) as libc::socklen_t;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control) as _;
    let socket = socket::socket(&address.into(), SocketType::DGRAM, None)?;
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

/// Of IPv6 an own address is reached from itself (RFC 6724, section 5, rule 1).
fn is_own6(address: Ipv6Addr) -> Result<bool, Errno> {
    let socket = socket::socket(&address.into(), SocketType::DGRAM, None)?;
    if rustix::net::connect(&socket, &SocketAddr::new(address.into(), PORT)).is_err() {
        // No way there, of which there always is one to an own address.
        return Ok(false);
    }
    let IpAddr::V6(source) = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?.ip() else {
        return Ok(false);
    };
    // A network's first address is its routers' (RFC 4291, section 2.6.1), of which this machine may be one.
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

//! Ports of this machine that lead to one of a guest's loopback: what is kept of one, and its socket, which is made here and
//! lives in the process of the machine.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use protocol::{AGENT_PORT, FrameError, Request, encode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};
use serde::{Deserialize, Serialize};
use vmm::spec::{Target, Transport};

/// Clients that wait until the machine takes them; the kernel makes it less where `net.core.somaxconn` is.
const BACKLOG: i32 = 1024;
/// A client that says nothing is asked whether it is still there: one that has gone keeps a machine from being idle.
const SILENCE: Duration = Duration::from_mins(1);
const PROBES: u32 = 4;
/// The first port of an ordinary user.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// What is spoken there, for those who show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PortProtocol {
    Http,
    #[default]
    Tcp,
    Udp,
}

/// A port that is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Port {
    pub(crate) protocol: PortProtocol,
    /// In the guest.
    pub(crate) guest: u16,
    /// Where this machine listens. Port 0: one is still to be picked.
    pub(crate) host: SocketAddr,
    /// Nobody has asked for this very port: it is another one where it is not free.
    #[serde(default)]
    pub(crate) picked: bool,
}

/// The socket of a port: of UDP it is bound.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    /// With what was picked.
    pub(crate) port: Port,
    pub(crate) target: Target,
}

/// Where this machine cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "{address} is taken by another program of this machine: `ss -l{kind}np 'sport = :{port}'` shows which",
        kind = if *.transport == Transport::Tcp { 't' } else { 'u' },
        port = .address.port()
    )]
    Taken { transport: Transport, address: SocketAddr },
    #[error(
        "this user may not listen at {address}: ports below {first} are root's (sysctl net.ipv4.ip_unprivileged_port_start)"
    )]
    Denied { address: SocketAddr, first: String },
    #[error("this machine has no address {0}")]
    NoAddress(IpAddr),
    #[error("cannot listen at {address}")]
    Host { address: SocketAddr, source: io::Error },
}

impl Listener {
    /// Listens for a port. One that was picked before is picked again if it is free.
    pub(crate) fn bind(port: &Port) -> Result<Self, PortError> {
        let transport = port.transport();
        let failed = |errno| PortError::of(transport, port.host, errno);
        let socket = match listen_at(transport, port.host) {
            Err(Errno::ADDRINUSE) if port.picked && port.host.port() != 0 => {
                listen_at(transport, SocketAddr::new(port.host.ip(), 0))
            }
            result => result,
        };
        let socket = socket.map_err(failed)?;
        let host = getsockname(&socket).and_then(SocketAddr::try_from).map_err(failed)?;
        let preface = encode(&match transport {
            Transport::Tcp => Request::Forward { port: port.guest },
            Transport::Udp => Request::ForwardUdp { port: port.guest },
        });
        let preface = preface.map_err(|source: FrameError| PortError::Host {
            address: host,
            source: io::Error::other(source),
        })?;
        let target = Target { port: AGENT_PORT, preface };
        Ok(Self { socket, port: Port { host, ..port.clone() }, target })
    }
}

/// What is set here holds for the sockets of the clients as well.
fn listen_at(transport: Transport, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // All addresses of IPv4 are another listener's.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if transport == Transport::Udp {
        bind(&socket, &address)?;
        return Ok(socket);
    }
    // Connections of an earlier listener that are only waiting for their end are no hindrance.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, SILENCE)?;
    sockopt::set_tcp_keepintvl(&socket, SILENCE / PROBES)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

impl PortError {
    fn of(transport: Transport, address: SocketAddr, errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::Taken { transport, address },
            Errno::ACCESS => {
                let first = std::fs::read_to_string(UNPRIVILEGED).unwrap_or_default();
                Self::Denied { address, first: first.trim().to_owned() }
            }
            // The last two: one of a link without saying which, and IPv6 where there is none.
            Errno::ADDRNOTAVAIL | Errno::INVAL | Errno::AFNOSUPPORT => Self::NoAddress(address.ip()),
            errno => Self::Host { address, source: errno.into() },
        }
    }
}

impl Port {
    /// By what its clients speak.
    pub(crate) fn transport(&self) -> Transport {
        match self.protocol {
            PortProtocol::Http | PortProtocol::Tcp => Transport::Tcp,
            PortProtocol::Udp => Transport::Udp,
        }
    }

    /// Where clients reach it.
    pub(crate) fn place(&self) -> (Transport, SocketAddr) {
        (self.transport(), self.host)
    }

    /// Whether the two cannot be listened for at once.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.host.ip(), other.host.ip());
        self.host.port() != 0
            && self.transport() == other.transport()
            && self.host.port() == other.host.port()
            && ours.is_ipv4() == theirs.is_ipv4()
            && (ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.transport() == Transport::Udp { "/udp" } else { "" };
        write!(f, "{}->{}{kind}", self.host, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: &str, picked: bool) -> Port {
        Port { protocol: PortProtocol::Tcp, guest: 80, host: host.parse().unwrap(), picked }
    }

    #[test]
    fn a_free_one_is_picked_and_a_taken_one_is_told() {
        let first = Listener::bind(&port("127.0.0.1:0", true)).unwrap();
        let host = first.port.host;
        assert_ne!(host.port(), 0);
        std::net::TcpStream::connect(host).unwrap();
        assert_eq!(
            first.target,
            Target { port: 1024, preface: b"\x1c\0\0\0\x02{\"type\":\"forward\",\"port\":80}"[..].into() }
        );

        let taken = Listener::bind(&Port { picked: false, ..first.port.clone() }).unwrap_err();
        let said = taken.to_string();
        assert!(
            said.contains(&host.to_string()) && said.contains(&format!("sport = :{}", host.port())),
            "{said}"
        );
        // One that was only picked gives way.
        assert_ne!(Listener::bind(&first.port).unwrap().port.host, host);
        drop(first.socket);
        assert_eq!(Listener::bind(&first.port).unwrap().port.host, host);
    }

    #[test]
    fn of_udp_a_free_one_is_picked_and_a_taken_one_is_told_too() {
        let udp = |host, picked| Port { protocol: PortProtocol::Udp, ..port(host, picked) };
        let first = Listener::bind(&udp("127.0.0.1:0", true)).unwrap();
        let host = first.port.host;
        assert_eq!(first.target.preface, b"\x1f\0\0\0\x02{\"type\":\"forwardUdp\",\"port\":80}"[..]);
        assert_eq!(first.port.to_string(), format!("{host}->80/udp"));
        let said = Listener::bind(&Port { picked: false, ..first.port.clone() }).unwrap_err().to_string();
        assert!(said.contains("ss -lunp"), "{said}");
        // One of TCP has nothing to do with it.
        Listener::bind(&port(&host.to_string(), false)).unwrap();
        assert!(!first.port.collides(&port(&host.to_string(), false)));
        assert!(first.port.collides(&udp(&host.to_string(), false)));
    }

    #[test]
    fn addresses_that_are_not_there() {
        let error = Listener::bind(&port("192.0.2.1:0", true)).unwrap_err();
        assert!(matches!(error, PortError::NoAddress(_)), "{error}");
        let denied =
            PortError::of(Transport::Tcp, "127.0.0.1:80".parse().unwrap(), Errno::ACCESS).to_string();
        assert!(denied.contains("127.0.0.1:80") && denied.contains("ip_unprivileged_port_start"), "{denied}");
    }

    #[test]
    fn collisions() {
        for (ours, theirs, collide) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "0.0.0.0:80", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(port(ours, false).collides(&port(theirs, false)), collide, "{ours} {theirs}");
        }
    }
}

//! The guest's interfaces, set up through rtnetlink(7): there may be no `ip` in the image.

use std::net::IpAddr;
use std::path::Path;

use protocol::NetworkConfig;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use crate::kmsg;

/// The name of the only interface beside the loopback one.
const INTERFACE: &str = "eth0";
/// The loopback interface's index, in every network namespace.
const LOOPBACK: u32 = 1;

/// What could not be done to the network.
#[derive(Debug, thiserror::Error)]
#[error("the network: cannot {action}")]
pub struct NetworkError {
    action: &'static str,
    #[source]
    source: Errno,
}

fn cannot(action: &'static str) -> impl FnOnce(Errno) -> NetworkError {
    move |source| NetworkError { action, source }
}

/// Brings the loopback interface up, and eth0 with its addresses and routes where there is a `config` of it.
pub fn set_up(config: Option<&NetworkConfig>) -> Result<(), NetworkError> {
    let mut netlink = Netlink::new().map_err(cannot("talk to the kernel"))?;
    netlink.link_up(LOOPBACK, None).map_err(cannot("bring the loopback interface up"))?;
    let Some(config) = config else { return Ok(()) };
    // A kernel of the user's own may have no driver for it.
    let Ok(index) = netdevice::name_to_index(&netlink.socket, INTERFACE) else {
        kmsg::warning(format_args!(
            "there is no network: the kernel shows no {INTERFACE} (CONFIG_VIRTIO_NET)"
        ));
        return Ok(());
    };
    // Before the interface is up: nobody else is on the wire, so that no address has to be made sure of and no router looked
    // for. Each of these would be a packet, and an exit of the guest.
    let settings: &[(&str, &str)] = match config.ipv6 {
        Some(_) => &[("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")],
        None => &[("disable_ipv6", "1")],
    };
    for (name, value) in settings {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(INTERFACE).join(name);
        // A kernel without IPv6 has none of them, and needs none.
        if let Err(error) = std::fs::write(&path, value)
            && config.ipv6.is_some()
        {
            kmsg::warning(format_args!("{}: {error}", path.display()));
        }
    }
    netlink.link_up(index, Some(config.mtu)).map_err(cannot("bring eth0 up"))?;
    netlink
        .add_address(index, config.address.into(), config.prefix)
        .map_err(cannot("give eth0 its address"))?;
    netlink.add_default_route(config.gateway.into()).map_err(cannot("add the default route"))?;
    if let Some(ipv6) = &config.ipv6 {
        // The guest works without it, and its kernel may have been built so.
        let result = netlink
            .add_address(index, ipv6.address.into(), ipv6.prefix)
            .and_then(|()| netlink.add_default_route(ipv6.gateway.into()));
        if let Err(error) = result {
            kmsg::warning(format_args!("the network has no IPv6: {error}"));
        }
    }
    Ok(())
}

/// A socket for requests to the kernel's routing.
struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A request as it is written: a header, then a structure of the request's kind, then attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        // nlmsghdr: length, type, flags, sequence number, port. The length and the number are known later.
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        Self(bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn word(self, word: u32) -> Self {
        self.bytes(&word.to_ne_bytes())
    }

    /// An attribute (struct rtattr), padded to words.
    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

impl Netlink {
    fn new() -> Result<Self, Errno> {
        // Without a protocol: NETLINK_ROUTE.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn link_up(&mut self, index: u32, mtu: Option<u16>) -> Result<(), Errno> {
        let up = libc::IFF_UP as u32;
        // ifinfomsg: family, padding, type, index, flags, which of them are meant.
        let request = Request::new(libc::RTM_NEWLINK, 0).bytes(&[0; 4]).word(index).word(up).word(up);
        self.ask(match mtu {
            Some(mtu) => request.attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes()),
            None => request,
        })
    }

    fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Errno> {
        // Without duplicate address detection, which IPv6 would wait for.
        let flags = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        // ifaddrmsg: family, length of the prefix, flags, scope, index.
        let request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
            .bytes(&[family(address), prefix, flags, libc::RT_SCOPE_UNIVERSE])
            .word(index);
        self.ask(request.address(libc::IFA_LOCAL, address).address(libc::IFA_ADDRESS, address))
    }

    fn add_default_route(&mut self, gateway: IpAddr) -> Result<(), Errno> {
        // rtmsg: family, lengths of the destination and of the source, type of service, table, protocol, scope, type; flags.
        let request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
            .bytes(&[family(gateway), 0, 0, 0, libc::RT_TABLE_MAIN])
            .bytes(&[libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST])
            .word(0);
        self.ask(request.address(libc::RTA_GATEWAY, gateway))
    }

    /// Sends a request and takes the answer to it.
    fn ask(&mut self, Request(mut bytes): Request) -> Result<(), Errno> {
        self.sequence += 1;
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (len, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        // nlmsghdr, then nlmsgerr: an errno, negative, or 0.
        match answer[..len].get(16..20).and_then(|errno| errno.try_into().ok()).map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(errno) => Err(Errno::from_raw_os_error(errno.wrapping_neg())),
            None => Err(Errno::PROTO),
        }
    }
}

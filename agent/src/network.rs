//! The guest's interfaces, set up through rtnetlink(7): there may be no `ip` in the image.

use std::net::IpAddr;
use std::path::Path;

use protocol::{Network6Config, NetworkConfig};
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
    config.map_or(Ok(()), |config| netlink.set_up(None, config))
}

/// Makes eth0, which is what `before` says, what `config` says: only what is another is touched. Without a `config` it is left alone.
pub(crate) fn change(
    before: Option<&NetworkConfig>,
    config: Option<&NetworkConfig>,
) -> Result<(), NetworkError> {
    match config {
        Some(config) if before != Some(config) => {
            Netlink::new().map_err(cannot("talk to the kernel"))?.set_up(before, config)
        }
        _ => Ok(()),
    }
}

/// Before the interface is up: nobody else is on the wire, so that no address has to be made sure of and no router looked for. Each of
/// these would be a packet, and an exit of the guest.
fn set_up_ipv6(is_wanted: bool) {
    let settings: &[(&str, &str)] = if is_wanted {
        &[("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0"), ("disable_ipv6", "0")]
    } else {
        &[("disable_ipv6", "1")]
    };
    for (name, value) in settings {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(INTERFACE).join(name);
        // A kernel without IPv6 has none of them, and needs none.
        if let Err(error) = std::fs::write(&path, value)
            && is_wanted
        {
            kmsg::warning(format_args!("{}: {error}", path.display()));
        }
    }
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

/// The request for another hardware address. It leaves the flags as they are: the interface may be up or not.
fn set_mac(index: u32, mac: [u8; 6]) -> Request {
    // ifinfomsg, as in link_up.
    Request::new(libc::RTM_NEWLINK, 0)
        .bytes(&[0; 4])
        .word(index)
        .word(0)
        .word(0)
        .attribute(libc::IFLA_ADDRESS, &mac)
}

/// What an interface has by one version of IP.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    address: IpAddr,
    prefix: u8,
    gateway: IpAddr,
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

    /// See [`change`]; `before` is none where eth0 has not been set up.
    fn set_up(&mut self, before: Option<&NetworkConfig>, config: &NetworkConfig) -> Result<(), NetworkError> {
        // A kernel of the user's own may have no driver for it.
        let Ok(index) = netdevice::name_to_index(&self.socket, INTERFACE) else {
            kmsg::warning(format_args!(
                "there is no network: the kernel shows no {INTERFACE} (CONFIG_VIRTIO_NET)"
            ));
            return Ok(());
        };
        if let Some(mac) = config.mac.filter(|mac| before.and_then(|before| before.mac) != Some(*mac))
            // The guest works with any other.
            && let Err(error) = self.set_mac(index, mac)
        {
            kmsg::warning(format_args!("{INTERFACE} keeps its hardware address: {error}"));
        }
        if before.map(|before| before.ipv6.is_some()) != Some(config.ipv6.is_some()) {
            set_up_ipv6(config.ipv6.is_some());
        }
        if before.map(|before| before.mtu) != Some(config.mtu) {
            self.link_up(index, Some(config.mtu)).map_err(cannot("bring eth0 up"))?;
        }
        let ipv4 = |config: &NetworkConfig| Place {
            address: config.address.into(),
            prefix: config.prefix,
            gateway: config.gateway.into(),
        };
        self.place(index, before.map(ipv4), ipv4(config))?;
        let ipv6 = |config: &Network6Config| Place {
            address: config.address.into(),
            prefix: config.prefix,
            gateway: config.gateway.into(),
        };
        if let Some(config) = &config.ipv6 {
            let before = before.and_then(|before| before.ipv6.as_ref());
            // The guest works without it, and its kernel may have been built so.
            if let Err(error) = self.place(index, before.map(ipv6), ipv6(config)) {
                let NetworkError { action, source } = error;
                kmsg::warning(format_args!("the network has no IPv6: cannot {action}: {source}"));
            }
        }
        Ok(())
    }

    /// Gives an interface its place, instead of the one that it has.
    fn place(&mut self, index: u32, before: Option<Place>, place: Place) -> Result<(), NetworkError> {
        if before == Some(place) {
            return Ok(());
        }
        if let Some(before) = before {
            // With it go its routes. It may be gone already.
            let _ = self.remove_address(index, before.address, before.prefix);
        }
        self.add_address(index, place.address, place.prefix).map_err(cannot("give eth0 its address"))?;
        self.add_default_route(place.gateway).map_err(cannot("add the default route"))
    }

    fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> Result<(), Errno> {
        self.ask(set_mac(index, mac))
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

    fn remove_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Errno> {
        // As in add_address.
        let request = Request::new(libc::RTM_DELADDR, 0)
            .bytes(&[family(address), prefix, 0, libc::RT_SCOPE_UNIVERSE])
            .word(index);
        self.ask(request.address(libc::IFA_LOCAL, address))
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    use std::process::Command;

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn config(last: u8) -> NetworkConfig {
        NetworkConfig {
            address: [192, 0, 0, 2].into(),
            prefix: 30,
            gateway: [192, 0, 0, 1].into(),
            ipv6: Some(Network6Config {
                address: "fd00::2".parse().unwrap(),
                prefix: 64,
                gateway: "fd00::1".parse().unwrap(),
            }),
            mac: Some([2, 0, 0, 0, 0, last]),
            mtu: 1500,
        }
    }

    #[test]
    fn a_request_for_a_hardware_address_is_laid_out_as_the_kernel_expects() {
        let Request(bytes) = set_mac(7, [2, 3, 4, 5, 6, 8]);
        // Of the header, what is known before it is sent.
        assert_eq!(bytes[4..8], [&16_u16.to_ne_bytes()[..], &5_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[16..32], [&[0; 4][..], &7_u32.to_ne_bytes(), &[0; 8]].concat());
        let attribute = [&10_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &[2, 3, 4, 5, 6, 8, 0, 0]].concat();
        assert_eq!(bytes[32..], attribute);
    }

    #[test]
    fn eth0_becomes_another_while_it_is_up() {
        // SAFETY: of the network alone, which no other thread's memory or descriptors depend on.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            eprintln!("skipped: network namespaces need root: {error}");
            return;
        }
        ip("tuntap add eth0 mode tap");
        let (link, addresses) = ("link show eth0", "-o addr show dev eth0 scope global");
        set_up(Some(&config(1))).unwrap();
        assert!(ip(link).contains("02:00:00:00:00:01") && ip(link).contains("UP"), "{}", ip(link));
        let (first, routes) = (ip(addresses), ip("route") + &ip("-6 route"));
        assert!(first.contains("192.0.0.2/30") && first.contains("fd00::2/64"), "{first}");
        assert!(
            routes.contains("default via 192.0.0.1") && routes.contains("default via fd00::1"),
            "{routes}"
        );

        // The address alone.
        change(Some(&config(1)), Some(&config(2))).unwrap();
        assert!(ip(link).contains("02:00:00:00:00:02"), "{}", ip(link));
        assert_eq!((ip(addresses), ip("route") + &ip("-6 route")), (first, routes));

        // The same once more, as after an answer that was lost.
        let other = NetworkConfig {
            address: [192, 0, 0, 6].into(),
            gateway: [192, 0, 0, 5].into(),
            ipv6: None,
            mtu: 1400,
            ..config(3)
        };
        for _ in 0..2 {
            change(Some(&config(2)), Some(&other)).unwrap();
            assert!(ip(link).contains("02:00:00:00:00:03") && ip(link).contains("mtu 1400"), "{}", ip(link));
            let (addresses, routes) = (ip(addresses), ip("route"));
            assert!(addresses.contains("192.0.0.6/30") && addresses.lines().count() == 1, "{addresses}");
            assert!(routes.contains("default via 192.0.0.5") && routes.lines().count() == 2, "{routes}");
        }

        change(Some(&other), Some(&config(4))).unwrap();
        assert!(ip(addresses).contains("fd00::2/64"), "{}", ip(addresses));
        assert!(ip("-6 route").contains("default via fd00::1"), "{}", ip("-6 route"));

        // Left alone.
        let before = ip(link);
        change(Some(&config(4)), None).unwrap();
        change(Some(&config(4)), Some(&config(4))).unwrap();
        // A group's address, which none can have.
        change(Some(&config(4)), Some(&NetworkConfig { mac: Some([1; 6]), ..config(4) })).unwrap();
        assert_eq!(ip(link), before);
    }
}

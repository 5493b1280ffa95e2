//! What a sandbox's network is made of: the policy of its record, and what the host's network is like at the start.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::{NonZeroU32, NonZeroU64};

use net::address::{GATEWAY, GATEWAY6, GUEST, GUEST6, MTU, PREFIX, PREFIX6};
use net::engine::{self, Limits};
use net::policy::{Mode, Parts, Policy, PolicyError, Rule};
use protocol::{Config, Network6Config, NetworkConfig};

/// The name of the machine that a guest runs on: by it the guest reaches the ports of the host that its policy opens.
pub(crate) const HOST: &str = "host.voidrun.internal";
/// The file with the host's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// So many of them are asked, as by the C library (resolv.conf(5)).
const MAX_SERVERS: usize = 3;
/// And so many domains are looked in.
const MAX_DOMAINS: usize = 6;
/// Of a name server.
const DNS: u16 = 53;
/// Of a root server: a global address. Nothing is sent to it.
const GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);

/// What a sandbox may reach, and how much of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) policy: Policy,
    pub(crate) limits: Limits,
}

/// What of an [`Access`] is to be another way. What is absent stays, but for rules of `allow`, which go with another mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccessChange {
    pub(crate) mode: Option<Mode>,
    pub(crate) allow: Option<Vec<Rule>>,
    pub(crate) deny: Option<Vec<Rule>>,
    pub(crate) host_ports: Option<Vec<u16>>,
    /// 0 lifts the limit, as in the next one.
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) connections_per_second: Option<u32>,
}

impl AccessChange {
    /// `before` with the change.
    ///
    /// # Errors
    /// That is no policy.
    pub(crate) fn on(self, before: Access) -> Result<Access, PolicyError> {
        let (policy, limits) = (Parts::from(before.policy), before.limits);
        let mode = match self.mode {
            Some(mode) => mode,
            None if self.allow.as_ref().is_some_and(|rules| !rules.is_empty()) => Mode::Allow,
            None => policy.mode,
        };
        let allow = match self.allow {
            Some(rules) => rules,
            None if mode == policy.mode => policy.allow,
            None => Vec::new(),
        };
        let parts = Parts {
            mode,
            allow,
            deny: self.deny.unwrap_or(policy.deny),
            host_ports: self.host_ports.unwrap_or(policy.host_ports),
        };
        let limits = Limits {
            bytes_per_second: self.bytes_per_second.map_or(limits.bytes_per_second, NonZeroU64::new),
            connections_per_second: self
                .connections_per_second
                .map_or(limits.connections_per_second, NonZeroU32::new),
        };
        Ok(Access { policy: parts.try_into()?, limits })
    }
}

/// What a resolv.conf says, as far as a guest needs it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolv {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
}

/// What the machine is told of its network, and writes into the guest's `config`; none for a sandbox without one. `device`: whether
/// the machine has a device for one; where nothing is said, it has one if it may reach something.
pub(super) fn of(
    access: Access,
    hosts: &BTreeMap<String, IpAddr>,
    config: &mut Config,
    device: Option<bool>,
) -> Option<engine::Config> {
    if access.policy.mode() == Mode::None {
        // There is nobody to ask for a name.
        config.hosts.clone_from(hosts);
    }
    if !device.unwrap_or(access.policy.mode() != Mode::None) {
        return None;
    }
    // Name servers that cannot be read now are told later, when they can.
    let resolv = Resolv::of_host().unwrap_or_default();
    let ipv6 = host_has_ipv6();
    config.network = Some(NetworkConfig {
        address: GUEST,
        prefix: PREFIX,
        gateway: GATEWAY,
        ipv6: ipv6.then_some(Network6Config { address: GUEST6, prefix: PREFIX6, gateway: GATEWAY6 }),
        mac: None,
        mtu: MTU,
    });
    config.nameservers = vec![GATEWAY.to_string()];
    config.search = resolv.search;
    Some(engine::Config {
        policy: access.policy,
        resolvers: resolv.servers,
        hosts: hosts.clone().into_iter().chain([(HOST.to_owned(), GATEWAY.into())]).collect(),
        ipv6,
        limits: access.limits,
    })
}

/// The host's name servers, at this moment.
///
/// # Errors
/// It cannot be said: the file is there and cannot be read.
pub(crate) fn resolvers() -> io::Result<Vec<SocketAddr>> {
    Ok(Resolv::of_host()?.servers)
}

/// Whether the host has a route to the Internet by IPv6: a datagram socket is connected without a packet.
fn host_has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect((GLOBAL, DNS))).is_ok()
}

impl Resolv {
    /// A host without the file has no name servers, and its guests have none.
    fn of_host() -> io::Result<Self> {
        match std::fs::read(RESOLV_CONF) {
            Ok(text) => Ok(Self::parse(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // One with a zone is of one link of the host, and no route leads there.
                    let address: Option<IpAddr> = words.next().and_then(|address| address.parse().ok());
                    resolv.servers.extend(address.map(|address| SocketAddr::new(address, DNS)));
                }
                // The last one counts.
                Some("search" | "domain") => {
                    let is_name = |word: &&str| {
                        word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                    };
                    resolv.search = words.filter(is_name).take(MAX_DOMAINS).map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        resolv.servers.truncate(MAX_SERVERS);
        resolv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_resolv_conf() {
        let text = "# by hand\n; too\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org  corp\n\
                    nameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n nameserver 9.9.9.9\n\
                    nameserver 8.8.8.8\nsearch lan $(id) example.com.\n";
        let resolv = Resolv::parse(text);
        let servers = ["127.0.0.53:53", "[2001:db8::1]:53", "9.9.9.9:53"];
        assert_eq!(resolv.servers, servers.map(|address| address.parse().unwrap()));
        assert_eq!(resolv.search, ["lan", "example.com."]);
        assert_eq!(Resolv::parse(""), Resolv::default());
    }

    #[test]
    fn without_a_network_nothing_is_told() {
        let mut config = Config::default();
        let hosts = BTreeMap::from([("db".to_owned(), IpAddr::from([10, 0, 0, 1]))]);
        let limits = Limits { connections_per_second: NonZeroU32::new(7), ..Limits::default() };
        let none = Access { policy: Mode::None.into(), limits };
        assert_eq!(of(none.clone(), &hosts, &mut config, None), None);
        assert_eq!(config, Config { hosts: hosts.clone(), ..Config::default() });
        // A machine that has gone on from somewhere may have a device that it has no use for.
        assert!(of(none, &hosts, &mut config, Some(true)).is_some());
        let public = Access { policy: Policy::default(), limits };
        assert_eq!(of(public.clone(), &hosts, &mut config, Some(false)), None);
        let engine = of(public, &hosts, &mut config, None).unwrap();
        assert_eq!(engine.hosts.keys().collect::<Vec<_>>(), ["db", HOST]);
        assert_eq!((engine.policy, engine.limits), (Policy::default(), limits));
        assert_eq!(config.nameservers, ["192.0.0.1"]);
        let network = config.network.unwrap();
        // The address of its card is for whoever knows which sandbox it is.
        assert_eq!((network.ipv6.is_some(), network.mac), (engine.ipv6, None));
    }
}

//! The engine against a second smoltcp as the guest, with real sockets of this machine's loopback: 8.0.0.0/8 stands for it
//! (`super::socket`).

mod datagram;
mod dns;
mod policy;
mod tcp;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum as Computed, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol};

use super::checksum;
use super::packet::{ETHERNET, Packet};
use super::{Config, Denial, Engine, Limits};
use crate::address::{GATEWAY, GATEWAY_MAC, GATEWAY6, GUEST, GUEST_MAC, GUEST6};
use crate::policy::{Parts, Policy};
use crate::wire::{Checksum, Features, Gso, MAX_FRAME, Offload, Wire};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const ALL: Features = Features { checksum: true, tso4: true, tso6: true };

/// The guest's end of the wire.
#[derive(Default)]
struct Cable {
    frames: Vec<(Vec<u8>, Offload)>,
    /// Bytes that fit.
    room: usize,
}

impl Wire for Cable {
    fn has_room(&mut self, len: usize) -> bool {
        len <= self.room
    }

    fn send(&mut self, frame: &[u8], offload: Offload) {
        assert!(frame.len() <= self.room, "it was told that there is no room");
        self.room -= frame.len();
        self.frames.push((frame.to_vec(), offload));
    }
}

/// The guest's network card, behind its Ethernet header.
struct Card {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    features: Features,
}

struct Token<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Token<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

struct Got(Vec<u8>);

impl RxToken for Got {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl Device for Card {
    type RxToken<'a> = Got;
    type TxToken<'a> = Token<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Got, Token<'_>)> {
        self.received.pop_front().map(|packet| (Got(packet), Token(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Token<'_>> {
        Some(Token(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        if self.features.tso4 {
            // It leaves its segments to be cut, and their checksums, but looks at those it gets.
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(65535);
            capabilities.checksum.tcp = Computed::Rx;
        }
        capabilities
    }
}

/// A guest and its engine.
pub(super) struct World {
    pub(super) engine: Engine,
    cable: Cable,
    card: Card,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    began: Instant,
    next_port: u16,
    /// What came that is not TCP.
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) denials: Arc<Mutex<Vec<Denial>>>,
    /// Room that the guest makes on its wire at each step.
    pub(super) room: usize,
    /// The longest frame that the guest got, and whether any was to be cut.
    pub(super) longest: usize,
    pub(super) cut: bool,
    features: Features,
}

/// A policy by its parts.
pub(super) fn policy(json: &str) -> Policy {
    serde_json::from_str::<Parts>(json).unwrap().try_into().unwrap()
}

/// What reaches everything that tests talk to.
pub(super) fn config() -> Config {
    Config {
        policy: Policy::default(),
        resolvers: Vec::new(),
        hosts: [].into(),
        ipv6: true,
        limits: Limits::default(),
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(config(), ALL)
    }

    pub(super) fn with(config: Config, features: Features) -> Self {
        let denials = Arc::new(Mutex::new(Vec::new()));
        let journal = denials.clone();
        let mut engine =
            Engine::new(config, Box::new(move |denial| journal.lock().unwrap().push(denial))).unwrap();
        engine.attach(features);
        let mut card = Card { received: VecDeque::new(), sent: VecDeque::new(), features };
        let mut settings = InterfaceConfig::new(HardwareAddress::Ip);
        settings.random_seed = 1;
        let mut interface = Interface::new(settings, &mut card, smoltcp::time::Instant::from_millis(1));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 30)).unwrap();
            addresses.push(IpCidr::new(GUEST6.into(), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY6).unwrap();
        Self {
            engine,
            cable: Cable::default(),
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            began: Instant::now(),
            next_port: 40000,
            packets: Vec::new(),
            denials,
            room: 8 * MAX_FRAME,
            longest: 0,
            cut: false,
            features,
        }
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.began.elapsed().as_micros() as i64 + 1000)
    }

    /// Begins a connection.
    pub(super) fn connect(&mut self, to: impl Into<SocketAddr>) -> SocketHandle {
        let to = to.into();
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; 256 * 1024]), SocketBuffer::new(vec![0; 256 * 1024]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.next_port += 1;
        let from = (super::guest_address(to.ip()), self.next_port);
        socket.connect(self.interface.context(), (to.ip(), to.port()), from).unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends an IP packet that smoltcp does not know of.
    pub(super) fn send(&mut self, packet: &[u8]) {
        let mut frame = GATEWAY_MAC.to_vec();
        frame.extend(GUEST_MAC);
        frame.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(packet);
        let offload = self.offload(&frame);
        self.engine.receive(&frame, offload);
    }

    /// What a driver says of such a frame.
    fn offload(&self, frame: &[u8]) -> Offload {
        let header = 54;
        let long = frame.len() > ETHERNET + 1500;
        assert!(!long || self.features.tso4);
        let gso = long.then(|| Gso { v6: false, size: 1460.try_into().unwrap(), header });
        let checksum = if self.features.tso4 && frame[ETHERNET] >> 4 == 4 && frame[ETHERNET + 9] == 6 {
            Checksum::Partial { start: 34, offset: 16 }
        } else {
            Checksum::Unknown
        };
        Offload { checksum, gso }
    }

    /// What both have to say at once. Whether there was anything.
    fn exchange(&mut self) -> bool {
        let now = self.now();
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        let mut moved = false;
        while let Some(packet) = self.card.sent.pop_front() {
            moved = true;
            self.send(&packet);
        }
        self.cable.room = self.room;
        self.engine.run(&mut self.cable);
        for (frame, offload) in std::mem::take(&mut self.cable.frames) {
            moved = true;
            self.take(frame, offload);
        }
        moved
    }

    /// A frame as a driver takes it.
    fn take(&mut self, mut frame: Vec<u8>, offload: Offload) {
        assert_eq!(frame[..12], [GUEST_MAC, GATEWAY_MAC].concat()[..]);
        self.longest = self.longest.max(frame.len());
        if frame[12..14] == [8, 6] {
            self.packets.push(frame[ETHERNET..].to_vec());
            return;
        }
        let parsed = Packet::parse(&frame[ETHERNET..]).unwrap();
        assert_eq!(parsed.bytes.len(), frame.len() - ETHERNET, "the header's length is the packet's");
        let start = frame.len() - parsed.payload.len();
        let (source, destination) = (parsed.source, parsed.destination);
        let (protocol, len) = (parsed.protocol, parsed.payload.len());
        match offload.gso {
            Some(gso) => {
                self.cut = true;
                assert!(if gso.v6 { self.features.tso6 } else { self.features.tso4 });
                assert_eq!(gso.v6, source.is_ipv6());
                assert!(gso.size.get() <= if gso.v6 { 1440 } else { 1460 });
                assert_eq!(usize::from(gso.header), start + usize::from(frame[start + 12] >> 4) * 4);
                assert!(matches!(offload.checksum, Checksum::Partial { .. }));
            }
            None => assert!(frame.len() <= ETHERNET + 1500, "{}", frame.len()),
        }
        if let Checksum::Partial { start: from, offset } = offload.checksum {
            assert!(self.features.checksum);
            assert_eq!((protocol, usize::from(from), offset), (IpProtocol::Tcp, start, 16));
            let pseudo = checksum::fold(checksum::pseudo(source, destination, 6, len));
            assert_eq!(frame[start + 16..start + 18], pseudo.to_be_bytes());
            let sum = !checksum::fold(checksum::add(0, &frame[start..]));
            frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        }
        if protocol == IpProtocol::Tcp {
            self.card.received.push_back(frame[ETHERNET..].to_vec());
        } else {
            self.packets.push(frame[ETHERNET..].to_vec());
        }
    }

    /// Goes on until `done`.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}");
            if !self.exchange() {
                self.wait(Duration::from_millis(5));
            }
        }
    }

    /// Goes on until nothing more happens at once.
    pub(super) fn settle(&mut self) {
        while self.exchange() {}
    }

    /// Waits for the engine to have something to do. Whether it had.
    fn wait(&mut self, most: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.engine.fd(), PollFlags::IN)];
        let timeout = Timespec::try_from(most).unwrap();
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
    }

    /// How often the engine has something to do within `time`, if the guest has nothing.
    pub(super) fn wakeups(&mut self, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut count = 0;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.wait(left) {
                count += 1;
                self.cable.room = self.room;
                self.engine.run(&mut self.cable);
                self.cable.frames.clear();
            }
        }
        count
    }

    pub(super) fn until_established(&mut self, handle: SocketHandle) {
        self.until("a connection", |world| {
            let state = world.socket(handle).state();
            assert_ne!(state, State::Closed, "refused");
            state == State::Established
        });
    }

    /// Waits for the guest to be told that its packet has gone nowhere: type and code.
    pub(super) fn until_unreachable(&mut self) -> (u8, u8) {
        let mut found = None;
        self.until("an ICMP message", |world| {
            found = world.packets.iter().find_map(|packet| {
                let packet = Packet::parse(packet)?;
                let kind = *packet.payload.first()?;
                let error = match packet.protocol {
                    IpProtocol::Icmp => kind == 3,
                    IpProtocol::Icmpv6 => kind == 1,
                    _ => false,
                };
                error.then(|| (kind, packet.payload[1]))
            });
            found.is_some()
        });
        found.unwrap()
    }
}

/// The address by which the guest reaches what listens on `address` of the loopback.
pub(super) fn seen_by_guest(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) => {
            let [_, b, c, d] = v4.octets();
            IpAddr::from([8, b, c, d])
        }
        IpAddr::V6(_) => "2600::1".parse().unwrap(),
    };
    SocketAddr::new(ip, address.port())
}

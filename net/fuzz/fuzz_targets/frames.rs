//! Any frames of a guest, of any offload and at any time, and a wire with any room: the engine does not panic, sends no more than there
//! is room for, nothing that a driver could not take, and what it keeps is bounded.
//!
//! The engine's sockets reach nothing but this machine's loopback where it is built for fuzzing (`net/src/engine/socket.rs`), and the
//! gateway's open port is a listener of this process.
//!
//! The input: commands of a byte each with what belongs to them; see `Guest::command`. Segments are made to fit the connection that they
//! are of, give or take what the input says: others are refused before they get far.
#![no_main]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;

use libfuzzer_sys::fuzz_target;
use net::address::{GATEWAY, GATEWAY_MAC, GATEWAY6, GUEST, GUEST_MAC, GUEST6, MTU};
use net::engine::{Config, Engine, Limits};
use net::wire::{Checksum, Features, Gso, MAX_FRAME, Offload, Wire};

/// Connections of the host's side that are kept.
const STREAMS: usize = 8;

/// What the guest's end of the wire checks, and remembers of a connection.
#[derive(Default)]
struct Cable {
    room: usize,
    asked: usize,
    features: Features,
    /// By the guest's port, IPv6's behind the others: what the engine's next byte is, and what it has acknowledged.
    connections: BTreeMap<(bool, u16), (u32, u32)>,
}

impl Wire for Cable {
    fn has_room(&mut self, len: usize) -> bool {
        assert!(len <= MAX_FRAME);
        self.asked = if len <= self.room { len } else { 0 };
        self.asked > 0
    }

    fn send(&mut self, frame: &[u8], offload: Offload) {
        assert!(frame.len() <= self.asked, "{} bytes, {} were asked for", frame.len(), self.asked);
        self.room -= frame.len();
        self.asked = 0;
        assert_eq!(frame[6..12], GATEWAY_MAC);
        if let Checksum::Partial { start, offset } = offload.checksum {
            assert!(self.features.checksum);
            assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
        }
        match offload.gso {
            Some(gso) => {
                assert!(if gso.v6 { self.features.tso6 } else { self.features.tso4 });
                assert!(usize::from(gso.header) < frame.len());
                assert!(usize::from(gso.header) + usize::from(gso.size.get()) <= 14 + usize::from(MTU));
            }
            None => assert!(frame.len() <= 14 + usize::from(MTU)),
        }
        let v6 = frame[12..14] == [0x86, 0xdd];
        let start = if v6 { 54 } else { 34 };
        if frame.len() >= start + 20 && frame[if v6 { 20 } else { 23 }] == 6 {
            let u32_at =
                |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            let port = u16::from_be_bytes([frame[start + 2], frame[start + 3]]);
            let header = start + usize::from(frame[start + 12] >> 4) * 4;
            let ends = u32::from(frame[start + 13] & 3 != 0);
            let next = u32_at(start + 4).wrapping_add((frame.len() - header) as u32).wrapping_add(ends);
            self.connections.insert((v6, port), (next, u32_at(start + 8)));
        }
    }
}

struct Guest<'a> {
    input: &'a [u8],
    engine: Engine,
    cable: Cable,
    listener: TcpListener,
    resolver: UdpSocket,
    streams: Vec<TcpStream>,
}

impl Guest<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.input.split_first()?;
        self.input = rest;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// Up to 255 bytes, or fewer where the input ends.
    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = usize::from(self.byte()?).min(self.input.len());
        let (bytes, rest) = self.input.split_at(len);
        self.input = rest;
        Some(bytes.to_vec())
    }

    fn command(&mut self) -> Option<()> {
        match self.byte()? % 10 {
            0 => {
                let frame = self.bytes()?;
                let offload = self.offload()?;
                self.engine.receive(&frame, offload);
            }
            1..4 => self.segment()?,
            4 => self.packet(17)?,
            5 => self.packet(1)?,
            6 => {
                self.cable.room = usize::from(self.u16()?) * 4;
                self.engine.run(&mut self.cable);
            }
            7 => self.host()?,
            8 => {
                let bits = self.byte()?;
                let features = Features { checksum: bits & 1 != 0, tso4: bits & 2 != 0, tso6: bits & 4 != 0 };
                self.cable.features = features;
                self.cable.connections.clear();
                self.engine.attach(features);
            }
            _ => {
                let policy = if self.byte()? & 1 == 0 { CLOSED.to_owned() } else { open(&self.listener) };
                self.engine.set_policy(serde_json::from_str(&policy).expect("a policy"));
            }
        }
        Some(())
    }

    fn offload(&mut self) -> Option<Offload> {
        let (kind, first, second) = (self.byte()?, self.u16()?, self.u16()?);
        let checksum = match kind & 1 {
            0 => Checksum::Unknown,
            _ => Checksum::Partial { start: first, offset: second },
        };
        let gso = NonZeroU16::new(first).filter(|_| kind & 0x80 != 0).map(|size| Gso {
            v6: kind & 0x40 != 0,
            size,
            header: second,
        });
        Some(Offload { checksum, gso })
    }

    /// A segment of a connection to the open port, or to the name server.
    fn segment(&mut self) -> Option<()> {
        let bits = self.byte()?;
        let v6 = bits & 1 != 0;
        let port = 1000 + u16::from(bits >> 5);
        let (next, acknowledged) = self.cable.connections.get(&(v6, port)).copied().unwrap_or_default();
        let to = if bits & 2 != 0 { 53 } else { self.listener.local_addr().ok()?.port() };
        // Mostly what fits: what the engine has acknowledged, and all it has sent.
        let shift = if bits & 4 != 0 { self.u16()? as i16 } else { 0 };
        let flags = self.byte()?;
        let mut segment = port.to_be_bytes().to_vec();
        segment.extend(to.to_be_bytes());
        segment.extend(acknowledged.wrapping_add(shift as u32).to_be_bytes());
        let shift = if bits & 8 != 0 { self.u16()? as i16 } else { 0 };
        segment.extend(next.wrapping_add(shift as u32).to_be_bytes());
        let options = if bits & 16 != 0 {
            let mut options = self.bytes()?;
            options.truncate(40);
            options.resize(options.len().div_ceil(4) * 4, 0);
            options
        } else {
            Vec::new()
        };
        segment.extend([((5 + options.len() / 4) << 4) as u8, flags]);
        segment.extend(self.u16()?.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        let payload = self.bytes()?;
        // As long as a driver's that leaves the cutting to others.
        let times = 1 + usize::from(self.byte()?);
        segment.extend(payload.repeat(times));
        self.send(6, v6, &segment)
    }

    /// A packet of another protocol, to the gateway or elsewhere.
    fn packet(&mut self, protocol: u8) -> Option<()> {
        let bits = self.byte()?;
        let mut payload = self.bytes()?;
        if bits & 2 != 0 && protocol == 17 {
            let len = (payload.len() + 8) as u16;
            let mut udp = [3, 0xe8, 0, 53, 0, 0, 0, 0].to_vec();
            udp[4..6].copy_from_slice(&len.to_be_bytes());
            udp.extend(payload);
            payload = udp;
        }
        let v6 = bits & 1 != 0;
        let protocol = match (protocol, v6) {
            // ICMPv6, or a piece of any packet.
            (1, true) => {
                if bits & 4 == 0 {
                    58
                } else {
                    44
                }
            }
            _ => protocol,
        };
        self.send(protocol, v6, &payload)
    }

    fn send(&mut self, protocol: u8, v6: bool, payload: &[u8]) -> Option<()> {
        let bits = self.byte()?;
        let mut frame = [GATEWAY_MAC, GUEST_MAC].concat();
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len().min(65535) as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(GUEST6.octets());
            let elsewhere = Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 1);
            frame.extend(if bits & 1 == 0 { GATEWAY6 } else { elsewhere }.octets());
        } else {
            let len = (20 + payload.len()).min(65535) as u16;
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(GUEST.octets());
            frame.extend(if bits & 1 == 0 { GATEWAY } else { Ipv4Addr::new(9, 9, 9, 9) }.octets());
        }
        frame.extend(payload);
        frame.truncate(MAX_FRAME);
        if bits & 2 != 0 {
            // Any byte of the headers as well.
            let (at, byte) = (usize::from(self.byte()?), self.byte()?);
            if let Some(there) = frame.get_mut(at) {
                *there = byte;
            }
        }
        self.engine.receive(&frame, Offload::default());
        Some(())
    }

    /// Something on the host's side.
    fn host(&mut self) -> Option<()> {
        let kind = self.byte()?;
        if let Ok((stream, _)) = self.listener.accept() {
            let _ = stream.set_nonblocking(true);
            self.streams.truncate(STREAMS - 1);
            self.streams.push(stream);
        }
        let index = usize::from(kind >> 4);
        match kind & 7 {
            0 if index < self.streams.len() => drop(self.streams.swap_remove(index)),
            1 => {
                if let Some(stream) = self.streams.get(index) {
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                }
            }
            2 | 3 => {
                let bytes = self.bytes()?.repeat(200);
                if let Some(stream) = self.streams.get_mut(index) {
                    let _ = stream.write(&bytes);
                }
            }
            4 | 5 => {
                if let Some(stream) = self.streams.get_mut(index) {
                    let _ = stream.read(&mut [0; 65536]);
                }
            }
            _ => {
                let mut query = [0; 4096];
                if let Ok((len, from)) = self.resolver.recv_from(&mut query) {
                    let mut answer = query[..len.min(12)].to_vec();
                    answer.extend(self.bytes()?);
                    let _ = self.resolver.send_to(&answer, from);
                }
            }
        }
        Some(())
    }
}

const CLOSED: &str = r#"{"mode": "allow"}"#;

/// What lets the guest connect to the listener.
fn open(listener: &TcpListener) -> String {
    let port = listener.local_addr().map_or(1, |address| address.port());
    format!(r#"{{"hostPorts": [{port}], "deny": ["*.denied.test"]}}"#)
}

fuzz_target!(|input: &[u8]| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("a listener");
    let resolver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    resolver.set_nonblocking(true).expect("a socket");
    let config = Config {
        policy: serde_json::from_str(&open(&listener)).expect("a policy"),
        resolvers: vec![resolver.local_addr().expect("an address")],
        hosts: BTreeMap::new(),
        ipv6: true,
        limits: Limits::default(),
    };
    let engine = Engine::new(config, Box::new(|_| ())).expect("an engine");
    let mut guest = Guest { input, engine, cable: Cable::default(), listener, resolver, streams: Vec::new() };
    while guest.command().is_some() {}
    guest.cable.room = usize::MAX / 2;
    guest.engine.run(&mut guest.cable);
});

//! Any interleaving of what guest and host may do delivers all bytes in order, or ends in a reset.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::packet::{Header, Op, SHUTDOWN_SEND};
use super::super::to_host::BUFFER;
use super::super::{Pair, fuzz};
use super::guest::{Machine, from_guest, pattern, read};

const STREAMS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Offer(usize),
    Run,
    HostWrite(usize, usize),
    HostRead(usize),
    HostEnd(usize),
    HostDrop(usize),
    GuestWrite(usize, usize, usize),
    GuestRead(usize),
    GuestEnd(usize),
    GuestReset(usize),
    CreditRequest(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = 0..STREAMS;
    prop_oneof![
        6 => (1..20usize).prop_map(Step::Offer),
        6 => Just(Step::Run),
        6 => (stream.clone(), 1..90_000usize).prop_map(|(stream, len)| Step::HostWrite(stream, len)),
        4 => stream.clone().prop_map(Step::HostRead),
        1 => stream.clone().prop_map(Step::HostEnd),
        1 => stream.clone().prop_map(Step::HostDrop),
        6 => (stream.clone(), 1..65_536usize, 1..5usize)
            .prop_map(|(stream, len, parts)| Step::GuestWrite(stream, len, parts)),
        4 => stream.clone().prop_map(Step::GuestRead),
        1 => stream.clone().prop_map(Step::GuestEnd),
        1 => stream.clone().prop_map(Step::GuestReset),
        1 => stream.prop_map(Step::CreditRequest),
    ]
}

/// Both sides of one connection.
#[expect(clippy::struct_excessive_bools, reason = "each side's end, as said and as seen")]
struct Stream {
    client: Option<UnixStream>,
    pair: Pair,
    /// How much each side has sent and got.
    host_sent: usize,
    host_got: usize,
    guest_sent: usize,
    guest_got: usize,
    /// Of `guest_got`, what the guest's program has read.
    guest_read: usize,
    /// The guest's credit: `fwd_cnt` of the device.
    forwarded: usize,
    host_ended: bool,
    guest_ended: bool,
    host_saw_end: bool,
    guest_saw_end: bool,
    /// The guest knows nothing of it any more, and whether that was its own doing.
    reset: Option<bool>,
}

/// What the guest can receive, in bytes.
const WINDOW: usize = 50_000;

impl Stream {
    fn header(&self, op: Op) -> Header {
        Header { buf_alloc: WINDOW as u32, fwd_cnt: self.guest_read as u32, ..from_guest(self.pair, op) }
    }

    fn host_seed(&self) -> u32 {
        self.pair.host
    }

    fn guest_seed(&self) -> u32 {
        !self.pair.host
    }

    fn host_reads(&mut self) {
        let seed = self.guest_seed();
        let Some(client) = &mut self.client else { return };
        let (bytes, end) = read(client);
        assert!(bytes == pattern(bytes.len(), seed.wrapping_add(self.host_got as u32)), "to the host");
        self.host_got += bytes.len();
        assert!(self.host_got <= self.guest_sent);
        self.host_saw_end |= end;
    }

    fn guest_receives(&mut self, header: &Header, payload: &[u8]) {
        if let Some(own) = self.reset {
            // What was on its way when either side reset the connection: another reset is the answer to what the guest said
            // before it knew of the first.
            assert!(own || header.op == Op::Reset as u16, "a packet after the reset");
            return;
        }
        self.forwarded = self.forwarded.max(header.fwd_cnt as usize);
        match Op::new(header.op).unwrap() {
            Op::Data => {
                assert!(!self.guest_saw_end);
                let expected = pattern(payload.len(), self.host_seed().wrapping_add(self.guest_got as u32));
                assert!(payload == expected, "to the guest");
                self.guest_got += payload.len();
                assert!(self.guest_got - self.guest_read <= WINDOW, "more than the credit");
            }
            Op::Shutdown => {
                assert_eq!(header.flags, SHUTDOWN_SEND);
                self.guest_saw_end = true;
            }
            Op::Reset => self.reset = Some(false),
            Op::CreditUpdate | Op::CreditRequest => {}
            op => panic!("{op:?}"),
        }
    }
}

struct World {
    machine: Machine,
    streams: Vec<Stream>,
}

impl World {
    fn new() -> Self {
        let mut machine = Machine::new();
        let streams = (0..STREAMS)
            .map(|_| {
                let (client, pair) = machine.connected();
                Stream {
                    client: Some(client),
                    pair,
                    host_sent: 0,
                    host_got: 0,
                    guest_sent: 0,
                    guest_got: 0,
                    guest_read: 0,
                    forwarded: 0,
                    host_ended: false,
                    guest_ended: false,
                    host_saw_end: false,
                    guest_saw_end: false,
                    reset: None,
                }
            })
            .collect();
        let mut world = Self { machine, streams };
        for stream in 0..STREAMS {
            world.tell(stream, Op::CreditUpdate);
        }
        world
    }

    fn tell(&mut self, stream: usize, op: Op) {
        let stream = &self.streams[stream];
        if stream.reset.is_none() {
            self.machine.send(stream.header(op), &[]);
        }
    }

    fn receive(&mut self) -> bool {
        let packets = self.machine.received();
        for (header, payload) in &packets {
            let stream = self.streams.iter_mut().find(|stream| stream.pair.host == header.src_port).unwrap();
            stream.guest_receives(header, payload);
        }
        !packets.is_empty()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer(count) => {
                self.machine.offer(count);
                self.receive();
            }
            Step::Run => {
                self.machine.run();
                self.receive();
            }
            Step::HostWrite(at, len) => {
                let stream = &mut self.streams[at];
                let bytes = pattern(len, stream.host_seed().wrapping_add(stream.host_sent as u32));
                if let Some(client) = &mut stream.client
                    && !stream.host_ended
                {
                    stream.host_sent += client.write(&bytes).unwrap_or(0);
                }
            }
            Step::HostRead(at) => self.streams[at].host_reads(),
            Step::HostEnd(at) => {
                let stream = &mut self.streams[at];
                if let Some(client) = &stream.client {
                    let _ = client.shutdown(Shutdown::Write);
                }
                stream.host_ended = true;
            }
            Step::HostDrop(at) => self.streams[at].client = None,
            Step::GuestWrite(at, len, parts) => {
                let stream = &mut self.streams[at];
                let len = len.min(BUFFER - (stream.guest_sent - stream.forwarded));
                if len == 0 || stream.guest_ended || stream.reset.is_some() {
                    return;
                }
                let bytes = pattern(len, stream.guest_seed().wrapping_add(stream.guest_sent as u32));
                stream.guest_sent += len;
                let header = Header { len: len as u32, ..stream.header(Op::Data) };
                self.machine.try_send(header, &bytes, parts).unwrap();
            }
            Step::GuestRead(at) => {
                self.streams[at].guest_read = self.streams[at].guest_got;
                self.tell(at, Op::CreditUpdate);
            }
            Step::GuestEnd(at) => {
                if !self.streams[at].guest_ended && self.streams[at].reset.is_none() {
                    self.streams[at].guest_ended = true;
                    let header = Header { flags: SHUTDOWN_SEND, ..self.streams[at].header(Op::Shutdown) };
                    self.machine.send(header, &[]);
                }
            }
            Step::GuestReset(at) => {
                self.tell(at, Op::Reset);
                self.streams[at].reset.get_or_insert(true);
            }
            Step::CreditRequest(at) => self.tell(at, Op::CreditRequest),
        }
    }

    /// Everyone reads until nothing moves.
    fn finish(&mut self) {
        loop {
            self.machine.offer(usize::MAX);
            self.machine.run();
            let mut moved = self.receive();
            for at in 0..STREAMS {
                let before = self.streams[at].host_got;
                self.streams[at].host_reads();
                moved |= self.streams[at].host_got != before;
                if self.streams[at].guest_read != self.streams[at].guest_got {
                    self.step(&Step::GuestRead(at));
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn check(&self) {
        for stream in &self.streams {
            let over = |ended: bool, got: usize, sent: usize| ended && got == sent;
            match (stream.reset, &stream.client) {
                // The host has gone: the guest has got all that it said, unless the guest itself spoke to it afterwards.
                (reset, None) => {
                    assert!(reset.is_some(), "the guest does not learn that the client has gone");
                }
                (None, Some(_)) => {
                    assert_eq!(stream.guest_got, stream.host_sent);
                    assert_eq!(stream.host_got, stream.guest_sent);
                    assert_eq!(stream.guest_saw_end, stream.host_ended);
                    assert_eq!(stream.host_saw_end, stream.guest_ended);
                    assert!(!(stream.host_ended && stream.guest_ended), "not over");
                }
                (Some(false), Some(_)) => {
                    assert!(over(stream.host_ended, stream.guest_got, stream.host_sent));
                    assert!(over(stream.guest_ended, stream.host_got, stream.guest_sent));
                }
                // What the guest had sent before it reset the connection is not lost.
                (Some(true), Some(_)) => {
                    assert!(over(stream.host_saw_end, stream.host_got, stream.guest_sent));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn all_bytes_in_order_or_a_reset(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.finish();
        world.check();
    }
}

proptest! {
    #[test]
    fn no_packet_in_any_chain_is_a_panic(data in prop::collection::vec(any::<u8>(), 0..4000)) {
        fuzz::guest(&data);
    }
}

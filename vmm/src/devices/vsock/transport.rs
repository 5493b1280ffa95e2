//! The queues: packets of the guest in, packets for the guest out.

use std::sync::Arc;

use virtio_queue::{QueueOwnedT as _, QueueT as _};

use super::connection::{Connection, Next, Verdict};
use super::connections::Reset;
use super::packet::{Buffers, HEADER, HOST_CID, Header, Op, STREAM};
use super::{RX, TX, Vsock, count};
use crate::virtio::{DeviceError, Events};

impl Vsock {
    /// Handles what the driver sends, at most a queue full of it; for the rest the queue is notified again.
    pub(super) fn transmit(&mut self, events: &Events<'_>) -> Result<(), DeviceError> {
        let Some(active) = self.active.as_mut().filter(|active| active.queues[TX].ready()) else {
            return Ok(());
        };
        let memory = Arc::clone(&active.memory);
        let mut left = active.queues[TX].size();
        active.queues[TX].disable_notification(&*memory)?;
        loop {
            while left > 0
                && let Some(active) = &mut self.active
                && let Some(chain) = active.pop(TX)?
            {
                let head = chain.head_index();
                let (header, buffers) = Buffers::sent(&memory, chain)?;
                self.packet(&header, &buffers, events);
                if let Some(active) = &mut self.active {
                    active.push(TX, head, 0)?;
                }
                self.used[TX] = true;
                left -= 1;
            }
            let Some(active) = &mut self.active else { return Ok(()) };
            let more = active.queues[TX].enable_notification(&*memory)?;
            if more && left == 0 {
                // Fails only when it is notified already.
                let _ = active.notifiers[TX].write(1);
            }
            if !more || left == 0 {
                return Ok(());
            }
        }
    }

    /// A packet of the guest.
    fn packet(&mut self, header: &Header, buffers: &Buffers<'_>, events: &Events<'_>) {
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            return count(&self.counters.dropped);
        }
        let op = Op::new(header.op);
        let pair = header.pair_from_guest();
        let known = if header.kind == STREAM { self.connections.find(pair) } else { None };
        match (known, op) {
            (Some(token), Some(op)) => {
                let Some(connection) = self.connections.get_mut(token) else { return };
                let buffering = connection.is_buffering();
                let verdict = connection.packet(op, header, buffers.payload());
                match (op, verdict) {
                    (Op::Response, Verdict::Keep) => count(&self.counters.opened),
                    (Op::Reset | Op::Shutdown, _) | (_, Verdict::Keep) => {}
                    _ => count(&self.counters.broken),
                }
                self.settle(token, verdict, buffering, events);
            }
            (Some(token), None) => {
                count(&self.counters.broken);
                self.reset(token);
            }
            (None, Some(Op::Request)) if header.kind == STREAM && self.open(header, events) => {}
            (None, Some(Op::Reset)) => {}
            (None, op) => {
                if op == Some(Op::Request) {
                    count(&self.counters.refused);
                }
                self.owe_reset(Reset { pair, kind: header.kind });
            }
        }
    }

    /// The guest asks for a port of the host. Tells whether it gets it.
    fn open(&mut self, header: &Header, events: &Events<'_>) -> bool {
        if self.connections.is_full() {
            return false;
        }
        let Some(socket) = self.ports.remove(&header.dst_port) else { return false };
        let token = self.connections.token();
        let connection = Connection::from_guest(socket.into(), header);
        if events.add(connection.socket(), token, connection.interest()).is_err() {
            return false;
        }
        self.connections.insert(token, connection);
        self.connections.name(token, header.pair_from_guest());
        self.connections.queue(token);
        count(&self.counters.opened);
        self.counters.activity.touch();
        true
    }

    /// The driver has receive buffers, and need not tell so again until they run out.
    pub(super) fn hush(&mut self) -> Result<(), DeviceError> {
        match &mut self.active {
            Some(active) if active.queues[RX].ready() => {
                Ok(active.queues[RX].disable_notification(&*active.memory)?)
            }
            _ => Ok(()),
        }
    }

    /// Fills receive buffers with what there is, at most a queue full of them; for the rest the queue is notified again. The
    /// driver is asked to tell of new buffers only where there are none left.
    pub(super) fn fill(&mut self, events: &Events<'_>) -> Result<(), DeviceError> {
        let Some(active) = self.active.as_mut().filter(|active| active.queues[RX].ready()) else {
            return Ok(());
        };
        let memory = Arc::clone(&active.memory);
        let mut left = active.queues[RX].size();
        let mut held: Option<(u16, Buffers<'_>)> = None;
        while left > 0 && self.connections.any_turn() {
            let Some(active) = &mut self.active else { return Ok(()) };
            if held.is_none() {
                let Some(chain) = active.pop(RX)? else {
                    left -= 1;
                    if active.queues[RX].enable_notification(&*memory)? {
                        continue;
                    }
                    return Ok(());
                };
                held = Some((chain.head_index(), Buffers::to_fill(&memory, chain)?));
            }
            if let Some((head, buffers)) = &held
                && let Some(header) = self.next(buffers, events)
            {
                buffers.write_header(header);
                if let Some(active) = &mut self.active {
                    active.push(RX, *head, HEADER as u32 + header.len)?;
                }
                self.used[RX] = true;
                held = None;
                left -= 1;
            }
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        if held.is_some() {
            active.queues[RX].go_to_previous_position();
        }
        if left == 0 && self.connections.any_turn() {
            let _ = active.notifiers[RX].write(1);
        }
        Ok(())
    }

    /// The next packet for the guest, its payload in `buffers`: resets first, then the connection whose turn it is, which is
    /// the last in line afterwards. `None` where that one had nothing after all.
    fn next(&mut self, buffers: &Buffers<'_>, events: &Events<'_>) -> Option<Header> {
        if let Some(reset) = self.connections.pop_reset() {
            return Some(Header { kind: reset.kind, ..Header::to_guest(self.cid, reset.pair, Op::Reset) });
        }
        let token = self.connections.turn()?;
        let connection = self.connections.get_mut(token)?;
        let buffering = connection.is_buffering();
        match connection.next(self.cid, buffers, self.patience) {
            Next::Packet(header) => {
                self.connections.queue(token);
                Some(header)
            }
            Next::Nothing => None,
            Next::Reset => {
                self.settle(token, Verdict::Reset, buffering, events);
                None
            }
        }
    }

    /// Tells the driver of used buffers, of both queues at once.
    pub(super) fn signal(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let mut wanted = false;
        for queue in [RX, TX] {
            if std::mem::take(&mut self.used[queue]) {
                wanted |= active.queues[queue].needs_notification(&*active.memory)?;
            }
        }
        if wanted {
            active.interrupt.queue();
        }
        Ok(())
    }
}

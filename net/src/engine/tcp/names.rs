//! The gateway's name server by TCP (RFC 7766): messages behind their length.

use std::time::Duration;

use smoltcp::socket::tcp::Socket;

use super::super::Core;
use super::super::dns::{Asker, Dns};
use super::Tcp;
use super::flow::Peer;
use crate::dns::{Query, Transport};

/// Bytes of a query, at most: one that asks for a single name is far shorter.
const LONGEST: usize = 4096;
/// Queries of one stream that may wait for a name server.
const WAITING: usize = 8;
/// Bytes of answers that may wait for the guest before more queries are read.
const ANSWERS: usize = 128 * 1024;

/// How long a stream to the gateway's name server may be silent.
const NAMES_IDLE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub(super) struct Stream {
    answers: Vec<u8>,
    waiting: usize,
}

/// It says no more of what a name server understands.
struct Broken;

impl Stream {
    /// The next query, if it is there whole and there is room for its answer.
    fn query(&mut self, socket: &mut Socket<'_>) -> Result<Option<Vec<u8>>, Broken> {
        let mut len = [0; 2];
        if self.waiting >= WAITING || self.answers.len() >= ANSWERS || socket.recv_queue() < 2 {
            return Ok(None);
        }
        if socket.peek_slice(&mut len).is_err() {
            return Ok(None);
        }
        let len = usize::from(u16::from_be_bytes(len));
        if len > LONGEST {
            return Err(Broken);
        }
        if socket.recv_queue() < 2 + len {
            return Ok(None);
        }
        let mut message = vec![0; 2 + len];
        if socket.recv_slice(&mut message) != Ok(2 + len) {
            return Err(Broken);
        }
        Ok(Some(message.split_off(2)))
    }

    /// One more answer is to come.
    pub(super) fn wait(&mut self) {
        self.waiting += 1;
    }

    /// That answer.
    pub(super) fn answered(&mut self, message: &[u8]) {
        self.waiting = self.waiting.saturating_sub(1);
        self.answer(message);
    }

    /// An answer that nobody waited for.
    pub(super) fn answer(&mut self, message: &[u8]) {
        if let Ok(len) = u16::try_from(message.len()) {
            self.answers.extend(len.to_be_bytes());
            self.answers.extend(message);
        }
    }

    /// Hands answers over, as far as they are taken. Whether all were, and no more are to come.
    pub(super) fn flush(&mut self, socket: &mut Socket<'_>) -> bool {
        if !self.answers.is_empty()
            && let Ok(sent) = socket.send_slice(&self.answers)
        {
            self.answers.drain(..sent);
        }
        self.answers.is_empty() && self.waiting == 0
    }
}

impl Tcp {
    /// Does the work of the gateway's name server for one stream.
    pub(super) fn serve_names(&mut self, core: &mut Core, dns: &mut Dns, slot: usize) {
        let flow = &mut self.flows[slot];
        let serial = flow.serial;
        let (Some(guest), Peer::Names(stream)) = (&mut flow.guest, &mut flow.peer) else { return };
        let socket = guest.socket();
        loop {
            let message = match stream.query(socket) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(Broken) => {
                    flow.abort();
                    return;
                }
            };
            flow.deadline = Some(core.now + NAMES_IDLE);
            match core.names.query(core.now, &message, Transport::Tcp, &core.policy) {
                Query::Reply(reply) => stream.answer(&reply),
                Query::Forward { message, question } => {
                    stream.wait();
                    if let Err(refusal) = dns.ask(core, message, question, Asker::Stream { slot, serial }) {
                        stream.answered(&refusal);
                    }
                }
                Query::Denied { name, rule, reply } => {
                    core.deny_name(name, rule);
                    stream.answer(&reply);
                }
                Query::Malformed => {
                    flow.abort();
                    return;
                }
            }
        }
        if stream.flush(socket) && flow.guest_ended {
            socket.close();
            flow.host_done = true;
            flow.guest_done = true;
        }
    }
}

//! Names: what the gateway's name server answers. It asks the host's own name servers; to whom and when is the engine's business.
//!
//! ```text
//!   guest ── query ──▶ hosts? ─▶ policy? ─▶ cache? ── Forward ──▶ the host's name servers
//!   guest ◀── reply ── pins ◀── closed addresses out ◀────────── response
//! ```
//!
//! Both ends are hostile: a guest sends what it likes, and a name server repeats what the owner of a name likes.
//!
//! - Addresses that the policy keeps closed are taken out of answers, so that no public name stands for something private.
//! - Questions for HTTPS and SVCB records (RFC 9460) are answered with none: their address hints would go past that, and their keys for
//!   Encrypted ClientHello would hide the name that domain rules are about. Clients go on with the addresses that they ask for as well.
//! - A denied name does not exist (NXDOMAIN): to "refused" programs answer by asking again for seconds.

mod cache;
mod hosts;
mod message;
mod pins;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::policy::Policy;
use cache::Cache;
use hosts::Hosts;
use message::{Answer, Refused, Section};
use pins::Pins;

/// The longest message by UDP, in bytes.
pub const MAX_UDP: usize = 4096;
/// And by TCP, without the two bytes of length before it.
pub const MAX_TCP: usize = 65535;

/// Seconds for which a guest may keep what the user has named: it may be another the next time.
const HOSTS_TTL: u32 = 60;

/// What carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream, each message behind its length in two bytes.
    Tcp,
}

impl Transport {
    fn limit(self) -> usize {
        match self {
            Self::Udp => MAX_UDP,
            Self::Tcp => MAX_TCP,
        }
    }
}

/// What is to be done about a guest's message.
#[derive(Debug)]
pub enum Query {
    /// Send this to the guest.
    Reply(Vec<u8>),
    /// Send this to one of the host's name servers, by the transport by which the guest's came; what it answers goes to
    /// [`Names::response`], or, where it does not, the guest gets [`Names::servfail`].
    Forward {
        /// The message to send.
        message: Vec<u8>,
        /// What belongs to it.
        question: Question,
    },
    /// Send the reply to the guest, and tell that the policy has denied it.
    Denied {
        /// What was asked for.
        name: String,
        /// The rule.
        rule: String,
        /// No such name.
        reply: Vec<u8>,
    },
    /// Not a query: drop it.
    Malformed,
}

/// A question that one of the host's name servers was asked.
#[derive(Clone, Debug)]
pub struct Question {
    id: u16,
    asked: message::Question,
}

impl Question {
    /// The id that the forwarded message has.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The name, in lower case and without a dot at its end.
    pub fn name(&self) -> &str {
        &self.asked.name
    }

    /// What the guest's message came by, and the forwarded one goes by.
    pub fn transport(&self) -> Transport {
        self.asked.transport
    }
}

/// The gateway's name server: its cache, its own names, and which names have led to which address.
#[derive(Debug)]
pub struct Names {
    hosts: Hosts,
    cache: Cache,
    pins: Pins,
}

impl Names {
    /// One that answers `hosts` by itself.
    pub fn new(hosts: &BTreeMap<String, IpAddr>) -> Self {
        Self { hosts: Hosts::new(hosts), cache: Cache::default(), pins: Pins::default() }
    }

    /// Takes a message of the guest, of any content.
    pub fn query(&mut self, now: Instant, message: &[u8], transport: Transport, policy: &Policy) -> Query {
        let asked = match message::query(message, transport) {
            Ok(asked) => asked,
            Err(Refused::Malformed) => return Query::Malformed,
            Err(Refused::Code(reply)) => return Query::Reply(reply),
        };
        // What the user has named is known whatever the rules say: the question does not leave the gateway.
        if let Some(address) = self.hosts.address(&asked.name) {
            return Query::Reply(asked.reply(message::NOERROR, &[address], HOSTS_TTL));
        }
        if let Err(rule) = policy.decide_name(&asked.name) {
            let reply = asked.reply(message::NXDOMAIN, &[], 0);
            return Query::Denied { name: asked.name, rule, reply };
        }
        if matches!(asked.kind, message::SVCB | message::HTTPS) {
            return Query::Reply(asked.reply(message::NOERROR, &[], 0));
        }
        // The names of private addresses are the host's network's (RFC 6303).
        if hosts::reversed(&asked.name).is_some_and(|address| !policy.decide_answer(address)) {
            return Query::Reply(asked.reply(message::NXDOMAIN, &[], 0));
        }
        if let Some((known, left)) = self.cache.get(now, &asked)
            && let Some(answer) = message::answer(&known, &asked)
        {
            return Query::Reply(self.reply(now, &asked, known, &answer, Some(left), policy));
        }
        let mut id = [0; 2];
        if getrandom(&mut id, GetRandomFlags::empty()) != Ok(id.len()) {
            return Query::Reply(asked.reply(message::SERVFAIL, &[], 0));
        }
        let id = u16::from_ne_bytes(id);
        Query::Forward { message: asked.forwarded(id), question: Question { id, asked } }
    }

    /// Takes a message of a name server: what to send to the guest, or `None` where it does not answer `question`.
    pub fn response(
        &mut self,
        now: Instant,
        question: &Question,
        message: &[u8],
        policy: &Policy,
    ) -> Option<Vec<u8>> {
        let asked = &question.asked;
        if !message::answers(message, asked, question.id) {
            return None;
        }
        let Some(answer) = message::answer(message, asked) else { return Some(Self::servfail(question)) };
        let message = &message[..answer.end];
        self.cache.put(now, asked, message, &answer);
        Some(self.reply(now, asked, message.to_vec(), &answer, None, policy))
    }

    /// The names by which the guest knows `address`, in lower case and without a dot at their end.
    pub fn names_of(&self, now: Instant, address: IpAddr) -> Vec<String> {
        self.hosts.names(address).chain(self.pins.names(now, address)).map(str::to_owned).collect()
    }

    /// What the guest is told where no name server answers.
    pub fn servfail(question: &Question) -> Vec<u8> {
        question.asked.reply(message::SERVFAIL, &[], 0)
    }

    /// Forgets what name servers have answered: there are others now. What the guest knows by it stays.
    pub fn forget_answers(&mut self) {
        self.cache.clear();
    }

    /// What the guest gets to see of `message`, of which `left` seconds are left where it comes from the cache.
    fn reply(
        &mut self,
        now: Instant,
        asked: &message::Question,
        mut message: Vec<u8>,
        answer: &Answer,
        left: Option<u32>,
        policy: &Policy,
    ) -> Vec<u8> {
        let ttl = |record: &message::Record| record.ttl.min(left.unwrap_or(u32::MAX));
        let fitting = answer
            .records
            .iter()
            .filter(|record| record.section == Section::Answer && record.kind == asked.kind)
            .filter_map(|record| record.address.map(|address| (address, ttl(record))));
        let open: Vec<_> = fitting.filter(|(address, _)| policy.decide_answer(*address)).collect();
        for (address, ttl) in &open {
            self.pins.add(now, *address, &asked.name, *ttl);
        }
        // Whatever the section: some programs take what stands beside an answer.
        let closed = |record: &message::Record| {
            record.address.is_some_and(|address| !policy.decide_answer(address))
                || matches!(record.kind, message::SVCB | message::HTTPS)
        };
        if answer.records.iter().any(closed) {
            let least = open.iter().map(|(_, ttl)| *ttl).min().unwrap_or(0);
            let addresses: Vec<_> = open.into_iter().map(|(address, _)| address).collect();
            return asked.reply(message::NOERROR, &addresses, least);
        }
        if left.is_some() {
            for record in answer.records.iter().filter(|record| record.kind != message::OPT) {
                message[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl(record).to_be_bytes());
            }
        }
        asked.addressed(message)
    }
}

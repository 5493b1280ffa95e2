//! DNS messages (RFC 1035, section 4), as far as they have to be understood: the header, the question, and where each record's parts
//! are. Records stay the bytes that they came as: what is passed on is what a name server said, not what was understood of it.
//!
//! Written here, since the libraries that read whole messages into values of their own bring some sixty crates, or cannot say where in
//! the message a record stands.

use std::net::IpAddr;
use std::ops::Range;

use super::Transport;
use crate::name;

pub(super) const HEADER: usize = 12;

/// A response; set in replies.
const QR: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
/// Truncated.
const TC: u16 = 1 << 9;
/// Recursion desired, and available.
const RD: u16 = 1 << 8;
const RA: u16 = 1 << 7;
/// Data is authentic; checking is disabled (RFC 4035, section 3.2).
const AD: u16 = 1 << 5;
const CD: u16 = 1 << 4;
const RCODE: u16 = 0xf;

pub(super) const NOERROR: u16 = 0;
pub(super) const FORMERR: u16 = 1;
pub(super) const SERVFAIL: u16 = 2;
pub(super) const NXDOMAIN: u16 = 3;
pub(super) const NOTIMP: u16 = 4;

/// Types of records.
pub(super) const A: u16 = 1;
pub(super) const SOA: u16 = 6;
#[cfg(test)]
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
pub(super) const OPT: u16 = 41;
pub(super) const SVCB: u16 = 64;
pub(super) const HTTPS: u16 = 65;

const CLASS_IN: u16 = 1;
/// In the time-to-live of an OPT record: the asker takes DNSSEC records (RFC 3225).
const DNSSEC_OK: u32 = 1 << 15;

/// A question, with what a reply to it needs.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The id that the guest gave.
    pub(super) id: u16,
    /// Its flags, of which only those that a reply repeats are kept.
    pub(super) flags: u16,
    /// The question as the guest wrote it: the name with its upper case letters, the type and the class.
    pub(super) bytes: Vec<u8>,
    /// The name, in lower case and without a dot at its end.
    pub(super) name: String,
    pub(super) kind: u16,
    /// The size and the flags of the guest's OPT record.
    pub(super) edns: Option<(u16, u32)>,
    pub(super) transport: Transport,
}

/// Why a guest's message is not answered with what it asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not a query.
    Malformed,
    /// Answered with this code.
    Code(Vec<u8>),
}

/// Reads a query.
pub(super) fn query(message: &[u8], transport: Transport) -> Result<Question, Refused> {
    let flags = u16_at(message, 2).ok_or(Refused::Malformed)?;
    let id = u16_at(message, 0).ok_or(Refused::Malformed)?;
    if message.len() < HEADER || message.len() > transport.limit() || flags & QR != 0 {
        return Err(Refused::Malformed);
    }
    let flags = flags & (OPCODE | RD | AD | CD);
    let refused = |code| Refused::Code(header(id, reply_flags(flags, code), [0; 4]).to_vec());
    if flags & OPCODE != 0 {
        return Err(refused(NOTIMP));
    }
    let [questions, answers, authorities, _] = counts(message).ok_or(Refused::Malformed)?;
    let asked = asked(message).ok_or_else(|| refused(FORMERR))?;
    if [questions, answers, authorities] != [1, 0, 0] {
        return Err(refused(FORMERR));
    }
    let records = records(message, asked.end).ok_or_else(|| refused(FORMERR))?;
    let edns = records.iter().find(|record| record.kind == OPT).map(|record| (record.class, record.ttl));
    // Transfers of zones and other questions that are not for records (RFC 6895, section 3.1); ANY is one that is.
    if asked.class != CLASS_IN || matches!(asked.kind, OPT | 128..=254) {
        return Err(refused(NOTIMP));
    }
    let bytes = message[HEADER..asked.end].to_vec();
    Ok(Question { id, flags, bytes, name: asked.name, kind: asked.kind, edns, transport })
}

impl Question {
    /// The message that asks a name server, under another `id`: the guest's question and what it says of itself, and nothing else that
    /// its message had.
    pub(super) fn forwarded(&self, id: u16) -> Vec<u8> {
        let mut message = header(id, self.flags, [1, 0, 0, self.edns.is_some().into()]).to_vec();
        message.extend_from_slice(&self.bytes);
        if let Some((size, flags)) = self.edns {
            message.push(0);
            message.extend_from_slice(&OPT.to_be_bytes());
            message.extend_from_slice(&size.clamp(512, super::MAX_UDP as u16).to_be_bytes());
            message.extend_from_slice(&(flags & DNSSEC_OK).to_be_bytes());
            message.extend_from_slice(&[0, 0]);
        }
        message
    }

    /// A reply with these addresses, of which those count that the question's type is for, or with none.
    pub(super) fn reply(&self, code: u16, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let fitting = addresses.iter().filter(|address| self.kind == kind_of(**address));
        let mut count = 0;
        let mut records = Vec::new();
        for address in fitting.take(usize::from(u16::MAX)) {
            // The question's name, which begins behind the header.
            records.extend_from_slice(&[0xc0, HEADER as u8]);
            records.extend_from_slice(&self.kind.to_be_bytes());
            records.extend_from_slice(&CLASS_IN.to_be_bytes());
            records.extend_from_slice(&ttl.to_be_bytes());
            match address {
                IpAddr::V4(address) => {
                    records.extend_from_slice(&[0, 4]);
                    records.extend_from_slice(&address.octets());
                }
                IpAddr::V6(address) => {
                    records.extend_from_slice(&[0, 16]);
                    records.extend_from_slice(&address.octets());
                }
            }
            count += 1;
        }
        let mut reply = header(self.id, reply_flags(self.flags, code), [1, count, 0, 0]).to_vec();
        reply.extend_from_slice(&self.bytes);
        reply.extend_from_slice(&records);
        self.fitted(reply)
    }

    /// `message`, an answer to this question, as the guest is to see it: with its id and the letters it wrote.
    pub(super) fn addressed(&self, mut message: Vec<u8>) -> Vec<u8> {
        message[..2].copy_from_slice(&self.id.to_be_bytes());
        message[HEADER..HEADER + self.bytes.len()].copy_from_slice(&self.bytes);
        self.fitted(message)
    }

    /// `reply`, or where the guest does not take one as long as that by a datagram, that it is to ask by TCP.
    fn fitted(&self, reply: Vec<u8>) -> Vec<u8> {
        let size = self.edns.map_or(512, |(size, _)| usize::from(size).max(512));
        let limit = match self.transport {
            Transport::Udp => size.min(super::MAX_UDP),
            Transport::Tcp => super::MAX_TCP,
        };
        if reply.len() <= limit {
            return reply;
        }
        let mut truncated = header(self.id, reply_flags(self.flags, NOERROR) | TC, [1, 0, 0, 0]).to_vec();
        truncated.extend_from_slice(&self.bytes);
        truncated
    }
}

/// An answer to a question.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) truncated: bool,
    pub(super) records: Vec<Record>,
    /// Where the last record ends.
    pub(super) end: usize,
}

/// Whether `message` is a response to `question`, sent under `id`.
pub(super) fn answers(message: &[u8], question: &Question, id: u16) -> bool {
    let Some(flags) = u16_at(message, 2) else { return false };
    let matches = |asked: &Asked| {
        asked.class == CLASS_IN
            && asked.kind == question.kind
            && asked.name == question.name
            && asked.end == HEADER + question.bytes.len()
    };
    message.len() <= question.transport.limit()
        && u16_at(message, 0) == Some(id)
        && flags & (QR | OPCODE) == QR
        && counts(message).is_some_and(|[questions, ..]| questions == 1)
        && asked(message).as_ref().is_some_and(matches)
}

/// Reads a response that [`answers`].
pub(super) fn answer(message: &[u8], question: &Question) -> Option<Answer> {
    let flags = u16_at(message, 2)?;
    let records = records(message, HEADER + question.bytes.len())?;
    let end = records.last().map_or(HEADER + question.bytes.len(), |record| record.data.end);
    Some(Answer { code: flags & RCODE, truncated: flags & TC != 0, records, end })
}

/// Where in a message a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// A record, but for its name.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) section: Section,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Seconds.
    pub(super) ttl: u32,
    /// In the message.
    pub(super) ttl_at: usize,
    pub(super) data: Range<usize>,
    /// The address that it holds.
    pub(super) address: Option<IpAddr>,
}

/// The records of a message whose question ends at `at`; `None` where they are not what the header says.
fn records(message: &[u8], mut at: usize) -> Option<Vec<Record>> {
    let [_, answers, authorities, additionals] = counts(message)?;
    let sections =
        [(Section::Answer, answers), (Section::Authority, authorities), (Section::Additional, additionals)];
    let mut records = Vec::new();
    for (section, count) in sections {
        for _ in 0..count {
            let record = record(message, at, section)?;
            at = record.data.end;
            records.push(record);
        }
    }
    Some(records)
}

fn record(message: &[u8], at: usize, section: Section) -> Option<Record> {
    let at = behind_name(message, at)?;
    let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
    let ttl_at = at + 4;
    let ttl = u32::from_be_bytes(message.get(ttl_at..ttl_at + 4)?.try_into().ok()?);
    let start = at + 10;
    let data = start..start + usize::from(u16_at(message, at + 8)?);
    let bytes = message.get(data.clone())?;
    let address = match kind {
        A => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        AAAA => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    };
    Some(Record { section, kind, class, ttl, ttl_at, data, address })
}

/// The position behind the name at `at`. Where a pointer leads is left to whoever needs the name.
fn behind_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=0x3f => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2).filter(|end| *end <= message.len()),
            _ => return None,
        }
    }
}

/// What a message asks for.
struct Asked {
    name: String,
    kind: u16,
    class: u16,
    end: usize,
}

/// The first question. Its name has no pointers, since there is nothing before it to point at.
fn asked(message: &[u8]) -> Option<Asked> {
    let mut at = HEADER;
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        if length > name::MAX_LABEL {
            return None;
        }
        let label = message.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // Dots in a label would make it look like several; others are in no name that a rule can be about.
        if !label.iter().all(|byte| name::is_character(*byte)) || name.len() + length > name::MAX_NAME {
            return None;
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(Asked { name, kind: u16_at(message, at)?, class: u16_at(message, at + 2)?, end: at + 4 })
}

/// The numbers of questions, and of records in each section.
fn counts(message: &[u8]) -> Option<[u16; 4]> {
    Some([u16_at(message, 4)?, u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?])
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn header(id: u16, flags: u16, [questions, answers, authorities, additionals]: [u16; 4]) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let fields = [id, flags, questions, answers, authorities, additionals];
    for (field, value) in bytes.chunks_exact_mut(2).zip(fields) {
        field.copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

fn reply_flags(query: u16, code: u16) -> u16 {
    QR | RA | query & (OPCODE | RD | CD) | code
}

/// The type of record that holds `address`.
pub(super) fn kind_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { A } else { AAAA }
}

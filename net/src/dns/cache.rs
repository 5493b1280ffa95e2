//! Answers that are still good.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::message::{Answer, NOERROR, NXDOMAIN, OPT, Question, SOA, Section};

/// The most answers.
const MAX_ENTRIES: usize = 1024;
/// The most bytes of all of them.
const MAX_BYTES: usize = 1 << 20;
/// A longer one is not kept.
const MAX_MESSAGE: usize = 16 << 10;
/// The longest time.
const MAX_TTL: u32 = 24 * 3600;
/// The same where there is no such name or record: short, since what is missing is what somebody is about to make.
const MAX_NEGATIVE_TTL: u32 = 60;

/// What name servers have answered, as they said it: what of it a guest may see is decided when it asks.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

/// What makes the same question. An answer to one with other flags may be another one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    name: String,
    kind: u16,
    flags: u16,
    edns: Option<u32>,
}

#[derive(Debug)]
struct Entry {
    message: Vec<u8>,
    expires: Instant,
    used: u64,
}

impl Cache {
    /// The answer to `question`, and the seconds for which it is still good.
    pub(super) fn get(&mut self, now: Instant, question: &Question) -> Option<(Vec<u8>, u32)> {
        let entry = self.entries.get_mut(&Key::of(question)).filter(|entry| entry.expires > now)?;
        self.clock += 1;
        entry.used = self.clock;
        let left = entry.expires.duration_since(now).as_secs().min(u64::from(MAX_TTL));
        Some((entry.message.clone(), left as u32))
    }

    /// Keeps `message` for as long as it says.
    pub(super) fn put(&mut self, now: Instant, question: &Question, message: &[u8], answer: &Answer) {
        let Some(ttl) = lifetime(message, answer).filter(|ttl| *ttl > 0) else { return };
        if message.len() > MAX_MESSAGE {
            return;
        }
        let key = Key::of(question);
        self.remove(&key);
        while self.entries.len() >= MAX_ENTRIES || self.bytes + message.len() > MAX_BYTES {
            if !self.evict(now) {
                return;
            }
        }
        self.clock += 1;
        self.bytes += message.len();
        let expires = now + Duration::from_secs(ttl.into());
        self.entries.insert(key, Entry { message: message.to_vec(), expires, used: self.clock });
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.message.len();
        }
    }

    /// Makes room: of what is not good any more, or else of what nobody has asked for the longest.
    fn evict(&mut self, now: Instant) -> bool {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.expires > now);
        if self.entries.len() == before {
            let oldest = self.entries.values().map(|entry| entry.used).min();
            self.entries.retain(|_, entry| Some(entry.used) != oldest);
        }
        self.bytes = self.entries.values().map(|entry| entry.message.len()).sum();
        self.entries.len() < before
    }
}

impl Key {
    fn of(question: &Question) -> Self {
        Self {
            name: question.name.clone(),
            kind: question.kind,
            flags: question.flags,
            edns: question.edns.map(|(_, flags)| flags),
        }
    }
}

/// The seconds for which `answer` is good; none where it is not to be kept.
fn lifetime(message: &[u8], answer: &Answer) -> Option<u32> {
    if answer.truncated || !matches!(answer.code, NOERROR | NXDOMAIN) {
        return None;
    }
    let ttls = |section: Section| {
        answer.records.iter().filter(move |record| record.section == section && record.kind != OPT)
    };
    // The top bit makes it nothing (RFC 2181, section 8).
    let seconds = |ttl: u32| if ttl > i32::MAX as u32 { 0 } else { ttl };
    let positive = ttls(Section::Answer).map(|record| seconds(record.ttl)).min();
    if answer.code == NOERROR
        && let Some(ttl) = positive
    {
        return Some(ttl.min(MAX_TTL));
    }
    // RFC 2308, section 5: the lesser of the SOA record's time-to-live and of its last field.
    let soa = ttls(Section::Authority).find(|record| record.kind == SOA)?;
    let minimum = message.get(soa.data.clone())?.last_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
    Some(seconds(soa.ttl).min(seconds(minimum)).min(positive.unwrap_or(u32::MAX)).min(MAX_NEGATIVE_TTL))
}

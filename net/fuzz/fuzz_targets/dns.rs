//! Any bytes as a guest's query, and any as what a name server answers it with: replies that belong to the query and have a size that its
//! sender takes, and in none of them an address that the policy keeps closed.
//!
//! The input: a byte of which the first bit is the transport, the length of the query in two bytes, the query, and a response without its
//! id and question, which are taken from what was asked.
#![no_main]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use net::dns::{MAX_TCP, MAX_UDP, Names, Query, Transport};
use net::policy::Policy;

fn policy() -> Policy {
    serde_json::from_str(r#"{"allow":["10.0.0.0/28","fd00::/64"],"deny":["*.denied.test"]}"#)
        .expect("a policy")
}

/// The addresses in a reply: read in the simplest way, since those of the code that is tested are its own.
fn addresses(reply: &[u8]) -> Option<Vec<IpAddr>> {
    let u16_at = |at: usize| Some(usize::from(u16::from_be_bytes([*reply.get(at)?, *reply.get(at + 1)?])));
    let behind_name = |mut at: usize| loop {
        match usize::from(*reply.get(at)?) {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += 1 + length,
        }
    };
    let mut at = if u16_at(4)? == 1 { behind_name(12)? + 4 } else { 12 };
    let mut found = Vec::new();
    for _ in 0..u16_at(6)? + u16_at(8)? + u16_at(10)? {
        at = behind_name(at)?;
        let data = reply.get(at + 10..at + 10 + u16_at(at + 8)?)?;
        match u16_at(at)? {
            1 => found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            28 => found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            kind => assert!(kind != 64 && kind != 65, "address hints"),
        }
        at += 10 + data.len();
    }
    assert_eq!(at, reply.len());
    Some(found)
}

fn check(query: &[u8], reply: &[u8], transport: Transport, policy: &Policy) {
    assert_eq!(reply[..2], query[..2]);
    assert!(reply[2] & 0x80 != 0, "a reply");
    assert!(reply.len() <= if transport == Transport::Tcp { MAX_TCP } else { MAX_UDP });
    for address in addresses(reply).expect("a reply that can be read") {
        assert!(policy.decide_answer(address), "{address} is closed");
    }
}

fuzz_target!(|input: &[u8]| {
    let [flags, high, low, rest @ ..] = input else { return };
    let transport = if flags & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let (query, response) = rest.split_at(rest.len().min(u16::from_be_bytes([*high, *low]).into()));
    let (policy, now) = (policy(), Instant::now());
    let hosts = [("host.test".to_owned(), IpAddr::from([10, 0, 0, 1]))];
    let mut names = Names::new(&BTreeMap::from(hosts));
    let (message, question) = match names.query(now, query, transport, &policy) {
        Query::Reply(reply) => return check(query, &reply, transport, &policy),
        Query::Denied { name, rule, reply } => {
            assert!(name.ends_with(".denied.test") && rule == "deny: *.denied.test");
            return check(query, &reply, transport, &policy);
        }
        Query::Malformed => return,
        Query::Forward { message, question } => (message, question),
    };
    check(query, &Names::servfail(&question), transport, &policy);
    // As it is, and as an answer to what was asked.
    names.response(now, &question, response, &policy);
    let end = message[12..].iter().position(|byte| *byte == 0).expect("a name") + 12 + 5;
    let [first, second, counts @ ..] = response else { return };
    let Some((counts, records)) = counts.split_at_checked(6) else { return };
    let answer =
        [&message[..2], &[*first | 0x80, *second, 0, 1], counts, &message[12..end], records].concat();
    if let Some(reply) = names.response(now, &question, &answer, &policy) {
        check(query, &reply, transport, &policy);
    }
    if let Query::Reply(reply) = names.query(now + Duration::from_secs(1), query, transport, &policy) {
        check(query, &reply, transport, &policy);
    }
});

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::message::{A, AAAA, HTTPS, NOERROR, NXDOMAIN, OPT, PTR, SOA};
use super::*;
use crate::policy::{Mode, Parts};

const CNAME: u16 = 5;
const TXT: u16 = 16;
const ANY: u16 = 255;

/// A name on the wire.
fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> =
        labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    [wire(name), u16s(&[kind, 1])].concat()
}

fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    [u16s(&[id, 0x100, 1, 0, 0, 0]), question(name, kind)].concat()
}

fn query_edns(id: u16, name: &str, kind: u16, size: u16) -> Vec<u8> {
    // With a flag that nobody has given a meaning yet.
    let opt = [vec![0], u16s(&[OPT, size, 0, 0x8001, 0])].concat();
    [u16s(&[id, 0x100, 1, 0, 0, 1]), question(name, kind), opt].concat()
}

/// A record of the name in the question, unless `owner` says otherwise.
fn record(owner: Option<&str>, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let owner = owner.map_or(vec![0xc0, 12], wire);
    [&owner[..], &u16s(&[kind, 1]), &ttl.to_be_bytes(), &u16s(&[data.len() as u16]), data].concat()
}

fn address(text: &str, ttl: u32) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(address) => record(None, A, ttl, &address.octets()),
        IpAddr::V6(address) => record(None, AAAA, ttl, &address.octets()),
    }
}

/// A response to `forwarded` with records in the three sections.
fn respond(forwarded: &[u8], code: u16, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let counts: Vec<u16> = sections.iter().map(|records| records.len() as u16).collect();
    let end = forwarded[12..].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
    let mut message =
        [&forwarded[..2], &u16s(&[0x8180 | code, 1]), &u16s(&counts), &forwarded[12..end]].concat();
    message.extend(sections.iter().flat_map(|records| records.concat()));
    message
}

fn code(reply: &[u8]) -> u16 {
    u16::from(reply[3] & 0xf)
}

fn truncated(reply: &[u8]) -> bool {
    reply[2] & 2 != 0
}

fn count(reply: &[u8]) -> [u8; 4] {
    [reply[5], reply[7], reply[9], reply[11]]
}

/// The addresses and times-to-live of a reply that is nothing but them.
fn addresses(reply: &[u8], name: &str) -> Vec<(IpAddr, u32)> {
    let asked = message::Question {
        id: 0,
        flags: 0,
        bytes: question(name, A),
        name: name.to_owned(),
        kind: A,
        edns: None,
        transport: Transport::Tcp,
    };
    let answer = message::answer(reply, &asked).unwrap();
    assert_eq!(answer.end, reply.len());
    answer.records.iter().filter_map(|record| Some((record.address?, record.ttl))).collect()
}

struct Server {
    names: Names,
    policy: Policy,
    now: Instant,
}

impl Server {
    fn new(mode: Mode, allow: &[&str], deny: &[&str]) -> Self {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let parts = Parts { mode, allow: rules(allow), deny: rules(deny), host_ports: vec![] };
        let hosts =
            [("DB.".to_owned(), "10.0.0.5".parse().unwrap()), ("v6".to_owned(), "fd00::5".parse().unwrap())];
        let names = Names::new(&hosts.into());
        Self { names, policy: parts.try_into().unwrap(), now: Instant::now() }
    }

    fn public() -> Self {
        Self::new(Mode::Public, &[], &[])
    }

    fn ask(&mut self, message: &[u8], transport: Transport) -> Query {
        self.names.query(self.now, message, transport, &self.policy)
    }

    fn forwarded(&mut self, message: &[u8]) -> (Vec<u8>, Question) {
        match self.ask(message, Transport::Udp) {
            Query::Forward { message, question } => (message, question),
            other => panic!("{other:?}"),
        }
    }

    fn replied(&mut self, message: &[u8]) -> Vec<u8> {
        match self.ask(message, Transport::Udp) {
            Query::Reply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn hear(&mut self, question: &Question, message: &[u8]) -> Option<Vec<u8>> {
        self.names.response(self.now, question, message, &self.policy)
    }

    /// What the guest gets that asks for `name`, which the name server answers with `answers`.
    fn answered(&mut self, name: &str, kind: u16, answers: &[Vec<u8>]) -> Vec<u8> {
        let (message, question) = self.forwarded(&query(7, name, kind));
        self.hear(&question, &respond(&message, NOERROR, [answers, &[], &[]])).unwrap()
    }

    fn names_of(&self, address: &str) -> Vec<String> {
        self.names.names_of(self.now, address.parse().unwrap())
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn an_answer_is_passed_on_and_remembered() {
    let mut server = Server::public();
    let asked = query(0x1234, "ExAmple.org", A);
    let (message, question) = server.forwarded(&asked);
    assert_eq!(message[..2], question.id().to_be_bytes());
    assert_eq!(message[2..], asked[2..]);
    assert_eq!((question.name(), question.transport()), ("example.org", Transport::Udp));
    let response = respond(&message, NOERROR, [&[address("1.1.1.1", 90)], &[], &[]]);
    let reply = server.hear(&question, &response).unwrap();
    assert_eq!(reply[..2], [0x12, 0x34]);
    assert_eq!(reply[2..], response[2..]);
    assert_eq!(server.names_of("1.1.1.1"), ["example.org"]);
    assert!(server.names_of("1.1.1.2").is_empty());

    // From the cache, with the other letters and the time that is left.
    server.pass(60);
    let reply = server.replied(&query(9, "EXAMPLE.ORG", A));
    assert_eq!(reply[..2], [0, 9]);
    assert_eq!(reply[12..25], wire("EXAMPLE.ORG"));
    assert_eq!(addresses(&reply, "example.org"), [("1.1.1.1".parse().unwrap(), 30)]);
    server.forwarded(&query(9, "example.org", AAAA));
    server.pass(30);
    server.forwarded(&query(9, "example.org", A));
    // A pin lives longer than an answer, but not for ever.
    assert_eq!(server.names_of("1.1.1.1"), ["example.org"]);
    server.pass(300);
    assert!(server.names_of("1.1.1.1").is_empty());

    server.answered("a.org", A, &[address("1.1.1.1", 90)]);
    server.replied(&query(9, "a.org", A));
    server.names.forget_answers();
    server.forwarded(&query(9, "a.org", A));
    assert_eq!(server.names_of("1.1.1.1"), ["a.org"]);
}

#[test]
fn only_what_was_asked_is_answered() {
    let mut server = Server::public();
    let (message, question) = server.forwarded(&query(1, "example.org", A));
    let good = respond(&message, NOERROR, [&[address("1.1.1.1", 90)], &[], &[]]);
    let mut wrong = vec![vec![], good[..11].to_vec(), good[..20].to_vec(), message.clone()];
    let mut changed = |at: usize, byte: u8| {
        let mut other = good.clone();
        other[at] ^= byte;
        wrong.push(other);
    };
    changed(0, 1); // id
    changed(2, 0x80); // a query
    changed(2, 0x08); // opcode
    changed(5, 3); // two questions
    changed(13, 1); // name
    changed(26, 1); // type
    changed(28, 1); // class
    wrong.push([&good[..], &vec![0; MAX_UDP]].concat());
    for wrong in &wrong {
        assert!(server.hear(&question, wrong).is_none(), "{wrong:?}");
    }
    // An answer, but one that cannot be understood: nobody needs to wait for another.
    assert_eq!(code(&server.hear(&question, &good[..good.len() - 1]).unwrap()), message::SERVFAIL);
    let mut short = good.clone();
    let length = short.len() - 5;
    short[length] = 3;
    assert_eq!(code(&server.hear(&question, &short).unwrap()), message::SERVFAIL);
    assert!(server.names_of("1.1.1.1").is_empty());
    assert_eq!(server.hear(&question, &[&good[..], b"more"].concat()).unwrap().len(), good.len());
}

#[test]
fn a_private_address_is_no_answer() {
    let mut server = Server::public();
    for (kind, private) in [
        (A, "10.0.0.1"),
        (A, "127.0.0.1"),
        (AAAA, "::1"),
        (AAAA, "::ffff:10.0.0.1"),
        (AAAA, "64:ff9b::a9fe:a9fe"),
    ] {
        let reply = server.answered("rebind.test", kind, &[address(private, 90)]);
        assert_eq!((code(&reply), count(&reply)), (NOERROR, [1, 0, 0, 0]), "{private}");
        assert!(server.names_of(private).is_empty());
        // Nor from the cache.
        assert_eq!(server.replied(&query(3, "rebind.test", kind)).len(), reply.len());
        server.names.forget_answers();
    }
    let mixed = [
        record(None, CNAME, 40, &wire("alias.test")),
        record(Some("alias.test"), A, 50, &[10, 0, 0, 1]),
        record(Some("alias.test"), A, 60, &[1, 1, 1, 1]),
    ];
    let reply = server.answered("mixed.test", A, &mixed);
    assert_eq!(addresses(&reply, "mixed.test"), [("1.1.1.1".parse().unwrap(), 60)]);
    assert_eq!(server.names_of("1.1.1.1"), ["mixed.test"]);
    // In whatever section, and whatever was asked for.
    let (message, question) = server.forwarded(&query(1, "srv.test", TXT));
    let text = record(None, TXT, 60, b"\x01x");
    for sections in
        [[&[text.clone()][..], &[], &[address("10.0.0.1", 60)]], [&[], &[address("10.0.0.1", 60)], &[]]]
    {
        let reply = server.hear(&question, &respond(&message, NOERROR, sections)).unwrap();
        assert_eq!(count(&reply), [1, 0, 0, 0]);
    }
    let reply = server.answered("any.test", ANY, &[text.clone(), record(None, HTTPS, 60, &[0; 9])]);
    assert_eq!(count(&reply), [1, 0, 0, 0]);

    let mut open = Server::new(Mode::Public, &["10.0.0.1:443"], &[]);
    let reply = open.answered("private.test", A, &[address("10.0.0.1", 90), address("10.0.0.2", 90)]);
    assert_eq!(addresses(&reply, "private.test"), [("10.0.0.1".parse().unwrap(), 90)]);
    assert_eq!(open.names_of("10.0.0.1"), ["private.test"]);
}

#[test]
fn an_alias_pins_nothing_to_the_name_it_stands_for() {
    let mut server = Server::new(Mode::Allow, &["*.evil.test", "good.test"], &[]);
    let answers =
        [record(None, CNAME, 60, &wire("good.test")), record(Some("good.test"), A, 60, &[6, 6, 6, 6])];
    server.answered("x.evil.test", A, &answers);
    assert_eq!(server.names_of("6.6.6.6"), ["x.evil.test"]);
}

#[test]
fn a_denied_name_does_not_exist() {
    let mut server = Server::new(Mode::Allow, &["*.example.org"], &["bad.example.org"]);
    for (asked, rule) in
        [("secret.evil.test", "allow: no rule for it"), ("BAD.example.org", "deny: bad.example.org")]
    {
        for kind in [A, AAAA, TXT, HTTPS] {
            let Query::Denied { name, rule: by, reply } = server.ask(&query(5, asked, kind), Transport::Udp)
            else {
                panic!("{asked}");
            };
            assert_eq!((name, by.as_str()), (asked.to_lowercase(), rule));
            assert_eq!((code(&reply), count(&reply), &reply[..2]), (NXDOMAIN, [1, 0, 0, 0], &[0, 5][..]));
            assert_eq!(reply[12..], question(asked, kind));
        }
    }
    server.forwarded(&query(5, "good.example.org", A));
}

#[test]
fn the_users_names_are_answered_without_asking() {
    let mut server = Server::new(Mode::Allow, &["example.org"], &[]);
    let reply = server.replied(&query(5, "Db", A));
    assert_eq!(addresses(&reply, "db"), [("10.0.0.5".parse().unwrap(), HOSTS_TTL)]);
    let reply = server.replied(&query(5, "v6", AAAA));
    assert_eq!(addresses(&reply, "v6"), [("fd00::5".parse().unwrap(), HOSTS_TTL)]);
    for (name, kind) in [("db", AAAA), ("v6", A), ("db", TXT)] {
        let reply = server.replied(&query(5, name, kind));
        assert_eq!((code(&reply), count(&reply)), (NOERROR, [1, 0, 0, 0]));
    }
    assert_eq!(server.names_of("10.0.0.5"), ["db"]);
}

#[test]
fn hints_and_the_names_of_private_addresses_are_not_asked_for() {
    let mut server = Server::public();
    for kind in [message::HTTPS, message::SVCB] {
        let reply = server.replied(&query(5, "example.org", kind));
        assert_eq!((code(&reply), count(&reply)), (NOERROR, [1, 0, 0, 0]));
    }
    let loopback6 = format!("1.{}ip6.arpa", "0.".repeat(31));
    for name in ["1.0.0.10.in-addr.arpa", "254.169.254.169.in-addr.arpa", &loopback6] {
        assert_eq!(code(&server.replied(&query(5, name, PTR))), NXDOMAIN, "{name}");
    }
    server.forwarded(&query(5, "1.1.1.1.in-addr.arpa", PTR));
    server.forwarded(&query(5, "10.in-addr.arpa", PTR));
    server.forwarded(&query(5, "", 2));
}

#[test]
fn a_message_that_is_no_query_for_records_gets_an_error() {
    let mut server = Server::public();
    let good = query(5, "example.org", A);
    for end in 0..12 {
        assert!(matches!(server.ask(&good[..end], Transport::Udp), Query::Malformed), "{end}");
    }
    let changed = |at: usize, byte: u8| {
        let mut other = good.clone();
        other[at] = byte;
        other
    };
    assert!(matches!(server.ask(&changed(2, 0x81), Transport::Udp), Query::Malformed));
    assert!(matches!(server.ask(&[&good[..], &[0; MAX_UDP]].concat(), Transport::Udp), Query::Malformed));
    let long = "a.".repeat(128);
    for (message, expected) in [
        (changed(2, 0x29), message::NOTIMP), // an update
        (changed(28, 3), message::NOTIMP),   // CHAOS
        (query(5, "example.org", 252), message::NOTIMP),
        (changed(5, 0), message::FORMERR),
        (changed(5, 2), message::FORMERR),
        (changed(7, 1), message::FORMERR),
        (changed(11, 1), message::FORMERR),
        (changed(12, 0xc0), message::FORMERR), // a pointer
        (changed(13, b'.'), message::FORMERR), // a dot in a label
        (good[..good.len() - 1].to_vec(), message::FORMERR),
        (query(5, &long, A), message::FORMERR),
    ] {
        let reply = server.replied(&message);
        assert_eq!(
            (code(&reply), &reply[..2], reply[2] & 0x80),
            (expected, &[0, 5][..], 0x80),
            "{message:?}"
        );
    }
}

#[test]
fn a_datagram_is_as_long_as_the_guest_takes() {
    let mut server = Server::public();
    let many: Vec<_> = (1..=100).map(|last| address(&format!("1.1.1.{last}"), 90)).collect();
    let (message, plain) = server.forwarded(&query(5, "many.test", A));
    assert_eq!(message.len(), query(5, "many.test", A).len());
    let reply = server.hear(&plain, &respond(&message, NOERROR, [&many, &[], &[]])).unwrap();
    assert!(truncated(&reply) && count(&reply) == [1, 0, 0, 0]);
    assert_eq!(server.names_of("1.1.1.100"), ["many.test"]);
    assert!(truncated(&server.replied(&query(5, "many.test", A))));

    let Query::Reply(reply) = server.ask(&query(5, "many.test", A), Transport::Tcp) else { panic!() };
    assert_eq!(addresses(&reply, "many.test").len(), 100);

    let asked = query_edns(5, "many.test", A, 60000);
    let (message, question) = server.forwarded(&asked);
    let opt = [vec![0], u16s(&[OPT, 4096, 0, 0x8000, 0])].concat();
    assert!(message.ends_with(&opt), "{message:?}");
    let response = respond(&message, NOERROR, [&many, &[], &[opt]]);
    let reply = server.hear(&question, &response).unwrap();
    assert_eq!(reply[2..], response[2..]);
    server.pass(10);
    let reply = server.replied(&asked);
    // The time-to-live of an OPT record is none.
    assert_eq!(reply[reply.len() - 6..], [0, 0, 0x80, 0, 0, 0]);
}

#[test]
fn what_does_not_exist_is_forgotten_soon() {
    let mut server = Server::public();
    let soa = |ttl: u32, minimum: u32| {
        let data = [&wire("ns.test")[..], &wire("mail.test"), &[0; 16], &minimum.to_be_bytes()].concat();
        record(Some("test"), SOA, ttl, &data)
    };
    for (name, ttl, minimum, kept) in
        [("a.test", 3600, 3600, 60), ("b.test", 3600, 5, 5), ("c.test", 7, 3600, 7)]
    {
        let (message, question) = server.forwarded(&query(5, name, A));
        let response = respond(&message, NXDOMAIN, [&[], &[soa(ttl, minimum)], &[]]);
        assert_eq!(code(&server.hear(&question, &response).unwrap()), NXDOMAIN);
        server.pass(kept - 1);
        assert_eq!(code(&server.replied(&query(5, name, A))), NXDOMAIN);
        server.pass(1);
        server.forwarded(&query(5, name, A));
    }
    for (name, code, sections) in [
        ("d.test", message::SERVFAIL, [&[][..], &[soa(60, 60)][..], &[][..]]),
        ("e.test", NXDOMAIN, [&[], &[], &[]]),
        ("f.test", NOERROR, [&[address("1.1.1.1", 0)], &[], &[]]),
        ("g.test", NOERROR, [&[address("1.1.1.1", 1 << 31)], &[], &[]]),
    ] {
        let (message, question) = server.forwarded(&query(5, name, A));
        server.hear(&question, &respond(&message, code, sections)).unwrap();
        server.forwarded(&query(5, name, A));
    }
    let (_, question) = server.forwarded(&query(0x55, "h.test", A));
    let reply = Names::servfail(&question);
    assert_eq!(
        (code(&reply), reply[1], &reply[12..]),
        (message::SERVFAIL, 0x55, &super::tests::question("h.test", A)[..])
    );
}

#[test]
fn the_cache_is_bounded() {
    // First by the number of answers, then by their bytes.
    for (length, number) in [(1, 1100), (8000, 200)] {
        let mut server = Server::public();
        let text = record(None, TXT, 3600, &vec![0; length]);
        let ask = |server: &mut Server, number: u32| {
            server.ask(&query(5, &format!("n{number}.test"), TXT), Transport::Tcp)
        };
        for number in 0..number {
            let Query::Forward { message, question } = ask(&mut server, number) else { panic!("{number}") };
            let response = respond(&message, NOERROR, [std::slice::from_ref(&text), &[], &[]]);
            server.hear(&question, &response).unwrap();
            // In use, so that others go first.
            assert!(matches!(ask(&mut server, 0), Query::Reply(_)));
        }
        assert!(matches!(ask(&mut server, number - 1), Query::Reply(_)));
        assert!(matches!(ask(&mut server, 1), Query::Forward { .. }));
    }
}

#[test]
fn pins_are_bounded() {
    let mut server = Server::public();
    for number in 0..100 {
        server.answered(&format!("p{number}.test"), A, &[address("1.1.1.1", 3600)]);
        server.pass(1);
    }
    let names = server.names_of("1.1.1.1");
    assert!(names.len() == 32 && names.contains(&"p99.test".to_owned()), "{names:?}");
    let numbered = |number: u32| Ipv4Addr::from_bits(0x0101_0200 + number).to_string();
    for number in 0..10_000 {
        server.answered(&format!("q{number}.test"), A, &[address(&numbered(number), 3600)]);
    }
    let pinned = |number: u32| server.names_of(&numbered(number)).len();
    let all: usize = (0..10_000).map(pinned).sum();
    assert!((3000..=4096).contains(&all) && pinned(9_999) == 1, "{all}");
}

#[test]
fn a_pin_lasts_as_long_as_the_longest_answer() {
    let mut server = Server::public();
    server.answered("x.test", A, &[address("1.1.1.1", 1000)]);
    server.names.forget_answers();
    server.answered("x.test", A, &[address("1.1.1.1", 10)]);
    server.pass(999);
    assert_eq!(server.names_of("1.1.1.1"), ["x.test"]);
    server.answered("x.test", A, &[address("1.1.1.1", 10)]);
    server.pass(299);
    assert_eq!(server.names_of("1.1.1.1"), ["x.test"]);
    server.answered("y.test", A, &[address("1.1.1.1", 1 << 30)]);
    server.pass(24 * 3600);
    assert!(server.names_of("1.1.1.1").is_empty());
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u8>().prop_map(|last| Ipv4Addr::new(10, 0, 0, last).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        any::<u16>().prop_map(|last| Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x7f00, last).into()),
    ]
}

/// Records, where the second and third section begin, and bytes to change.
type Hostile = (Vec<Vec<u8>>, [usize; 2], Vec<(usize, u8)>);

/// A response of a hostile name server, with a few bytes changed.
fn hostile() -> impl Strategy<Value = Hostile> {
    let record = prop_oneof![
        4 => (any_address(), any::<u32>()).prop_map(|(text, ttl)| address(&text.to_string(), ttl)),
        1 => (any::<u16>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, data)| record(None, kind, 1, &data)),
    ];
    let changes = prop::collection::vec((28..200_usize, any::<u8>()), 0..3);
    (prop::collection::vec(record, 0..8), [0..9_usize, 0..9_usize], changes)
}

proptest! {
    #[test]
    fn no_response_lets_a_closed_address_through((records, cuts, changes) in hostile(), quad in any::<bool>()) {
        let mut server = Server::new(Mode::Public, &["10.0.0.0/28"], &[]);
        let (message, question) = server.forwarded(&query(5, "x.test", if quad { AAAA } else { A }));
        let first = cuts[0].min(records.len());
        let second = cuts[1].clamp(first, records.len().max(first));
        let sections = [&records[..first], &records[first..second], &records[second..]];
        let mut response = respond(&message, NOERROR, sections);
        for (at, byte) in changes {
            if let Some(target) = response.get_mut(at) {
                *target = byte;
            }
        }
        if let Some(reply) = server.hear(&question, &response) {
            for (address, _) in addresses(&reply, "x.test") {
                prop_assert!(server.policy.decide_answer(address), "{}", address);
            }
        }
    }

    #[test]
    fn no_bytes_are_a_surprise(bytes in prop::collection::vec(any::<u8>(), 0..100), id in any::<bool>()) {
        let mut server = Server::public();
        server.ask(&bytes, Transport::Udp);
        server.ask(&bytes, Transport::Tcp);
        let (message, question) = server.forwarded(&query(5, "x.test", A));
        let start = if id { 24 } else { 2 };
        server.hear(&question, &[&message[..start], &bytes].concat());
    }

    #[test]
    fn an_address_is_found_behind_its_reverse_name(address in any_address()) {
        let name = match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            IpAddr::V6(v6) => {
                let digits = format!("{:032x}", v6.to_bits());
                digits.chars().rev().flat_map(|digit| [digit, '.']).chain("ip6.arpa".chars()).collect()
            }
        };
        prop_assert_eq!(hosts::reversed(&name), Some(address));
    }
}

//! One rule, as users write it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::block::{Block, BlockError};
use super::decide::{Destination, Protocol};
use crate::name::{self, NameError};

/// The longest rule, in bytes: a protocol, the longest name with `*.` before it, and a range of ports.
const MAX_RULE: usize = 4 + 2 + name::MAX_NAME + 12;

/// A rule: `[tcp:|udp:]PLACE[:PORT[-PORT]]`, where PLACE is `*`, a domain (`example.org`, or `*.example.org` for all that is below it,
/// at any depth, but not itself), an address or a CIDR (IPv6 in brackets where a port follows).
///
/// A rule without a protocol or a port is about all of them, and about ICMP echo; one with either is not about ICMP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    pub(super) protocol: Option<Protocol>,
    pub(super) place: Place,
    pub(super) ports: Option<RangeInclusive<u16>>,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `*`.
    Anywhere,
    /// A name, in lower case, and whether it stands for what is below it (`*.`) rather than for itself.
    Domain { name: String, below: bool },
    /// Addresses.
    Block(Block),
}

/// Why a text is no rule.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{}\": {problem}", text.escape_debug())]
pub struct RuleError {
    text: String,
    problem: Problem,
}

/// What is wrong with it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
enum Problem {
    #[error("no place: expected [tcp:|udp:]PLACE[:PORT[-PORT]]")]
    Empty,
    #[error("longer than {MAX_RULE} bytes")]
    Long,
    #[error("a URL: a rule names a place only, such as example.org:443")]
    Url,
    #[error("a path: a rule names a place only, such as example.org:443")]
    Path,
    #[error("the protocol {0:?}: a rule may begin with tcp: or udp:")]
    Protocol(String),
    #[error("a protocol alone: write {0}:* for any place")]
    ProtocolAlone(String),
    #[error("a port alone: write *:{0} for any place")]
    PortAlone(u16),
    #[error("the port {0:?}: expected a number from 1 to 65535, or two as in 8000-8080")]
    Port(String),
    #[error("the ports {0}-{1}: the first is the larger one")]
    Range(u16, u16),
    #[error("a bracket without its other one: expected [ADDRESS] or [ADDRESS]:PORT")]
    Bracket,
    #[error("brackets are for IPv6 addresses")]
    NotV6,
    #[error("an IPv6 address with a port has brackets: [ADDRESS]:PORT")]
    NoBrackets,
    #[error("* stands alone or before the first dot, as in *.example.org")]
    Star,
    #[error("not an address, and no domain ends in a number")]
    Number,
    #[error("an IPv4 address inside an IPv6 address: write {0}")]
    Mapped(Ipv4Addr),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Rule {
    /// Whether it is about the protocol and port of `destination`.
    pub(super) fn covers_port(&self, destination: &Destination) -> bool {
        if destination.protocol == Protocol::Icmp {
            return self.whole();
        }
        self.protocol.is_none_or(|protocol| protocol == destination.protocol)
            && self.ports.as_ref().is_none_or(|ports| ports.contains(&destination.port))
    }

    /// Whether it is about every protocol and port.
    pub(super) fn whole(&self) -> bool {
        self.protocol.is_none() && self.ports.is_none()
    }

    /// Whether it is a domain's, and that domain holds `name`, which is in lower case.
    pub(super) fn covers_name(&self, name: &str) -> bool {
        match &self.place {
            Place::Domain { name: domain, below: false } => domain == name,
            Place::Domain { name: domain, below: true } => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            Place::Anywhere | Place::Block(_) => false,
        }
    }

    /// Whether it is about addresses, and `address` is one of them.
    pub(super) fn covers_address(&self, address: IpAddr) -> bool {
        matches!(&self.place, Place::Block(block) if block.contains(address))
    }

    /// Whether it names `address`, and no other.
    pub(super) fn is_address(&self, address: IpAddr) -> bool {
        matches!(&self.place, Place::Block(block) if block.is(address))
    }

    /// Whether it names a domain.
    pub(super) fn is_domain(&self) -> bool {
        matches!(self.place, Place::Domain { .. })
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse(text).map_err(|problem| {
            let end = text.floor_char_boundary(MAX_RULE);
            RuleError { text: text[..end].to_owned(), problem }
        })
    }
}

fn parse(text: &str) -> Result<Rule, Problem> {
    if text.len() > MAX_RULE {
        return Err(Problem::Long);
    }
    if text.contains("://") {
        return Err(Problem::Url);
    }
    // An IPv6 address has colons of its own, and one that is bare has no port.
    if let Some(place) = bare_v6(text)? {
        return Ok(Rule { protocol: None, place, ports: None });
    }
    let (protocol, rest) = match text.split_once(':') {
        Some((word, rest)) if word.eq_ignore_ascii_case("tcp") => (Some(Protocol::Tcp), rest),
        Some((word, rest)) if word.eq_ignore_ascii_case("udp") => (Some(Protocol::Udp), rest),
        _ => (None, text),
    };
    if protocol.is_some()
        && let Some(place) = bare_v6(rest)?
    {
        return Ok(Rule { protocol, place, ports: None });
    }
    if let Some(bracketed) = rest.strip_prefix('[') {
        let (inside, behind) = bracketed.split_once(']').ok_or(Problem::Bracket)?;
        let place = bare_v6(inside)?.ok_or(Problem::NotV6)?;
        let ports = match behind.strip_prefix(':') {
            Some(ports) => Some(parse_ports(ports)?),
            None if behind.is_empty() => None,
            None => return Err(Problem::Bracket),
        };
        return Ok(Rule { protocol, place, ports });
    }
    let (place, ports) = match rest.split_once(':') {
        Some((place, ports)) => (place, Some(ports)),
        None => (rest, None),
    };
    if rest.rsplit_once(':').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok()) {
        return Err(Problem::NoBrackets);
    }
    let word = place.bytes().all(|byte| byte.is_ascii_alphabetic());
    if protocol.is_none() && word && ports.is_some_and(|ports| ports.contains(['.', ':', '*'])) {
        return Err(Problem::Protocol(place.to_owned()));
    }
    let place = parse_place(place)?;
    Ok(Rule { protocol, place, ports: ports.map(parse_ports).transpose()? })
}

/// The place that `text` is if it is an IPv6 address or block.
fn bare_v6(text: &str) -> Result<Option<Place>, Problem> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    let Ok(address) = address.parse::<Ipv6Addr>() else { return Ok(None) };
    if let Some(v4) = address.to_ipv4_mapped() {
        return Err(Problem::Mapped(v4));
    }
    Ok(Some(Place::Block(text.parse()?)))
}

fn parse_place(text: &str) -> Result<Place, Problem> {
    if text == "*" {
        return Ok(Place::Anywhere);
    }
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if let Ok(port) = text.parse() {
        return Err(Problem::PortAlone(port));
    }
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'/');
    match text.parse::<Block>() {
        Ok(block) => return Ok(Place::Block(block)),
        Err(BlockError::Address) if numeric => return Err(Problem::Number),
        Err(BlockError::Address) => {}
        Err(problem) => return Err(problem.into()),
    }
    if text.contains('/') {
        return Err(Problem::Path);
    }
    let (domain, below) = match text.strip_prefix("*.") {
        Some(domain) => (domain, true),
        None => (text, false),
    };
    if domain.contains('*') {
        return Err(Problem::Star);
    }
    let name = name::parse(domain)?;
    // As a domain it would be written as a protocol.
    if !below && matches!(name.as_str(), "tcp" | "udp") {
        return Err(Problem::ProtocolAlone(name));
    }
    // Resolvers read 10.1, 0x7f.1 and 127.0.0.1. as addresses.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal =
        last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::Number);
    }
    Ok(Place::Domain { name, below })
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, Problem> {
    let port = |digits: &str| {
        let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let port = digits.and_then(|digits| digits.parse().ok()).filter(|port| *port != 0);
        port.ok_or_else(|| Problem::Port(text.to_owned()))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(Problem::Range(first, last));
    }
    Ok(first..=last)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(Protocol::Tcp) => f.write_str("tcp:")?,
            Some(Protocol::Udp) => f.write_str("udp:")?,
            Some(Protocol::Icmp) | None => {}
        }
        match &self.place {
            Place::Anywhere => f.write_str("*")?,
            Place::Domain { name, below } => write!(f, "{}{name}", if *below { "*." } else { "" })?,
            Place::Block(block) if block.is_v6() && self.ports.is_some() => write!(f, "[{block}]")?,
            Place::Block(block) => write!(f, "{block}")?,
        }
        match &self.ports {
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

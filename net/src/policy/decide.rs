//! Decisions. Deny rules come first, then what is closed to everybody, then allow rules, then the mode.
//!
//! # This machine
//! An address that is this machine's own is closed, be it public or private: what listens there would be reached past the machine's
//! firewall, as from the machine itself. It is a class with one address: a rule opens it that names this very address, and no wider one
//! by accident. That an address is an own one never allows anything: nobody has to find it out of what is denied anyhow.
//!
//! # Names
//! A domain rule is about an address if one of the names by which the guest knows it matches. That says who may be meant, not who
//! answers: thousands of sites share an address. So TCP that only a domain rule allows has to name its server as well, in its TLS
//! handshake or its first HTTP request ([`Verdict::AllowNamed`]), and what would hide that name is denied where domain rules exist: QUIC, and
//! name servers other than the gateway's. The exception is a port that the rule itself names, other than [`WEB_PORTS`]: there the
//! address is enough, since SSH, databases and mail never name their server.
//!
//! Later requests of a connection are not looked at, which would take an HTTP proxy: what they reach by another `Host` are other sites
//! of a server that an allowed name leads to. Nor is what TLS hides, by which the same is done.

use std::net::IpAddr;

use super::class::{self, Class};
use super::rule::{Place, Rule};
use super::{Mode, Policy};

/// TCP ports where clients speak first, and name their server.
const WEB_PORTS: [u16; 2] = [80, 443];

/// How something is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo.
    Icmp,
}

/// What a guest wants to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// How.
    pub protocol: Protocol,
    /// Where; never one of the gateway's addresses, which are the engine's business.
    pub address: IpAddr,
    /// 0 for ICMP.
    pub port: u16,
    /// Whether the address is this machine's own.
    pub own: bool,
}

/// Whether it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may if the server's name, as the first bytes show it ([`crate::peek::server_name`]), passes [`Policy::decide_server_name`];
    /// until then no byte may pass, in either direction. Only of TCP. A client that waits for the server to speak first shows no name:
    /// whoever waits for its bytes does so for a bounded time.
    AllowNamed,
    /// It may not.
    Deny {
        /// By this rule.
        rule: String,
    },
}

impl Policy {
    /// Whether `destination` may be reached, whose address the guest knows by `names` ([`crate::dns::Names::names_of`]).
    pub fn decide(&self, destination: &Destination, names: &[String]) -> Verdict {
        self.verdict(destination, names).unwrap_or_else(|rule| Verdict::Deny { rule })
    }

    fn verdict(&self, destination: &Destination, names: &[String]) -> Result<Verdict, String> {
        if self.mode == Mode::None {
            return Err(NO_NETWORK.to_owned());
        }
        if let Some(rule) = self.deny.iter().find(|rule| denies(rule, destination, names)) {
            return Err(format!("deny: {rule}"));
        }
        let allow = if self.name_may_deny(destination) { Verdict::AllowNamed } else { Verdict::Allow };
        let rules = self.allow.iter().filter(|rule| rule.covers_port(destination));

        if let Some(class) = class::of(destination.address)
            && !rules.clone().any(|rule| opens(rule, class, destination.address))
        {
            return Err(format!("{}: {class}", self.mode));
        }
        if destination.own && !rules.clone().any(|rule| rule.is_address(destination.address)) {
            return Err(format!("{}: address of this machine", self.mode));
        }
        // Or has opened, as one of a class.
        if rules.clone().any(|rule| rule.covers_address(destination.address)) {
            return Ok(allow);
        }
        if self.allow.iter().chain(&self.deny).any(Rule::is_domain)
            && let Some(rule) = hides_names(destination)
        {
            return Err(rule.to_owned());
        }
        if self.mode == Mode::Public || rules.clone().any(|rule| rule.place == Place::Anywhere) {
            return Ok(allow);
        }
        let mut matching = rules.filter(|rule| names.iter().any(|name| rule.covers_name(name))).peekable();
        if matching.peek().is_none() {
            return Err(NO_RULE.to_owned());
        }
        let web = WEB_PORTS.contains(&destination.port);
        if destination.protocol == Protocol::Tcp && (web || !matching.any(|rule| rule.ports.is_some())) {
            return Ok(Verdict::AllowNamed);
        }
        Ok(allow)
    }

    /// After [`Verdict::AllowNamed`]: whether a connection whose first bytes show `name` (`None`: they show none) may go on.
    ///
    /// # Errors
    /// The rule that is against it.
    pub fn decide_server_name(&self, name: Option<&str>, destination: &Destination) -> Result<(), String> {
        if self.mode == Mode::None {
            return Err(NO_NETWORK.to_owned());
        }
        let name = name.map(normal);
        let covers = |rule: &&Rule| {
            rule.covers_port(destination) && name.as_ref().is_some_and(|name| rule.covers_name(name))
        };
        if let Some(rule) = self.deny.iter().find(covers) {
            return Err(format!("deny: {rule}"));
        }
        let unnamed = |rule: &Rule| rule.place == Place::Anywhere || rule.covers_address(destination.address);
        if self.mode == Mode::Public
            || self.allow.iter().any(|rule| rule.covers_port(destination) && unnamed(rule))
            || self.allow.iter().any(|rule| covers(&rule))
        {
            return Ok(());
        }
        Err(match name {
            Some(name) => format!("allow: no rule for the server name {name}"),
            None => "allow: the connection shows no server name".to_owned(),
        })
    }

    /// Whether the name server may be asked for `name`. A question carries data out by itself, so that in mode allow no name is asked for
    /// but those that a domain rule or `*` covers, at whatever port: where all rules are addresses, none is. Whoever reaches a private
    /// network by 10.0.0.0/8 and its servers by name adds a rule for their domain, or names them itself (`hosts`), which needs no rule.
    ///
    /// # Errors
    /// The rule that is against it.
    pub fn decide_name(&self, name: &str) -> Result<(), String> {
        let name = normal(name);
        let covers = |rule: &Rule| rule.place == Place::Anywhere || rule.covers_name(&name);
        // A rule about some ports does not say that the name is not to be known.
        if let Some(rule) = self.deny.iter().find(|rule| rule.whole() && covers(rule)) {
            return Err(format!("deny: {rule}"));
        }
        match self.mode {
            Mode::None => Err(NO_NETWORK.to_owned()),
            Mode::Allow if !self.allow.iter().any(covers) => Err(NO_RULE.to_owned()),
            Mode::Public | Mode::Allow => Ok(()),
        }
    }

    /// Whether a name server's answer may tell the guest of `address`: one that is closed, and that no rule opens at any port, would
    /// let a public name stand for something private.
    pub fn decide_answer(&self, address: IpAddr) -> bool {
        class::of(address).is_none_or(|class| self.allow.iter().any(|rule| opens(rule, class, address)))
    }

    /// Whether a server's name may be what a deny rule is about. On other ports than [`WEB_PORTS`] only where a rule asks for it:
    /// protocols where the server speaks first would wait for ever.
    fn name_may_deny(&self, destination: &Destination) -> bool {
        let web = WEB_PORTS.contains(&destination.port);
        let asks = |rule: &Rule| rule.is_domain() && (web || rule.ports.is_some());
        destination.protocol == Protocol::Tcp
            && self.deny.iter().any(|rule| asks(rule) && rule.covers_port(destination))
    }
}

const NO_NETWORK: &str = "none: no network";
const NO_RULE: &str = "allow: no rule for it";

/// Whether the deny rule `rule` is about `destination`, in whatever form its address is written.
fn denies(rule: &Rule, destination: &Destination, names: &[String]) -> bool {
    let embedded = class::embedded(destination.address);
    rule.covers_port(destination)
        && (rule.place == Place::Anywhere
            || rule.covers_address(destination.address)
            || embedded.is_some_and(|inner| rule.covers_address(inner.into()))
            || names.iter().any(|name| rule.covers_name(name)))
}

/// Whether the allow rule `rule` opens `address`, which `class` closes.
fn opens(rule: &Rule, class: &Class, address: IpAddr) -> bool {
    match &rule.place {
        Place::Block(block) => block.contains(address) && class.opened_by(block),
        Place::Anywhere | Place::Domain { .. } => false,
    }
}

/// What speaks against `destination` where names decide.
fn hides_names(destination: &Destination) -> Option<&'static str> {
    match (destination.protocol, destination.port) {
        (Protocol::Udp, 443) => Some("QUIC: names cannot be checked"),
        (Protocol::Tcp | Protocol::Udp, 53) => Some("DNS: names are asked of the gateway"),
        (Protocol::Tcp | Protocol::Udp, 853) => Some("DNS over TLS: names cannot be checked"),
        _ => None,
    }
}

/// `name` in lower case and without a dot at its end.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

//! What a guest may reach.

mod block;
mod class;
mod decide;
mod rule;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use class::embedded;
pub use decide::{Destination, Protocol, Verdict};
pub use rule::{Rule, RuleError};

/// All rules together, in bytes: with what stands around them a policy is a line of a machine's control socket.
const MAX_BYTES: usize = 32 << 10;
/// The most rules of a kind: each packet that opens a flow is held against all of them.
const MAX_RULES: usize = 256;

/// A policy, as it stands in a request, in a sandbox's record and in a machine's specification. There are none but valid ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Policy {
    mode: Mode,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    host_ports: Vec<u16>,
}

/// What a policy is made of. Its form in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Parts {
    /// What is reached where no rule says otherwise.
    pub mode: Mode,
    /// Of [`Mode::Allow`]: what is reached. Of [`Mode::Public`]: addresses that are reached as well. A closed address, such as a private
    /// one, is reached only by a rule for it or for a block inside its class: `10.0.0.0/8` opens 10.1.2.3, `*`, a domain and `0.0.0.0/0`
    /// do not; an address of this machine's own, public or private, only by a rule for that very address. Loopback, multicast, the gateway's network and
    /// addresses with an IPv4 address inside are opened by none.
    pub allow: Vec<Rule>,
    /// What is not, in any mode; looked at before `allow`. One for a domain holds for the addresses that its names have led the guest to,
    /// and for connections that show such a name. It does not hold for who knows an address from elsewhere and hides the name: what is
    /// to be out of reach for certain is not allowed in the first place.
    pub deny: Vec<Rule>,
    /// TCP ports of the host's loopback that are reached at the gateway's address.
    pub host_ports: Vec<u16>,
}

/// What is reached where no rule says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing: there is no network device.
    None,
    /// What everybody on the Internet reaches: nothing private, link-local, loopback, of a provider, reserved, or this machine's own.
    #[default]
    Public,
    /// What a rule allows.
    Allow,
}

/// A policy that is none.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// A list is too long.
    #[error("{list}: {count} entries, of at most {MAX_RULES}")]
    TooMany {
        /// Which one.
        list: &'static str,
        /// How many it has.
        count: usize,
    },
    /// All rules together are too long.
    #[error("the rules: {0} bytes, of at most {MAX_BYTES}")]
    TooLong(usize),
    /// A rule for what is never opened.
    #[error(
        "allow[{index}]: \"{rule}\": {class} is opened by no rule; ports of the host's loopback are opened by hostPorts"
    )]
    NeverOpened {
        /// Where it stands.
        index: usize,
        /// The rule.
        rule: Rule,
        /// What it is for.
        class: String,
    },
    /// A rule that says nothing where everything public is reached anyway.
    #[error(
        "allow[{index}]: \"{rule}\": in mode public only addresses can be allowed as well; for nothing but what rules name, use mode allow"
    )]
    NotAnAddress {
        /// Where it stands.
        index: usize,
        /// The rule.
        rule: Rule,
    },
    /// Port 0.
    #[error("hostPorts[{index}]: there is no port 0")]
    HostPort {
        /// Where it stands.
        index: usize,
    },
}

impl Policy {
    /// What is reached where no rule says otherwise.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the TCP port `port` of the host's loopback is reached at the gateway's address.
    pub fn host_port(&self, port: u16) -> bool {
        self.mode != Mode::None && self.host_ports.contains(&port)
    }
}

impl From<Mode> for Policy {
    /// Without rules.
    fn from(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }
}

impl TryFrom<Parts> for Policy {
    type Error = PolicyError;

    fn try_from(parts: Parts) -> Result<Self, PolicyError> {
        let Parts { mode, allow, deny, host_ports } = parts;
        for (list, count) in [("allow", allow.len()), ("deny", deny.len()), ("hostPorts", host_ports.len())] {
            if count > MAX_RULES {
                return Err(PolicyError::TooMany { list, count });
            }
        }
        let length = allow.iter().chain(&deny).map(|rule| rule.to_string().len()).sum();
        if length > MAX_BYTES {
            return Err(PolicyError::TooLong(length));
        }
        for (index, rule) in allow.iter().enumerate() {
            match &rule.place {
                rule::Place::Block(block) => {
                    if let Some(class) = class::never_opened(block) {
                        return Err(PolicyError::NeverOpened {
                            index,
                            rule: rule.clone(),
                            class: class.to_string(),
                        });
                    }
                }
                rule::Place::Anywhere | rule::Place::Domain { .. } if mode == Mode::Public => {
                    return Err(PolicyError::NotAnAddress { index, rule: rule.clone() });
                }
                rule::Place::Anywhere | rule::Place::Domain { .. } => {}
            }
        }
        if let Some(index) = host_ports.iter().position(|port| *port == 0) {
            return Err(PolicyError::HostPort { index });
        }
        Ok(Self { mode, allow, deny, host_ports })
    }
}

impl From<Policy> for Parts {
    fn from(policy: Policy) -> Self {
        let Policy { mode, allow, deny, host_ports } = policy;
        Self { mode, allow, deny, host_ports }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Public => "public",
            Self::Allow => "allow",
        })
    }
}

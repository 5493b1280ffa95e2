//! `--inherit`: what a sandbox gets of this machine's settings, when it is asked for.

mod indexes;
mod passed;

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;

use self::passed::Passed;
use super::error::CliError;
use super::{Context, tell};
use crate::api::types::{Create, Network, NetworkMode};
use crate::{config, pem};

/// A kind of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Where pip and npm find packages, which the policy then opens
    Indexes,
    /// The proxy of `https_proxy` and its like, which the policy then opens
    Proxy,
    /// Whose certificates this machine trusts
    Ca,
}

/// What of this machine's settings is passed on.
#[derive(Debug, clap::Args)]
pub(super) struct Inherited {
    /// Pass on settings of this machine: indexes, proxy or ca, or several with commas between. User names and passwords of addresses are
    /// left out; a token in a path or behind a `?` is passed on
    #[arg(long, value_enum, value_name = "SETTINGS", value_delimiter = ',')]
    inherit: Vec<Kind>,
}

impl Inherited {
    /// Whether anything is.
    pub(super) fn is_some(&self) -> bool {
        !self.inherit.is_empty()
    }

    /// Whether it can be passed on to a sandbox with such a network.
    pub(super) fn check(&self, network: Option<&Network>, context: &Context) -> Result<(), CliError> {
        let connects = self.has(Kind::Indexes) || self.has(Kind::Proxy);
        if connects && mode(network, context.config.network.value) == NetworkMode::None {
            return Err(CliError::Usage(
                "--inherit indexes and proxy need a network, and with the mode none there is none".into(),
            ));
        }
        Ok(())
    }

    fn has(&self, kind: Kind) -> bool {
        self.inherit.contains(&kind)
    }

    /// `create` with what is passed on. What the user has said by himself, as with `-e`, is left as it is.
    pub(super) fn add_to(&self, create: Create, context: &Context) -> Result<Create, CliError> {
        if self.inherit.is_empty() {
            return Ok(create);
        }
        let mode = mode(create.network.as_ref(), context.config.network.value);
        let mut passed = Passed::new(mode == NetworkMode::Allow, &addresses);
        if self.has(Kind::Indexes) {
            passed.indexes(&indexes::pip()?, &indexes::npm()?);
        }
        if self.has(Kind::Proxy) {
            passed.proxies(|name| std::env::var(name).ok());
        }
        let Passed { env, allow, host_ports, warnings, .. } = passed;
        for warning in warnings {
            tell(&format!("warning: {warning}"));
        }
        let ca_certificates = if self.has(Kind::Ca) { Some(certificates()?) } else { None };
        Ok(Create {
            env_vars: Some(merged(env, create.env_vars)),
            network: opened(create.network, mode, allow, host_ports),
            ca_certificates,
            ..create
        })
    }
}

/// What a sandbox reaches, by what was said of it and by what is meant where nothing was.
fn mode(network: Option<&Network>, default: config::Network) -> NetworkMode {
    let has_rules = |network: &&Network| network.allow.as_ref().is_some_and(|allow| !allow.is_empty());
    match (network.and_then(|network| network.mode), default) {
        (Some(mode), _) => mode,
        (None, _) if network.as_ref().is_some_and(has_rules) => NetworkMode::Allow,
        (None, config::Network::None) => NetworkMode::None,
        (None, config::Network::Public) => NetworkMode::Public,
    }
}

/// The network with these rules and ports besides.
fn opened(
    network: Option<Network>,
    mode: NetworkMode,
    allow: Vec<String>,
    host_ports: Vec<u16>,
) -> Option<Network> {
    if allow.is_empty() && host_ports.is_empty() {
        return network;
    }
    let network = network.unwrap_or_default();
    let rules: Vec<String> = network.allow.into_iter().flatten().chain(allow).collect();
    let mut ports: Vec<u16> = Vec::new();
    for port in network.host_ports.into_iter().flatten().chain(host_ports) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Some(Network {
        mode: Some(mode),
        allow: (!rules.is_empty()).then_some(rules),
        host_ports: (!ports.is_empty()).then_some(ports),
        ..network
    })
}

fn merged(
    passed: BTreeMap<String, String>,
    given: Option<BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    passed.into_iter().chain(given.into_iter().flatten()).collect()
}

/// What a host's name stands for on this machine; nothing where that cannot be said.
fn addresses(host: &str, port: u16) -> Vec<std::net::IpAddr> {
    let found = (host, port).to_socket_addrs();
    found.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

/// The authorities that this machine trusts, in PEM: those of SSL_CERT_FILE and SSL_CERT_DIR, or the system's.
fn certificates() -> Result<String, CliError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(CliError::Usage(format!("--inherit ca: this machine trusts no authority{why}")));
    }
    Ok(pem::certificates(found.certs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_leaves_the_rest_as_it_was() {
        assert_eq!(opened(None, NetworkMode::Public, Vec::new(), Vec::new()), None);
        let given = Network {
            deny: Some(vec!["udp:*".into()]),
            host_ports: Some(vec![8080, 3141]),
            ..Network::default()
        };
        let rules = vec!["tcp:10.0.0.1:443".to_owned()];
        assert_eq!(
            opened(Some(given.clone()), NetworkMode::Public, rules.clone(), vec![3141, 4873]),
            Some(Network {
                mode: Some(NetworkMode::Public),
                allow: Some(rules),
                host_ports: Some(vec![8080, 3141, 4873]),
                ..given
            })
        );
    }

    #[test]
    fn the_mode_is_the_daemons() {
        let network = |mode, allow: &[&str]| Network {
            mode,
            allow: Some(allow.iter().map(|rule| (*rule).to_owned()).collect()),
            ..Network::default()
        };
        for (network, default, expected) in [
            (None, config::Network::Public, NetworkMode::Public),
            (None, config::Network::None, NetworkMode::None),
            (Some(network(None, &[])), config::Network::None, NetworkMode::None),
            (Some(network(None, &["*"])), config::Network::None, NetworkMode::Allow),
            (Some(network(Some(NetworkMode::Public), &["*"])), config::Network::None, NetworkMode::Public),
        ] {
            assert_eq!(mode(network.as_ref(), default), expected);
        }
    }

    #[test]
    fn what_is_trusted_here_is_what_is_written() {
        use rustls_pki_types::CertificateDer;
        use rustls_pki_types::pem::PemObject as _;
        let written: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(certificates().unwrap().as_bytes()).collect();
        assert_eq!(written.unwrap(), rustls_native_certs::load_native_certs().certs);
    }
}

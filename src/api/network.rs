//! `network`: what a sandbox may reach, and what it was denied.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};

use axum::Json;
use net::engine::Limits;
use net::policy::{Mode, Parts, Rule};
use vmm::devices::net::NumberedDenial;

use super::answers::Envelope;
use super::input::{Parameters, Target};
use super::problem::Problem;
use super::success;
use super::types::{Denial, DenialParameters, Network, NetworkLimits, NetworkMode, time};
use crate::daemon::DaemonError;
use crate::sandbox::{Access, AccessChange};

/// Names of `hosts`.
const MAX_HOSTS: usize = 64;

/// What a request asks for.
pub(super) fn change(network: Network) -> Result<AccessChange, Problem> {
    let rules = |field: &str, given: Option<Vec<String>>| -> Result<Option<Vec<Rule>>, Problem> {
        let rule = |(index, text)| {
            Rule::try_from(text).map_err(|error| Problem::field(&format!("network.{field}[{index}]"), error))
        };
        given.map(|given| given.into_iter().enumerate().map(rule).collect()).transpose()
    };
    let NetworkLimits { bytes_per_second, connections_per_second } = network.limits.unwrap_or_default();
    Ok(AccessChange {
        mode: network.mode.map(|mode| match mode {
            NetworkMode::None => Mode::None,
            NetworkMode::Public => Mode::Public,
            NetworkMode::Allow => Mode::Allow,
        }),
        allow: rules("allow", network.allow)?,
        deny: rules("deny", network.deny)?,
        host_ports: network.host_ports,
        bytes_per_second,
        connections_per_second,
    })
}

/// What a new sandbox may reach; what the request does not say is as in `default`.
pub(super) fn access(network: Network, default: Access) -> Result<Access, Problem> {
    Ok(change(network)?.on(default).map_err(DaemonError::Policy)?)
}

/// Names that the sandbox's name server answers by itself.
pub(super) fn hosts(given: BTreeMap<String, String>) -> Result<BTreeMap<String, IpAddr>, Problem> {
    if given.len() > MAX_HOSTS {
        let wrong = format!("{} of them, where {MAX_HOSTS} are allowed", given.len());
        return Err(Problem::field("hosts", wrong));
    }
    let host = |(name, address): (String, String)| {
        let labels = name.split('.').all(|label| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            (1..=63).contains(&label.len()) && label.bytes().all(plain)
        });
        if name.len() > 253 || !labels {
            return Err(Problem::field("hosts", format!("{name:?} is no host's name")));
        }
        match address.parse() {
            Ok(address) => Ok((name.to_ascii_lowercase(), address)),
            Err(_) => Err(Problem::field(&format!("hosts.{name}"), format!("{address:?} is no IP address"))),
        }
    };
    given.into_iter().map(host).collect()
}

/// As it is shown.
pub(super) fn shown(Access { policy, limits }: Access) -> Network {
    let Parts { mode, allow, deny, host_ports } = policy.into();
    let texts = |rules: Vec<Rule>| {
        let texts: Vec<String> = rules.into_iter().map(String::from).collect();
        Some(texts).filter(|texts| !texts.is_empty())
    };
    Network {
        mode: Some(match mode {
            Mode::None => NetworkMode::None,
            Mode::Public => NetworkMode::Public,
            Mode::Allow => NetworkMode::Allow,
        }),
        allow: texts(allow),
        deny: texts(deny),
        host_ports: Some(host_ports).filter(|ports| !ports.is_empty()),
        limits: (limits != Limits::default()).then(|| NetworkLimits {
            bytes_per_second: limits.bytes_per_second.map(NonZeroU64::get),
            connections_per_second: limits.connections_per_second.map(NonZeroU32::get),
        }),
    }
}

/// Tells what a sandbox was denied by its network policy since its machine was started, the last 512.
#[utoipa::path(
    get, path = "/sandboxes/{id}/network/denials", operation_id = "listDenials", tag = "sandboxes",
    params(DenialParameters),
    responses((status = 200, description = "The oldest first", body = Envelope<Vec<Denial>>))
)]
pub(super) async fn denials(
    Target(sandbox): Target,
    Parameters(DenialParameters { after }): Parameters<DenialParameters>,
) -> Result<Json<Envelope<Vec<Denial>>>, Problem> {
    let denials = sandbox.denials(after.unwrap_or_default()).await?;
    let shown = denials.into_iter().map(|NumberedDenial { number, denial }| Denial {
        number,
        time: time(denial.time_ms),
        protocol: denial.protocol,
        destination: denial.destination,
        name: denial.name,
        rule: denial.rule,
    });
    Ok(success("denials", shown.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::policy::Policy;
    use serde_json::json;

    fn wanted(json: serde_json::Value, before: &Policy) -> Result<Policy, Problem> {
        let before = Access { policy: before.clone(), ..Access::default() };
        access(serde_json::from_value(json).unwrap(), before).map(|access| access.policy)
    }

    #[test]
    fn limits_stay_until_they_are_lifted() {
        let mut now = Access::default();
        let mut change = |json| {
            now = access(serde_json::from_value(json).unwrap(), now.clone()).unwrap();
            serde_json::to_value(shown(now.clone()).limits).unwrap()
        };
        let slow = json!({"bytesPerSecond": 1000});
        assert_eq!(change(json!({"limits": slow})), slow);
        let both = json!({"bytesPerSecond": 1000, "connectionsPerSecond": 5});
        assert_eq!(change(json!({"limits": {"connectionsPerSecond": 5}})), both);
        assert_eq!(change(json!({"mode": "none"})), both);
        assert_eq!(
            change(json!({"limits": {"bytesPerSecond": 0, "connectionsPerSecond": null}})),
            json!({"connectionsPerSecond": 5})
        );
        assert_eq!(change(json!({"limits": {"connectionsPerSecond": 0}})), json!(null));
    }

    #[test]
    fn what_is_not_said_stays_and_rules_mean_the_mode_allow() {
        let shape = |policy: &Policy| {
            let parts = Parts::from(policy.clone());
            (parts.mode, parts.allow.len(), parts.deny.len(), parts.host_ports.len())
        };
        let public = Policy::default();
        let new = wanted(json!({"allow": ["*.example.org:443"], "deny": ["10.0.0.0/8"]}), &public).unwrap();
        assert_eq!(shape(&new), (Mode::Allow, 1, 1, 0));
        let new = wanted(json!({"hostPorts": [8080]}), &new).unwrap();
        assert_eq!(shape(&new), (Mode::Allow, 1, 1, 1));
        let new = wanted(json!({"mode": "public", "deny": []}), &new).unwrap();
        assert_eq!(shape(&new), (Mode::Public, 0, 0, 1));
        assert_eq!(
            shown(Access { policy: new.clone(), ..Access::default() }),
            Network { mode: Some(NetworkMode::Public), host_ports: Some(vec![8080]), ..Network::default() }
        );
        assert_eq!(wanted(json!({"mode": "none"}), &new).unwrap().mode(), Mode::None);
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        for (json, field) in [
            (json!({"allow": ["example.org", "exam ple.org"]}), "network.allow[1]: "),
            (json!({"deny": ["10.0.0.0/33"]}), "network.deny[0]: "),
            (json!({"mode": "public", "allow": ["*"]}), "network: allow[0]: "),
            (json!({"hostPorts": [0]}), "network: hostPorts[0]: "),
            (json!({"deny": vec!["*"; 257]}), "network: deny: "),
        ] {
            let problem = wanted(json, &Policy::default()).unwrap_err();
            let detail = problem.document().detail;
            assert!(detail.starts_with(field), "{detail}");
        }
        let host = |name: &str, address: &str| hosts(BTreeMap::from([(name.into(), address.into())]));
        assert_eq!(host("DB", "10.0.0.1").unwrap()["db"], IpAddr::from([10, 0, 0, 1]));
        for (name, address) in [("a b", "10.0.0.1"), ("", "10.0.0.1"), ("a..b", "::1"), ("db", "here")] {
            assert!(host(name, address).is_err(), "{name} {address}");
        }
    }
}

//! Hosts: how a registry is called, where it is, and whether it may be spoken to without TLS.

use std::net::IpAddr;

use reqwest::Url;

use super::RegistryError;

/// A server of the registry protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As users and credential files call it: `docker.io`, `ghcr.io`, `localhost:5000`.
    pub(super) name: String,
    /// `host[:port]` to connect to.
    pub(super) host: String,
}

impl Endpoint {
    /// The server for a name that may be written in any of the ways users write it.
    pub(super) fn new(text: &str) -> Result<Self, RegistryError> {
        let name = registry_name(text);
        // docker.io is a web site; its registry has always been elsewhere.
        let host = if name == "docker.io" { "registry-1.docker.io" } else { &name };
        authority(host)?;
        Ok(Self { host: host.to_owned(), name })
    }
}

/// The name of a registry: without scheme and path, and one name for the many of Docker Hub.
pub(super) fn registry_name(text: &str) -> String {
    let text = text.trim();
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = rest.split('/').next().unwrap_or(rest).to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".into(),
        _ => host,
    }
}

/// Checks that a text is `host[:port]` and nothing else.
pub fn authority(host: &str) -> Result<(), RegistryError> {
    let invalid = || RegistryError::Host { host: host.chars().take(100).collect() };
    if host.is_empty() || host.contains(['/', '@', '?', '#', '\\']) {
        return Err(invalid());
    }
    let url = Url::parse(&format!("https://{host}/")).map_err(|_| invalid())?;
    if url.host_str().is_some_and(|host| !host.is_empty()) { Ok(()) } else { Err(invalid()) }
}

/// The host itself, as in 127.0.0.0/8, ::1 and localhost: what is said to it crosses no network.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// A URL as it may be shown and logged: signed links carry their secret in the query.
pub(super) fn shown_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for URLs that cannot have a user, which then have none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// `host[:port]` of a URL.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_has_one_name() {
        for text in ["docker.io", "index.docker.io", "https://index.docker.io/v1/", "Registry-1.Docker.IO"] {
            let hub = Endpoint::new(text).unwrap();
            assert_eq!(
                (hub.name.as_str(), hub.host.as_str()),
                ("docker.io", "registry-1.docker.io"),
                "{text}"
            );
        }
        assert_eq!(Endpoint::new("https://ghcr.io/").unwrap().name, "ghcr.io");
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        for text in
            ["", "/", "user@host", "host:port", "a b", "host?x", "host#x", "h\\x", "host:99999", "[::1"]
        {
            assert!(Endpoint::new(text).is_err(), "{text}");
        }
        for text in ["localhost", "127.0.0.1:5000", "[::1]:5000", "registry.example.com:443"] {
            assert!(Endpoint::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn loopback_is_decided_by_the_address() {
        let loopback = |host: &str| is_loopback(&Url::parse(&format!("http://{host}/v2/")).unwrap());
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1", "127.8.9.10:1", "[::1]:5000", "2130706433"] {
            assert!(loopback(host), "{host}");
        }
        for host in ["localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]", "128.0.0.1"] {
            assert!(!loopback(host), "{host}");
        }
    }

    #[test]
    fn shown_urls_hold_no_secret() {
        let url =
            Url::parse("https://user:secret@cdn.example.com:8443/blob?signature=secret#secret").unwrap();
        assert_eq!(shown_url(&url), "https://cdn.example.com:8443/blob");
    }
}

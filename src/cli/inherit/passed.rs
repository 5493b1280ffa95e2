//! Addresses of this machine's settings, as a sandbox gets them: without passwords, and with what its policy has to open for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hyper::Uri;
use net::engine::is_own;
use net::policy::{Destination, Mode, Parts, Policy, Protocol, Rule, Verdict};

use super::indexes::{NPM, PYPI, Pip};
use crate::sandbox::HOST;

/// The variables with proxies, as programs read them.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];
/// The one with the names that are reached without.
const NO_PROXY: &str = "no_proxy";
/// Where PyPI's index says that the files are.
const PYPI_FILES: &str = "files.pythonhosted.org";

/// What is passed on.
pub(super) struct Passed<'a> {
    pub(super) env: BTreeMap<String, String>,
    /// Rules of the policy.
    pub(super) allow: Vec<String>,
    pub(super) host_ports: Vec<u16>,
    /// What people have to know, a line each.
    pub(super) warnings: Vec<String>,
    /// Whether nothing is reached but what a rule opens.
    closed: bool,
    addresses: &'a dyn Fn(&str, u16) -> Vec<IpAddr>,
}

/// An address that is no URL of a server.
struct NoServer;

/// A URL of a server.
struct Server {
    scheme: String,
    host: String,
    port: u16,
    /// All behind the authority.
    rest: String,
    /// Whether somebody's name and password were in it.
    secret: bool,
}

impl Server {
    fn parse(text: &str) -> Result<Self, NoServer> {
        let uri: Uri = text.parse().map_err(|_| NoServer)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(NoServer);
        };
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            "socks4" | "socks4a" | "socks5" | "socks5h" => 1080,
            _ => return Err(NoServer),
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(default),
            rest: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            secret: authority.as_str().contains('@'),
        })
    }

    /// The host as a name or an address, without an IPv6 address's brackets.
    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    fn url(&self, host: &str) -> String {
        let Self { scheme, port, rest, .. } = self;
        let port = match (scheme.as_str(), port) {
            ("http", 80) | ("https", 443) => String::new(),
            _ => format!(":{port}"),
        };
        format!("{scheme}://{host}{port}{rest}")
    }
}

impl<'a> Passed<'a> {
    /// `closed`: nothing is reached but what a rule opens. `addresses`: what a host's name stands for here.
    pub(super) fn new(closed: bool, addresses: &'a dyn Fn(&str, u16) -> Vec<IpAddr>) -> Self {
        let (env, allow) = (BTreeMap::new(), Vec::new());
        Self { env, allow, host_ports: Vec::new(), warnings: Vec::new(), closed, addresses }
    }

    /// The indexes of pip and npm.
    pub(super) fn indexes(&mut self, pip: &Pip, npm: &str) {
        let mut trusted: BTreeSet<String> = pip.trusted.iter().cloned().collect();
        let mut index = |passed: &mut Self, what: &str, text: &str| {
            let server = passed.server(what, text)?;
            let host = passed.open(&server, false);
            // pip trusts this machine's loopback without a certificate, which has another name there.
            if host == HOST && server.scheme == "http" {
                trusted.insert(HOST.to_owned());
            }
            if server.bare_host() == "pypi.org" {
                let files = Server { host: PYPI_FILES.to_owned(), ..Server::parse(PYPI).ok()? };
                passed.open(&files, false);
            }
            Some(server.url(&host))
        };
        let first = index(self, "pip's index", pip.index.as_deref().unwrap_or(PYPI));
        let more: Vec<String> =
            pip.more.iter().filter_map(|text| index(self, "an index of pip's", text)).collect();
        let npm = index(self, "npm's registry", npm);

        let unlike = |url: &String, default: &str| url.trim_end_matches('/') != default.trim_end_matches('/');
        if let Some(url) = first.filter(|url| unlike(url, PYPI)) {
            self.env.insert("PIP_INDEX_URL".into(), url);
        }
        if !more.is_empty() {
            self.env.insert("PIP_EXTRA_INDEX_URL".into(), more.join(" "));
        }
        if !trusted.is_empty() {
            let names: Vec<String> = trusted.into_iter().collect();
            self.env.insert("PIP_TRUSTED_HOST".into(), names.join(" "));
        }
        if let Some(url) = npm.filter(|url| unlike(url, NPM)) {
            self.env.insert("NPM_CONFIG_REGISTRY".into(), url);
        }
    }

    /// All proxies, and what is reached without them. `variable`: what is set here.
    pub(super) fn proxies(&mut self, variable: impl Fn(&str) -> Option<String>) {
        let here = |name: &str| {
            // As curl does, which does not read HTTP_PROXY: a CGI script's client can set it.
            let upper = || if name == "http_proxy" { None } else { variable(&name.to_uppercase()) };
            variable(name).or_else(upper).filter(|value| !value.is_empty())
        };
        for name in PROXIES {
            if let Some(proxy) = here(name) {
                self.proxy(name, &proxy);
            }
        }
        let names = here(NO_PROXY);
        // What is on this machine's loopback is reached without a proxy here as well, by another name. `*` is everything by itself alone.
        let names = match names.as_deref().map(str::trim) {
            _ if PROXIES.iter().all(|name| !self.env.contains_key(*name)) => names,
            None => Some(HOST.to_owned()),
            Some("*") => names,
            Some(others) => Some(format!("{},{HOST}", others.trim_end_matches(','))),
        };
        if let Some(names) = names {
            self.set_both_cases(NO_PROXY, &names);
        }
    }

    /// The proxy of the variable `name`.
    fn proxy(&mut self, name: &str, text: &str) {
        // As programs read it: PROXY:3128 is one for HTTP.
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let Some(server) = self.server(name, &url) else { return };
        let host = self.open(&server, true);
        let url = server.url(&host);
        self.set_both_cases(name, url.strip_suffix('/').unwrap_or(&url));
    }

    /// Programs read one or the other.
    fn set_both_cases(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
        self.env.insert(name.to_uppercase(), value.to_owned());
    }

    fn server(&mut self, what: &str, text: &str) -> Option<Server> {
        let Ok(server) = Server::parse(text) else {
            // It may hold a password, or be a path.
            self.warnings.push(format!("{what} is not passed on: it is no http, https or socks URL"));
            return None;
        };
        if server.secret {
            let host = &server.host;
            self.warnings.push(format!("{what} at {host} is passed on without its user name and password"));
        }
        if server.rest.contains('?') {
            let host = &server.host;
            self.warnings.push(format!(
                "{what} at {host} is passed on with what is behind its `?`: a token in it is the sandbox's then"
            ));
        }
        Some(server)
    }

    /// Lets the sandbox reach `server`, and says by which name it does. `by_address`: what is said to it names other servers, so
    /// that its own name could not be seen.
    fn open(&mut self, server: &Server, by_address: bool) -> String {
        let (host, port) = (server.bare_host(), server.port);
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => (self.addresses)(host, port),
        };
        if host == "localhost" || (!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback)) {
            if !self.host_ports.contains(&port) {
                self.host_ports.push(port);
            }
            return HOST.to_owned();
        }
        if self.closed && host.parse::<IpAddr>().is_err() {
            self.allow(host, format!("tcp:{host}:{port}"));
        }
        for address in addresses {
            let own = is_own(address).unwrap_or_default();
            let destination = Destination { protocol: Protocol::Tcp, address, port, own };
            let public = matches!(Policy::default().decide(&destination, &[]), Verdict::Allow);
            if !public || (self.closed && (by_address || host.parse::<IpAddr>().is_ok())) {
                let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
                self.allow(host, format!("tcp:{address}:{port}"));
            }
        }
        server.host.clone()
    }

    /// A rule for `host`. One that no policy may have would have the whole sandbox refused.
    fn allow(&mut self, host: &str, text: String) {
        let mode = if self.closed { Mode::Allow } else { Mode::Public };
        let policy = |rule: Rule| Policy::try_from(Parts { mode, allow: vec![rule], ..Parts::default() });
        let is_rule = text.parse().is_ok_and(|rule| policy(rule).is_ok());
        if !is_rule {
            self.warnings.push(format!("{host} is not reached as {text}, which no rule may open"));
        } else if !self.allow.contains(&text) {
            self.allow.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(host: &str, _port: u16) -> Vec<IpAddr> {
        let text: &[&str] = match host {
            "pypi.org" | "registry.npmjs.org" | "proxy.example" => &["151.101.0.223", "2a04:4e42::223"],
            "files.pythonhosted.org" | "mirror.corp" => &["10.1.2.3", "fd00::3"],
            "half.corp" => &["::1", "192.168.1.5"],
            "devpi" => &["127.0.0.1", "::1"],
            _ => &[],
        };
        text.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn passed(
        closed: bool,
        act: impl FnOnce(&mut Passed<'_>),
    ) -> (Vec<String>, Vec<String>, Vec<u16>, usize) {
        let mut passed = Passed::new(closed, &addresses);
        act(&mut passed);
        let env = passed.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (env, passed.allow, passed.host_ports, passed.warnings.len())
    }

    fn proxies(closed: bool, variables: &[(&str, &str)]) -> (Vec<String>, Vec<String>, Vec<u16>, usize) {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        passed(closed, |passed| passed.proxies(|name| variables.get(name).map(|value| (*value).to_owned())))
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_public_indexes_need_what_is_not_public_for_them_here() {
        let (env, allow, ports, warnings) = passed(false, |passed| passed.indexes(&Pip::default(), NPM));
        assert_eq!((env, ports, warnings), (vec![], vec![], 0));
        assert_eq!(allow, ["tcp:10.1.2.3:443", "tcp:[fd00::3]:443"]);
        let (_, allow, ..) = passed(true, |passed| passed.indexes(&Pip::default(), NPM));
        assert_eq!(
            allow,
            [
                "tcp:pypi.org:443",
                "tcp:files.pythonhosted.org:443",
                "tcp:10.1.2.3:443",
                "tcp:[fd00::3]:443",
                "tcp:registry.npmjs.org:443"
            ]
        );
        // Each is a rule.
        assert!(allow.iter().all(|text| text.parse::<net::policy::Rule>().is_ok()));
    }

    #[test]
    fn mirrors_go_without_their_passwords() {
        let pip = Pip {
            index: Some("https://me:secret@mirror.corp:8443/root/pypi/+simple/?x=1".into()),
            more: words(&["http://devpi:3141/dev", "file:///opt/wheels", "/opt/wheels"]),
            trusted: words(&["mirror.corp"]),
        };
        let (env, allow, ports, warnings) =
            passed(false, |passed| passed.indexes(&pip, "http://token@[::1]:4873/"));
        assert_eq!(
            env,
            [
                "NPM_CONFIG_REGISTRY=http://host.voidrun.internal:4873/",
                "PIP_EXTRA_INDEX_URL=http://host.voidrun.internal:3141/dev",
                "PIP_INDEX_URL=https://mirror.corp:8443/root/pypi/+simple/?x=1",
                "PIP_TRUSTED_HOST=host.voidrun.internal mirror.corp",
            ]
        );
        assert_eq!(allow, ["tcp:10.1.2.3:8443", "tcp:[fd00::3]:8443"]);
        // The secret of two, the query of one, and two that are no servers.
        assert_eq!((ports, warnings), (vec![3141, 4873], 5));
    }

    #[test]
    fn what_no_rule_may_open_is_left_out() {
        for closed in [false, true] {
            let pip = Pip {
                index: Some("http://half.corp:3141/simple".into()),
                more: words(&["http://0.0.0.0:3141/simple", "http://[::ffff:192.168.1.5]/simple"]),
                trusted: Vec::new(),
            };
            let mut passed = Passed::new(closed, &addresses);
            passed.indexes(&pip, "http://under_score.corp/");
            let name = closed.then_some("tcp:half.corp:3141");
            let expected: Vec<&str> = name.into_iter().chain(["tcp:192.168.1.5:3141"]).collect();
            assert!(passed.allow.starts_with(&words(&expected)), "{:?}", passed.allow);
            let told = |words: [&str; 2]| {
                passed.warnings.iter().any(|warning| words.iter().all(|word| warning.contains(word)))
            };
            for words in
                [["half.corp", "[::1]:3141"], ["0.0.0.0", "tcp:0.0.0.0:3141"], ["::ffff:192", "tcp:[::ffff:"]]
            {
                assert!(told(words), "{:?}", passed.warnings);
            }
            // What is passed on is a policy.
            let rules = passed.allow.iter().map(|text| text.parse().unwrap()).collect();
            let mode = if closed { Mode::Allow } else { Mode::Public };
            Policy::try_from(Parts { mode, allow: rules, ..Parts::default() }).unwrap();
        }
    }

    #[test]
    fn proxies_have_both_cases_and_are_reached_by_address() {
        let (env, allow, ports, warnings) = proxies(
            true,
            &[
                ("HTTP_PROXY", "http://of-a-client.test"),
                ("HTTPS_PROXY", "me:secret@proxy.example:3128"),
                ("all_proxy", "socks5h://localhost"),
                ("ALL_PROXY", "http://other.test"),
                ("no_proxy", "localhost,.corp"),
            ],
        );
        assert_eq!(
            env,
            [
                "ALL_PROXY=socks5h://host.voidrun.internal:1080",
                "HTTPS_PROXY=http://proxy.example:3128",
                "NO_PROXY=localhost,.corp,host.voidrun.internal",
                "all_proxy=socks5h://host.voidrun.internal:1080",
                "https_proxy=http://proxy.example:3128",
                "no_proxy=localhost,.corp,host.voidrun.internal",
            ]
        );
        let by_address = ["tcp:proxy.example:3128", "tcp:151.101.0.223:3128", "tcp:[2a04:4e42::223]:3128"];
        assert_eq!((allow, ports, warnings), (words(&by_address), vec![1080], 1));
        let (_, allow, ..) = proxies(false, &[("http_proxy", "http://proxy.example:3128")]);
        assert!(allow.is_empty());
    }

    #[test]
    fn this_machine_is_reached_without_a_proxy() {
        for (given, expected) in [
            (None, "no_proxy=host.voidrun.internal"),
            (Some(""), "no_proxy=host.voidrun.internal"),
            (Some(" * "), "no_proxy= * "),
            (Some("localhost, "), "no_proxy=localhost,host.voidrun.internal"),
        ] {
            let proxy = ("https_proxy", "http://proxy.example:3128");
            let given: Vec<_> = given.map(|names| ("NO_PROXY", names)).into_iter().chain([proxy]).collect();
            let (env, ..) = proxies(false, &given);
            assert!(env.iter().any(|variable| variable == expected), "{env:?}");
        }
        let (env, ..) = proxies(false, &[("no_proxy", "localhost")]);
        assert_eq!(env, ["NO_PROXY=localhost", "no_proxy=localhost"]);
        // One that is not passed on is none.
        let (env, ..) = proxies(false, &[("http_proxy", "ftp://proxy.example")]);
        assert!(env.is_empty(), "{env:?}");
    }
}

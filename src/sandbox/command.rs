//! A command as a client wants it, before it is known where it is to run.

use std::collections::BTreeMap;

use protocol::{CA_CERTIFICATES, Exec, WindowSize};

use super::record::Record;

/// By these programs find the file with authorities: OpenSSL and what is built on it, Go and Ruby; Python's requests; pip; curl;
/// git; and node, for which it is beside its own.
const CA_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
];

/// What is not given is the image's.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) words: protocol::Command,
    pub(crate) cwd: Option<String>,
    /// Over the sandbox's and the image's; one without a value is taken away.
    pub(crate) env: BTreeMap<String, Option<String>>,
    pub(crate) user: Option<String>,
    /// None: never.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) tty: Option<WindowSize>,
    pub(crate) stdin: bool,
}

impl Command {
    /// The request to the agent of a sandbox.
    pub(crate) fn of(self, record: &Record) -> Exec {
        let or_image = |given: Option<String>, image: &str| {
            given.or_else(|| (!image.is_empty()).then(|| image.to_owned()))
        };
        let image = record.config.env.iter().filter_map(|variable| variable.split_once('='));
        let mut env: BTreeMap<String, String> =
            image.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        if record.ca_certificates.is_some() {
            env.extend(CA_VARIABLES.map(|name| (name.to_owned(), CA_CERTIFICATES.to_owned())));
        }
        env.extend(record.env.clone());
        for (name, value) in self.env {
            match value {
                Some(value) => env.insert(name, value),
                None => env.remove(&name),
            };
        }
        Exec {
            cwd: or_image(self.cwd, &record.config.working_dir),
            env,
            user: or_image(self.user, &record.config.user),
            timeout_ms: self.timeout_ms,
            tty: self.tty,
            stdin: self.stdin,
            ..Exec::new(self.words)
        }
    }
}

//! Images from registries (OCI distribution specification): resolved, verified, resumed.
//!
//! ```text
//! resolve, document, blob        what a pull asks for: mirrors first, then the registry    fetch, transfer
//!        │ a failed attempt waits and goes again                                           retry
//!        ▼
//! Auth::get                      answers a 401 with Basic or a token                       auth, challenge, token, credentials
//!        ▼
//! Http::get                      redirects, TLS, proxies, deadlines, names of failures     http, cause, tls, endpoint
//! ```
//!
//! Nothing of a server is believed: every body has a bound, every document and blob is verified by its digest, a secret goes to the
//! host it is for and to the token server that this host names, never in the clear where TLS is spoken.
//!
//! There are no tasks in here: dropping a future ends what it does, and a file is not written to afterwards.

mod auth;
mod cause;
mod challenge;
mod credentials;
mod endpoint;
mod error;
mod fetch;
mod http;
mod login;
mod retry;
mod status;
mod tls;
mod token;
mod transfer;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use credentials::CredentialSources;
pub use endpoint::authority as check_host;
pub use error::RegistryError;
pub use login::{Login, Logout};
/// A reference to an image in a registry, by docker's rules: `python:3.12` is `docker.io/library/python:3.12`.
pub use oci_spec::distribution::Reference;
pub use retry::RetryPolicy;

use crate::progress::{Event, Progress};
use auth::{Auth, Credentials};
use endpoint::{Endpoint, registry_name};
use http::{Http, lock};

/// How long a mirror is left alone that could not be reached.
const MIRROR_REST: Duration = Duration::from_mins(1);

/// A mirror's attempts at one thing. The registry itself is the better second try.
const MIRROR_ATTEMPTS: u32 = 2;

/// Which registries there are, and how they are spoken to.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// For a registry (`docker.io`), the mirrors to try first, in order, each `host[:port]`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries, each `host[:port]`, that may be spoken to without TLS if they speak none. Loopback always may.
    pub insecure: Vec<String>,
    /// How patient to be.
    pub retry: RetryPolicy,
    /// Where credentials are.
    pub credentials: CredentialSources,
}

impl RegistryConfig {
    /// No mirrors, TLS except on loopback, the user's credentials.
    pub fn from_env() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            retry: RetryPolicy::default(),
            credentials: CredentialSources::from_env(),
        }
    }
}

/// A client of registries. Clones share connections and tokens.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    http: Http,
    auth: Auth,
    retry: RetryPolicy,
    credentials: CredentialSources,
    mirrors: BTreeMap<String, Vec<Endpoint>>,
    /// Mirrors that could not be reached, and when.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Registry {
    /// A client. Proxies (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`; never for loopback) and authorities (`SSL_CERT_FILE`,
    /// `SSL_CERT_DIR`) are taken from the environment, once.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        let mut mirrors: BTreeMap<String, Vec<Endpoint>> = BTreeMap::new();
        for (registry, hosts) in &config.mirrors {
            let mirrors = mirrors.entry(registry_name(registry)).or_default();
            for host in hosts {
                // A path or a scheme would be dropped in silence: the user meant something by it.
                endpoint::authority(host)?;
                mirrors.push(Endpoint::new(host)?);
            }
        }
        let inner = Inner {
            http: Http::new(&config.retry, &config.insecure)?,
            auth: Auth::new(Credentials::Sources(config.credentials.clone())),
            retry: config.retry,
            credentials: config.credentials,
            mirrors,
            resting: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whom to ask for an image of `registry`: its mirrors that are up, in order, and itself.
    fn endpoints(&self, registry: &str) -> Result<(Vec<Endpoint>, Endpoint), RegistryError> {
        let origin = Endpoint::new(registry)?;
        let resting = lock(&self.inner.resting);
        let up =
            |mirror: &&Endpoint| resting.get(&mirror.host).is_none_or(|since| since.elapsed() > MIRROR_REST);
        let mirrors =
            self.inner.mirrors.get(&origin.name).into_iter().flatten().filter(up).cloned().collect();
        Ok((mirrors, origin))
    }

    /// A mirror was of no help; says so, and leaves it alone for a while if it is down.
    fn pass_over(&self, mirror: &Endpoint, what: &str, error: &RegistryError, progress: Progress<'_>) {
        if matches!(
            error,
            RegistryError::UnknownHost { .. }
                | RegistryError::Refused { .. }
                | RegistryError::Timeout { .. }
                | RegistryError::Tls { .. }
        ) {
            lock(&self.inner.resting).insert(mirror.host.clone(), Instant::now());
        }
        progress(Event::Retrying {
            what: what.to_owned(),
            reason: format!("mirror {}: {}", mirror.host, error::chain(error)),
            delay_ms: 0,
        });
    }
}

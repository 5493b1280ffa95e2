//! What can go wrong between here and a registry, in words a user can act on.

use std::error::Error;
use std::path::PathBuf;

use crate::image::{Digest, ManifestError};

type Source = Box<dyn Error + Send + Sync>;

/// Why a registry did not give what was asked of it.
///
/// Texts that come from a server are shortened and stripped of control characters before they get here; URLs carry
/// neither user names nor queries, because signed links are secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up")]
    Setup {
        /// Why.
        source: Source,
    },
    /// A text that is not a host.
    #[error("{host:?} is not a registry: expected host[:port], as in registry.example.com:5000")]
    Host {
        /// The text.
        host: String,
    },
    /// A reference by a digest that cannot be verified.
    #[error("{reference}: only sha256 digests can be verified")]
    DigestAlgorithm {
        /// What was asked for.
        reference: String,
    },
    /// The name of the host does not resolve.
    #[error(
        "{registry}: unknown host; check the spelling, the network, and HTTPS_PROXY if a proxy is needed"
    )]
    UnknownHost {
        /// The host.
        registry: String,
        /// What the resolver says.
        source: reqwest::Error,
    },
    /// Nobody listens.
    #[error("{registry}: connection refused; is a registry running there, on that port?")]
    Refused {
        /// The host.
        registry: String,
        /// What the system says.
        source: reqwest::Error,
    },
    /// No TLS connection that can be trusted.
    #[error(
        "{registry}: no trustworthy TLS connection; name a private authority's certificate in SSL_CERT_FILE, \
         a registry without TLS in the configuration's insecure registries{}",
        not_read(unread)
    )]
    Tls {
        /// The host.
        registry: String,
        /// The first authorities that could not be read.
        unread: Vec<String>,
        /// What is wrong with it.
        source: reqwest::Error,
    },
    /// Silence.
    #[error("{url}: no answer for {seconds} s; check the network and try again")]
    Timeout {
        /// What was asked for.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// The connection could not be made, or ended before the answer did.
    #[error("{url}: the connection broke; check the network and try again")]
    Connection {
        /// What was asked for.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// An answer ended before its time, without an error of the connection.
    #[error("{url}: the answer ended after {got} of {expected} bytes")]
    Truncated {
        /// What was asked for.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The server answers with an error of its own.
    #[error("{url}: the server answers {status}{detail}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it says besides.
        detail: String,
    },
    /// The registry knows no such image.
    #[error("{reference}: no such image or tag at {registry}{detail}; check the spelling")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Who was asked.
        registry: String,
        /// What it says besides.
        detail: String,
    },
    /// The registry has the image but not one of its parts.
    #[error("{reference}: {registry} lacks {digest} of this image; it has to be pushed again")]
    BlobNotFound {
        /// The image.
        reference: String,
        /// Who was asked.
        registry: String,
        /// The part.
        digest: Digest,
    },
    /// The registry wants other credentials, or any.
    #[error(
        "{subject}: {registry} denies access{detail}; the image may not exist or need a login: \
         voidrun login {registry} ({})", found(*.presented, .searched)
    )]
    Unauthorized {
        /// The image.
        subject: String,
        /// The registry, as `voidrun login` takes it.
        registry: String,
        /// Credentials were found and presented.
        presented: bool,
        /// Where they were looked for, and what was there.
        searched: Vec<String>,
        /// What the registry says.
        detail: String,
    },
    /// The registry refuses the user and password of a login.
    #[error("{registry} refuses this user and password{detail}; nothing was kept")]
    LoginRefused {
        /// The registry.
        registry: String,
        /// What it says.
        detail: String,
    },
    /// Too many requests.
    #[error("{subject}: {registry} limits the rate of requests{detail}; {}", limited(*.presented, .registry))]
    RateLimited {
        /// The image, or "login".
        subject: String,
        /// The registry, as `voidrun login` takes it.
        registry: String,
        /// Credentials were presented.
        presented: bool,
        /// What the registry says.
        detail: String,
    },
    /// The bytes are not those that were asked for.
    #[error(
        "{url}: the content is {got}, not {expected}: it was damaged on the way or at the source; \
         nothing of it was kept"
    )]
    DigestMismatch {
        /// What was asked for.
        url: String,
        /// What it had to be.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// More bytes than announced, or than is ever read.
    #[error("{url}: the answer is longer than {limit} bytes; the rest was not read")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Another number of bytes than announced.
    #[error("{url}: {got} bytes, where {expected} were announced")]
    Size {
        /// What was asked for.
        url: String,
        /// In the descriptor.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// A redirect that is not followed.
    #[error("{url}: the server redirects to {target}, which is not followed: {why}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it points.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// A challenge or a token that makes no sense, or that would give a secret away.
    #[error("{registry}: its authentication cannot be used: {why}")]
    Authentication {
        /// The registry.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// The document is not an image's.
    #[error("{reference} cannot be used")]
    Manifest {
        /// What was asked for.
        reference: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// Indexes within indexes.
    #[error("{reference}: indexes are nested deeper than {}", crate::image::MAX_INDEX_DEPTH)]
    TooDeep {
        /// What was asked for.
        reference: String,
    },
    /// The local file of a download fails.
    #[error("{digest} cannot be written to the store")]
    Part {
        /// The blob.
        digest: Digest,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of credentials cannot be changed.
    #[error("credentials cannot be kept in {}", path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Source,
    },
    /// There is no place for credentials.
    #[error("no place for credentials: neither DOCKER_CONFIG nor HOME is set")]
    NoCredentialFile,
    /// A credential helper does not do its work.
    #[error("credential helper {helper}: {why}")]
    Helper {
        /// The program.
        helper: String,
        /// What it says.
        why: String,
    },
}

impl RegistryError {
    /// Another server may well do better.
    pub(super) fn is_of_the_server(&self) -> bool {
        !matches!(self, Self::Part { .. } | Self::Setup { .. } | Self::Host { .. } | Self::Manifest { .. })
    }
}

fn found(presented: bool, searched: &[String]) -> String {
    let places = searched.join(", ");
    match (presented, searched.is_empty()) {
        (true, _) => format!("refused are the credentials of {places}"),
        (false, false) => format!("no credentials in {places}"),
        (false, true) => "it did not ask for credentials".into(),
    }
}

fn not_read(unread: &[String]) -> String {
    if unread.is_empty() { String::new() } else { format!(" (not read: {})", unread.join(", ")) }
}

fn limited(presented: bool, registry: &str) -> String {
    if presented {
        "try again later".into()
    } else {
        format!("try again later, or log in for a higher limit: voidrun login {registry}")
    }
}

/// An error and its sources on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Wrappers that repeat what they wrap say nothing new.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// A text of a server, as it may be shown on a terminal: no control characters, at most 200 characters.
pub(super) fn shown(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    clean.trim().to_owned()
}

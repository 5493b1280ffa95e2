//! What is behind a failure of the HTTP client, and whether it may pass.

use std::error::Error;
use std::time::Duration;

use reqwest::Url;

use super::endpoint::{host_of, shown_url};
use super::error::RegistryError;
use super::retry::Failure;

pub(super) fn timed_out(url: &Url, patience: Duration) -> Failure {
    RegistryError::Timeout { url: shown_url(url), seconds: patience.as_secs().max(1) }.later()
}

/// Finds the name of a failure. A host that has `answered` before is there, so that a refusal or a failure of the resolver is a
/// passing one; at the first contact it is a wrong name, and waiting would only keep the user from seeing that.
pub(super) fn classify(error: reqwest::Error, url: &Url, answered: bool, unread: &[String]) -> Failure {
    let source = error.without_url();
    let registry = host_of(url);
    let tls = caused_by::<rustls::Error>(&source);
    let error = if tls.is_some_and(|e| !answered || matches!(e, rustls::Error::InvalidCertificate(_))) {
        let unread = unread.iter().take(3).cloned().collect();
        return RegistryError::Tls { registry, unread, source }.into();
    } else if resolver_failed(&source) {
        RegistryError::UnknownHost { registry, source }
    } else if sources(&source).any(is_refusal) {
        RegistryError::Refused { registry, source }
    } else {
        return RegistryError::Connection { url: shown_url(url), source }.later();
    };
    if answered { error.later() } else { error.into() }
}

/// The resolver's errors have no public type in hyper-util, only this text.
fn resolver_failed(error: &reqwest::Error) -> bool {
    sources(error).any(|e| e.to_string() == "dns error")
}

fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

pub(super) fn is_certificate_error(error: &RegistryError) -> bool {
    let RegistryError::Tls { source, .. } = error else { return false };
    matches!(caused_by::<rustls::Error>(source), Some(rustls::Error::InvalidCertificate(_)))
}

fn caused_by<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    sources(error).find_map(|e| e.downcast_ref())
}

/// What an error is caused by. An `io::Error` does not show what it wraps among its sources, and TLS errors are wrapped in two of them.
fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&e| match e.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().map(|wrapped| wrapped as _),
        None => e.source(),
    })
}

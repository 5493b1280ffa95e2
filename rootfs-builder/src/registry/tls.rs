//! Which authorities are trusted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::RegistryError;

/// Where distributions keep the authorities in one file; the first that exists counts.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where they keep them one a file.
const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// TLS by ring, with the authorities of the system and of the environment as docker and podman see them (Go's crypto/x509):
/// `SSL_CERT_FILE` stands for the bundle, `SSL_CERT_DIR` (colon-separated) for the directories. So one of them alone adds
/// to what the system trusts, both together replace it.
///
/// Without any authority this still succeeds: registries on loopback need none.
///
/// Beside it what could not be read: one bad file among a hundred must not stop a pull, but explains a TLS error.
pub(super) fn config() -> Result<(ClientConfig, Vec<String>), RegistryError> {
    let bundle = match std::env::var_os("SSL_CERT_FILE") {
        Some(file) => Some(PathBuf::from(file)),
        None => BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()),
    };
    let directories: Vec<PathBuf> = match std::env::var_os("SSL_CERT_DIR") {
        Some(list) => std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect(),
        None => DIRECTORIES.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
    };
    let mut roots = RootCertStore::empty();
    let mut unread = load(&mut roots, bundle.as_deref(), None);
    for directory in &directories {
        unread.extend(load(&mut roots, None, Some(directory)));
    }
    // The provider is named here rather than installed: it is the process's only once, and not ours to choose in a library.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| RegistryError::Setup { source: e.into() })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((config, unread))
}

fn load(roots: &mut RootCertStore, file: Option<&Path>, directory: Option<&Path>) -> Vec<String> {
    let found = rustls_native_certs::load_certs_from_paths(file, directory);
    roots.add_parsable_certificates(found.certs);
    found.errors.iter().map(|error| super::error::shown(&error.to_string())).collect()
}

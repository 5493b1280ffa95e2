//! Authorities and proxies, which the environment names. A process has one environment: each case is this program again, as a child.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rootfs_builder::image::Platform;
use rootfs_builder::registry::Registry;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::content::{Content, Image};
use crate::server::{Reply, Request, Server};
use crate::{chain, config, reference, within};

/// Tells a child which reference to pull; it prints `pulled`, or the error.
const CHILD: &str = "REGISTRY_TEST_PULL";

#[tokio::test]
async fn child() {
    let Ok(name) = std::env::var(CHILD) else {
        // Not a child: this only shows that one can be started.
        assert!(pull("127.0.0.1:1/app:1", &[]).await.contains("Refused"));
        return;
    };
    let mut config = config();
    config.insecure = vec!["plain.invalid".into()];
    let client = Registry::new(config).unwrap();
    let outcome = async {
        let name = name.parse().unwrap();
        let (manifest, _) = client.resolve(&name, &Platform::host(), &|_| {}).await?;
        client.blob(&name, &manifest.layers[0], &tempfile::tempfile().unwrap(), &|_| {}).await
    };
    match outcome.await {
        Ok(()) => println!("<pulled>"),
        Err(error) => println!("<{error:?} {}>", chain(&error)),
    }
}

/// Pulls in a child with these variables, and none else that matters.
pub(crate) async fn pull(name: &str, variables: &[(&str, &str)]) -> String {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "environment::child", "--nocapture"]).env(CHILD, name).kill_on_drop(true);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        child.env_remove(variable).env_remove(variable.to_lowercase());
    }
    child.envs(variables.iter().copied());
    let output = child.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text.split_once('<').unwrap().1.rsplit_once('>').unwrap().0.to_owned()
}

/// An authority in `ca.pem`, and a server's certificate by it. The server speaks these protocols, the first one rather.
pub(crate) fn certificates(directory: &Path, protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let output = output.expect("install the Debian package `openssl`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "req -newkey rsa:2048 -nodes -days 2";
    openssl(&format!("{new} -x509 -subj /CN=authority -keyout ca.key -out ca.pem"));
    openssl(&format!("{new} -subj /CN=server -keyout server.key -out server.csr"));
    std::fs::write(directory.join("ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem",
    );
    let certificate = CertificateDer::from_pem_file(directory.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(server).into()
}

#[tokio::test]
async fn authorities() {
    within(async {
        let directory = tempfile::tempdir().unwrap();
        let tls = certificates(directory.path(), &["http/1.1"]);
        let content = Content::of("app", "1", &Image::new(1, 10));
        let server = Server::start_with(Some(tls), move |request| content.reply(request)).await;
        let name = reference(&server.host(), "app:1").to_string();
        let file = directory.path().join("ca.pem").display().to_string();
        // A certificate by nobody we know: plain http is no way out of that, on loopback either.
        let error = pull(&name, &[]).await;
        assert!(error.starts_with("Tls") && error.contains("UnknownIssuer"), "{error}");
        assert_eq!(server.seen().len(), 0);
        assert_eq!(pull(&name, &[("SSL_CERT_FILE", &file)]).await, "pulled");
        let authorities = directory.path().join("authorities");
        std::fs::create_dir(&authorities).unwrap();
        std::fs::copy(&file, authorities.join("our.pem")).unwrap();
        let authorities = format!("/nonexistent:{}", authorities.display());
        assert_eq!(pull(&name, &[("SSL_CERT_DIR", &authorities)]).await, "pulled");
        let error = pull(&name, &[("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "")]).await;
        assert!(error.starts_with("Tls") && error.contains("/nonexistent"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn tls_is_not_given_up() {
    within(async {
        let directory = tempfile::tempdir().unwrap();
        let tls = certificates(directory.path(), &["http/1.1"]);
        let file = directory.path().join("ca.pem").display().to_string();
        let plain = Server::start(|_| Reply::new(200, r#"{"token":"t"}"#)).await;
        let (realm, target) =
            (format!("Bearer realm=\"http://{}/\"", plain.host()), format!("http://{}/", plain.host()));
        let server = Server::start_with(Some(tls), move |request: &Request| match request.path.as_str() {
            "/v2/" => Reply::new(200, "{}"),
            "/v2/redirect/manifests/1" => Reply::new(307, "").header("Location", &target),
            _ => Reply::new(401, "").header("WWW-Authenticate", &realm),
        })
        .await;
        for (repository, kind) in [("redirect", "Redirect"), ("token", "Authentication")] {
            let name = reference(&server.host(), &format!("{repository}:1")).to_string();
            let error = pull(&name, &[("SSL_CERT_FILE", &file)]).await;
            assert!(error.starts_with(kind) && error.contains("TLS"), "{error}");
        }
        assert_eq!(plain.seen().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn proxies() {
    within(async {
        let content = Content::of("app", "1", &Image::new(1, 10));
        let direct = content.clone();
        let proxy = Server::start(move |request| {
            let mut request = request.clone();
            match request.path.strip_prefix("http://plain.invalid") {
                Some(path) => request.path = path.to_owned(),
                None => return Reply::new(403, ""),
            }
            content.reply(&request)
        })
        .await;
        let url = format!("http://user:secret@{}", proxy.host());
        assert_eq!(pull("plain.invalid/app:1", &[("HTTP_PROXY", &url)]).await, "pulled");
        let (request, _) = &proxy.seen()[0];
        assert!(request.header("proxy-authorization").is_some_and(|header| header.starts_with("Basic ")));
        let error = pull("plain.invalid/app:1", &[("http_proxy", &url), ("NO_PROXY", ".invalid")]).await;
        assert!(error.starts_with("UnknownHost"), "{error}");
        // https goes through a tunnel; this proxy grants none.
        let error = pull("secure.invalid/app:1", &[("HTTPS_PROXY", &url)]).await;
        assert!(!error.contains("secret"), "{error}");
        let tunnel = proxy.seen().pop().unwrap().0;
        assert_eq!((tunnel.method.as_str(), tunnel.path.as_str()), ("CONNECT", "secure.invalid:443"));
        // What is on this machine is not reached through another one.
        let server = Server::start(move |request| direct.reply(request)).await;
        let name = reference(&server.host(), "app:1").to_string();
        assert_eq!(pull(&name, &[("HTTP_PROXY", "http://127.0.0.1:1"), ("ALL_PROXY", &url)]).await, "pulled");
    })
    .await;
}

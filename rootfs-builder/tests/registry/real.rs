//! A real registry: Debian's docker-registry on a free port of loopback, in a directory of its own.

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::header::{CONTENT_TYPE, LOCATION};
use rootfs_builder::image::Digest;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::content::{Image, MANIFEST};

/// A running registry; dropping it ends it.
pub(crate) struct RealRegistry {
    child: Child,
    /// `host:port`.
    pub(crate) host: String,
}

impl RealRegistry {
    /// Starts one over `storage`, which several may share one after the other. `auth` is the `auth:` section of its configuration, or empty.
    pub(crate) fn start(storage: &Path, auth: &str) -> Self {
        let root = storage.join("registry");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{auth}",
            root.display()
        );
        let path = storage.join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                panic!("docker-registry is missing; install the Debian package `docker-registry`")
            }
            Err(e) => panic!("docker-registry cannot be started: {e}"),
        };
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        // The kernel chooses the port; the log names it once it listens.
        let address = log.by_ref().map_while(Result::ok).find_map(|line| {
            said += &format!("{line}\n");
            let (_, address) = line.split_once("listening on ")?;
            address.split(['"', ',']).next().map(str::to_owned)
        });
        let Some(host) = address else {
            child.wait().ok();
            panic!("docker-registry ended:\n{said}");
        };
        // A full pipe would stop it.
        std::thread::spawn(move || log.map_while(Result::ok).for_each(drop));
        Self { child, host }
    }

    /// Pushes an image without authorization.
    pub(crate) async fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in [&image.layer, &image.config] {
            self.push_blob(repository, blob).await;
        }
        self.push_manifest(repository, tag, MANIFEST, &image.manifest).await;
    }

    async fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let http = http();
        let start = http.post(self.url(&format!("{repository}/blobs/uploads/"))).send().await.unwrap();
        let location = start.headers()[LOCATION].to_str().unwrap();
        let mut url = reqwest::Url::parse(location).unwrap();
        url.query_pairs_mut().append_pair("digest", &Digest::of(bytes).to_string());
        let done = http.put(url).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
    }

    pub(crate) async fn push_manifest(&self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) {
        let url = self.url(&format!("{repository}/manifests/{name}"));
        let put = http().put(url).header(CONTENT_TYPE, media_type).body(bytes.to_vec());
        let done = put.send().await.unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.host)
    }
}

/// A line to `upstream` that carries at most `limit` bytes of answers a connection, then breaks. Its address, and the bytes so far.
pub(crate) async fn breaking_line(upstream: &str, limit: u64) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (upstream, carried) = (upstream.to_owned(), Arc::new(AtomicU64::new(0)));
    let count = carried.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&upstream).await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                let (from_server, mut to_server) = server.split();
                let (mut from_client, mut to_client) = client.split();
                let mut from_server = from_server.take(limit);
                let answers = tokio::io::copy(&mut from_server, &mut to_client);
                tokio::select! {
                    answered = answers => { count.fetch_add(answered.unwrap_or(0), Ordering::SeqCst); }
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                }
            });
        }
    });
    (host, carried)
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A client that only speaks plain http: the TLS provider it would want is a matter of the library.
fn http() -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

//! A real image from a real registry through the whole program, over a line that does what lines do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::{Voidrun, digest};

/// Debian's docker-registry on a free port; dropping it ends it.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(dir: &Path) -> Self {
        let config = dir.join("registry.yml");
        let root = dir.join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry: install the Debian package of that name");
        // The kernel chooses the port; the log names it once it listens.
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = log.find_map(|line| {
            let (_, address) = line.split_once("listening on ")?;
            address.split(['"', ',']).next().map(str::to_owned)
        });
        // A full pipe would stop it.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, address: address.expect("docker-registry ended before it listened") }
    }

    fn push(&self, layout: &Path, name: &str) {
        let pushed = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .status()
            .expect("skopeo: install the Debian package of that name");
        assert!(pushed.success());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[derive(Clone, Copy)]
enum Fault {
    None,
    ServerError,
    TooManyRequests,
    /// The connection ends in the middle of the body.
    Drop,
    /// The body is half as long, and its length says so.
    Truncate,
    Corrupt,
}

/// Forwards to `upstream`; the n-th answer that carries a layer suffers the n-th fault, those beyond the last one.
/// Gives the proxy's address and the number of such answers.
fn faulty_line(upstream: &str, faults: &'static [Fault]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers = Arc::new(AtomicUsize::new(0));
    let (upstream, count) = (upstream.to_owned(), Arc::clone(&answers));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (upstream, count) = (upstream.clone(), Arc::clone(&count));
            // A client that has gone away ends its own connection only.
            std::thread::spawn(move || forward(client, &upstream, &count, faults));
        }
    });
    (address, answers)
}

/// One request and its answer, then the end of the connection.
fn forward(
    mut client: TcpStream,
    upstream: &str,
    count: &AtomicUsize,
    faults: &[Fault],
) -> std::io::Result<()> {
    let mut request = String::new();
    let mut lines = BufReader::new(client.try_clone()?);
    while !request.ends_with("\r\n\r\n") {
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
    }
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(request.trim_end().as_bytes())?;
    server.write_all(b"\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&answer[..body]).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let mut body = answer.split_off(body);
    // Everything but layers is small.
    let mut fault = Fault::None;
    if body.len() > 100_000 {
        let n = count.fetch_add(1, Ordering::SeqCst);
        fault = faults.get(n).or(faults.last()).copied().unwrap_or(Fault::None);
    }
    let middle = body.len() / 2;
    match fault {
        Fault::None => {}
        Fault::ServerError => {
            return client.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Fault::TooManyRequests => {
            return client.write_all(
                b"HTTP/1.1 429 Slow\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        Fault::Drop => body.truncate(middle),
        Fault::Truncate => {
            let head = head
                .replace(&format!("Content-Length: {}", body.len()), &format!("Content-Length: {middle}"));
            client.write_all(head.as_bytes())?;
            return client.write_all(&body[..middle]);
        }
        Fault::Corrupt => body[middle] ^= 1,
    }
    client.write_all(head.as_bytes())?;
    client.write_all(&body)
}

/// The Debian image of three layers, made by its recipe.
fn debian() -> PathBuf {
    let made = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/images"))
        .args(["debian", "--no-import"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(made.status.success());
    String::from_utf8(made.stdout).unwrap().trim().into()
}

/// Every blob of the store is what its name says.
fn assert_sound(voidrun: &Voidrun) {
    for name in voidrun.files("blobs/sha256") {
        let bytes = std::fs::read(voidrun.store().join("blobs/sha256").join(&name)).unwrap();
        assert_eq!(digest(&bytes)[7..], name);
    }
}

#[test]
fn a_line_that_fails_in_every_way_and_then_works() {
    let voidrun = Voidrun::new();
    let registry = Registry::start(voidrun.dir.path());
    let layout = debian();
    registry.push(&layout, "debian:3");
    let faults = &[
        Fault::ServerError,
        Fault::TooManyRequests,
        Fault::Drop,
        Fault::Truncate,
        Fault::Corrupt,
        Fault::Drop,
        Fault::None,
    ];
    let (line, answers) = faulty_line(&registry.address, faults);
    let reference = format!("{line}/debian:3");
    // Small, so that it is soon compared.
    let size = ["--size", "512MiB"];
    voidrun.run(&[&["images", "pull", &reference], &size[..]].concat()).ok();
    assert!(answers.load(Ordering::SeqCst) >= faults.len(), "every fault was met");
    assert_sound(&voidrun);

    // The same image from its layout, in another store: the same bytes.
    let other = Voidrun::new();
    let source = format!("oci:{}", layout.display());
    other.run(&[&["images", "pull", &source, "--name", "debian"], &size[..]].concat()).ok();
    let rootfs = |image: serde_json::Value| PathBuf::from(image["rootfs"].as_str().unwrap());
    let (pulled, local) = (rootfs(voidrun.inspect(&reference)), rootfs(other.inspect("debian")));
    let same = Command::new("cmp").args([&pulled, &local]).status().unwrap();
    assert!(same.success(), "{} and {} differ", pulled.display(), local.display());
    let checked = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&pulled).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn a_line_that_always_corrupts() {
    let voidrun = Voidrun::new();
    let registry = Registry::start(voidrun.dir.path());
    registry.push(&debian(), "debian:3");
    let (line, _) = faulty_line(&registry.address, &[Fault::Corrupt]);
    let reference = format!("{line}/debian:3");
    voidrun.run(&["images", "pull", &reference]).fails(1, &["cannot pull", &reference, "sha256:"]);
    assert_sound(&voidrun);
    assert_eq!(voidrun.names(), Vec::<String>::new());
    assert_eq!(voidrun.files("images"), Vec::<String>::new());
}

//! Pulls from a registry, which is a thread of this test: what is asked for, and what a killed pull leaves for the next.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::support::{Layout, Voidrun, digest, gzip, layer, noise};

/// Serves the blobs of a layout as the repository `tool`.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: String,
    pub(crate) layout: Arc<Mutex<Layout>>,
    /// `path range` of each request.
    requests: Arc<Mutex<Vec<String>>>,
    /// The blob of which only half is sent, and who is told when that has happened.
    stall: Arc<Mutex<Option<Stall>>>,
}

type Stall = (String, Sender<()>);

impl Registry {
    pub(crate) fn start(layout: Layout) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap().to_string(),
            layout: Arc::new(Mutex::new(layout)),
            requests: Arc::default(),
            stall: Arc::default(),
        };
        let server = registry.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(connection));
            }
        });
        registry
    }

    pub(crate) fn reference(&self) -> String {
        format!("{}/tool:v1", self.address)
    }

    /// Stalls once in the middle of the blob.
    pub(crate) fn stall_at(&self, blob: &str) -> Receiver<()> {
        let (tell, told) = channel();
        *self.stall.lock().unwrap() = Some((blob.to_owned(), tell));
        told
    }

    fn blob_requests(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        requests.into_iter().filter(|request| request.contains("/blobs/")).collect()
    }

    fn serve(&self, mut connection: TcpStream) {
        let mut reader = BufReader::new(connection.try_clone().unwrap());
        loop {
            let (mut path, mut start) = (String::new(), None);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                if path.is_empty() {
                    line.split(' ').nth(1).unwrap().clone_into(&mut path);
                } else if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    start = range.trim().trim_end_matches('-').parse::<usize>().ok();
                } else if line.trim().is_empty() {
                    break;
                }
            }
            let from = start.map(|start| format!(" from {start}")).unwrap_or_default();
            self.requests.lock().unwrap().push(format!("{path}{from}"));
            if self.answer(&mut connection, &path, start).is_err() {
                return;
            }
        }
    }

    fn answer(&self, to: &mut TcpStream, path: &str, start: Option<usize>) -> std::io::Result<()> {
        let (media_type, wanted) = {
            let layout = self.layout.lock().unwrap();
            let manifest = &layout.manifests[0];
            match path {
                "/v2/tool/manifests/v1" => {
                    let text = |key: &str| manifest[key].as_str().unwrap().to_owned();
                    (text("mediaType"), text("digest"))
                }
                _ => ("application/octet-stream".into(), path.rsplit('/').next().unwrap().to_owned()),
            }
        };
        let name = format!("blobs/sha256/{}", wanted.trim_start_matches("sha256:"));
        let found = self.layout.lock().unwrap().files.iter().find(|(file, _)| *file == name).cloned();
        let Some((_, body)) = found else {
            return to.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        };
        let (status, rest) = match start {
            None => ("200 OK".to_owned(), &body[..]),
            Some(start) => (
                format!(
                    "206 Partial Content\r\nContent-Range: bytes {start}-{}/{}",
                    body.len() - 1,
                    body.len()
                ),
                &body[start..],
            ),
        };
        let length = rest.len();
        write!(to, "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n")?;
        let stalled = self.stall.lock().unwrap().take_if(|(blob, _)| *blob == wanted);
        if let Some((_, tell)) = stalled {
            to.write_all(&rest[..length / 2])?;
            tell.send(()).unwrap();
            // Until the client goes away.
            let mut gone = [0];
            return std::io::Read::read(to, &mut gone).map(|_| ());
        }
        to.write_all(rest)
    }
}

#[test]
fn a_name_in_a_registry() {
    let base = layer(&[("base", b"base")]);
    let registry = Registry::start(Layout::of(&[base.clone(), layer(&[("a", b"a")])]));
    let voidrun = Voidrun::new();
    voidrun.run(&["images", "pull", &registry.reference()]).ok();
    // A configuration and two layers.
    assert_eq!(registry.blob_requests().len(), 3);
    let image = voidrun.inspect(&registry.reference());
    assert_eq!(image["kind"], "registry");
    let first = image["digest"].as_str().unwrap().to_owned();

    // The tag is asked for again, the layers are not.
    voidrun.run(&["images", "pull", &registry.reference()]).ok();
    assert_eq!(registry.blob_requests().len(), 1);
    // By its digest: once by asking, then not at all.
    let pinned = format!("{}/tool@{first}", registry.address);
    voidrun.run(&["images", "pull", &pinned]).ok();
    registry.requests.lock().unwrap().clear();
    voidrun.run(&["images", "pull", &pinned]).ok();
    assert_eq!(*registry.requests.lock().unwrap(), Vec::<String>::new());

    // The tag moves on: only the new layer is fetched.
    let new = layer(&[("b", b"b")]);
    *registry.layout.lock().unwrap() = Layout::of(&[base, new.clone()]);
    voidrun.run(&["images", "pull", &registry.reference()]).ok();
    let requests = registry.blob_requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].ends_with(&digest(&gzip(&new))), "{requests:?}");
    assert_ne!(voidrun.inspect(&registry.reference())["digest"], first.as_str());
    assert_eq!(voidrun.inspect(&pinned)["digest"], first.as_str());

    // When gc has taken the layers, another size needs them again.
    voidrun.run(&["images", "gc", "--grace", "0s", "--budget", "0"]).ok();
    voidrun.run(&["images", "pull", &registry.reference(), "--size", "1GiB"]).ok();
    assert_eq!(registry.blob_requests().len(), 3);
    voidrun.run(&["images", "pull", &pinned, "--size", "2GiB"]).fails(1, &["no such image"]);
}

#[test]
fn a_local_name_for_a_registrys_image() {
    let registry = Registry::start(Layout::of(&[layer(&[("a", b"a")])]));
    let voidrun = Voidrun::new();
    voidrun.configure(&format!("[aliases]\nshort = '{}'\n", registry.reference()));
    voidrun.run(&["images", "pull", "short", "--name", "mine"]).ok();
    assert_eq!(voidrun.names(), ["mine"]);
    voidrun.run(&["images", "inspect", "short"]).fails(1, &["no image", &registry.reference()]);
}

#[test]
fn killed_in_the_middle_of_a_layer_the_next_pull_resumes() {
    let big = layer(&[("big", &noise(4 << 20, 3))]);
    let registry = Registry::start(Layout::of(&[layer(&[("small", b"small")]), big.clone()]));
    let blob = digest(&gzip(&big));
    let voidrun = Voidrun::new();
    let stalled = registry.stall_at(&blob);
    let mut child = voidrun.spawn(&["images", "pull", &registry.reference()]);
    stalled.recv().unwrap();
    // A line behind the first quarter: something of the layer has arrived.
    let short = &blob[7..19];
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with(&format!("layer {short}: 1.")) || line.contains("2.0")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(voidrun.names(), Vec::<String>::new());
    registry.blob_requests();

    voidrun.run(&["images", "pull", &registry.reference()]).ok();
    let requests = registry.blob_requests();
    let resumed = requests.iter().find(|request| request.contains(&blob)).unwrap();
    assert!(resumed.contains(" from "), "{requests:?}");
    assert_eq!(voidrun.names(), [registry.reference()]);
    assert_eq!(voidrun.files("ingest"), Vec::<String>::new());
}

#[test]
fn two_pulls_at_once_are_one_download() {
    let big = layer(&[("big", &noise(2 << 20, 4))]);
    let registry = Registry::start(Layout::of(std::slice::from_ref(&big)));
    let blob = digest(&gzip(&big));
    let voidrun = Voidrun::new();
    let stalled = registry.stall_at(&blob);
    let mut first = voidrun.spawn(&["images", "pull", &registry.reference()]);
    stalled.recv().unwrap();
    let mut second = voidrun.spawn(&["images", "pull", &registry.reference()]);
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("waiting for another process")));
    assert_eq!(registry.blob_requests().iter().filter(|request| request.contains(&blob)).count(), 1);
    // The first one dies; the second takes over where it was.
    first.kill().unwrap();
    first.wait().unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(second.wait().unwrap().success(), "{rest:?}");
    assert_eq!(registry.blob_requests().iter().filter(|request| request.contains(&blob)).count(), 1);
    assert_eq!(voidrun.names(), [registry.reference()]);
}

#[test]
fn no_such_tag_and_nobody_there() {
    let registry = Registry::start(Layout::of(&[layer(&[("a", b"a")])]));
    let voidrun = Voidrun::new();
    let reference = format!("{}/tool:v2", registry.address);
    voidrun
        .run(&["images", "pull", &reference])
        .fails(1, &["cannot pull", &reference, "no such image or tag"]);
}

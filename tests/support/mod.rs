//! Small images, made byte by byte, and the real program run on a store of its own.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "tests"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

/// `sha256:...` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    rootfs_builder::image::Digest::of(bytes).to_string()
}

/// A layer, uncompressed: these files and nothing else.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    tar(&files.iter().map(|(name, data)| (*name, data.to_vec())).collect::<Vec<_>>())
}

/// A tar of regular files.
pub fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &data[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that do not compress, the same each time.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The files of an OCI layout.
#[derive(Clone, Default)]
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
    pub manifests: Vec<Value>,
}

impl Layout {
    /// A layout with one image of these layers, gzip.
    pub fn of(layers: &[Vec<u8>]) -> Self {
        let mut layout = Self::default();
        let manifest = layout.image(layers, "amd64");
        layout.manifests.push(manifest);
        layout
    }

    pub fn blob(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        let name = format!("blobs/sha256/{}", &digest[7..]);
        if !self.files.iter().any(|(existing, _)| *existing == name) {
            self.files.push((name, bytes));
        }
        digest
    }

    /// Adds an image; returns the descriptor of its manifest.
    pub fn image(&mut self, layers: &[Vec<u8>], architecture: &str) -> Value {
        let config = config(layers, architecture);
        let mut descriptors = Vec::new();
        for layer in layers {
            let blob = gzip(layer);
            let size = blob.len();
            let digest = self.blob(blob);
            descriptors.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size
            }));
        }
        let size = config.len();
        let config = self.blob(config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size
            },
            "layers": descriptors,
        });
        self.document("application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    /// Adds a JSON document; returns its descriptor.
    pub fn document(&mut self, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let size = bytes.len();
        json!({ "mediaType": media_type, "digest": self.blob(bytes), "size": size })
    }

    /// Adds an index of these descriptors; returns its descriptor.
    pub fn index(&mut self, manifests: &[Value]) -> Value {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        self.document(media_type, &index)
    }

    /// All files, index.json last: a reader that needs it first would fail.
    pub fn all_files(&self) -> Vec<(&str, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests }).to_string();
        let mut files = vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        files.extend(self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())));
        files.push(("index.json", index.into_bytes()));
        files
    }

    pub fn tar(&self) -> Vec<u8> {
        tar(&self.all_files())
    }

    pub fn write(&self, dir: &Path) -> PathBuf {
        for (name, bytes) in self.all_files() {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        dir.to_owned()
    }
}

/// Puts a tag on a descriptor of index.json.
pub fn tagged(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    descriptor
}

/// Puts a platform on a descriptor of an index.
pub fn for_platform(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
    descriptor
}

pub fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/app", "ExposedPorts": { "80/tcp": {} }
        },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| digest(l)).collect::<Vec<_>>() },
    })
    .to_string()
    .into_bytes()
}

/// The program with a store, a configuration and a home of its own.
pub struct Voidrun {
    pub dir: tempfile::TempDir,
}

impl Voidrun {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A path outside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn layout(&self, name: &str, layout: &Layout) -> String {
        format!("oci:{}", layout.write(&self.path(name)).display())
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).display().to_string()
    }

    pub fn configure(&self, toml: &str) {
        let dir = self.path("config/voidrun");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), toml).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_voidrun")), arguments)
    }

    /// Of another program than ours.
    pub fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("VOIDRUN_HOME", self.store())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    pub fn run_with_stdin(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // The program may end before it has read everything.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Ran::from(output)
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub fn inspect(&self, name: &str) -> Value {
        self.run(&["images", "inspect", name, "--json"]).json()
    }

    /// The names that `images ls` shows.
    pub fn names(&self) -> Vec<String> {
        let listing = self.run(&["images", "ls", "--json"]).json();
        assert_eq!(listing["damaged"], json!([]), "{listing}");
        let images = listing["images"].as_array().unwrap();
        images.iter().map(|image| image["reference"].as_str().unwrap().to_owned()).collect()
    }

    /// The files of a directory of the store, sorted.
    pub fn files(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.store().join(dir)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// What a run has left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok().stdout).unwrap()
    }

    /// It failed with this code, and says all of `words`.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {}", self.stderr);
        }
    }
}

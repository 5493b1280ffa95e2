//! Images for tests, made in memory.

use std::collections::HashMap;

use rootfs_builder::image::{Descriptor, Digest};
use serde_json::{Value, json};

use crate::server::{Reply, Request};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Bytes that look random and are the same each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand(seed);
    (0..length).map(|_| random()).collect()
}

/// xorshift64*.
fn fastrand(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor { digest: Digest::of(bytes), size: bytes.len() as u64, media_type: media_type.into() }
}

/// One image of one layer.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) layer: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// An image that differs from those of other seeds, with a layer of so many bytes.
    pub(crate) fn new(seed: u64, length: usize) -> Self {
        let layer = noise(seed, length);
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": [format!("SEED={seed}")]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": entry(CONFIG, &config), "layers": [entry(LAYER, &layer)],
        });
        Self { manifest: manifest.to_string().into_bytes(), layer, config }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub(crate) fn layer(&self) -> Descriptor {
        descriptor(LAYER, &self.layer)
    }
}

fn entry(media_type: &str, bytes: &[u8]) -> Value {
    serde_json::to_value(descriptor(media_type, bytes)).unwrap()
}

/// An index: media type, bytes and `os/architecture[/variant]` or nothing of each entry.
pub(crate) fn index(entries: &[(&str, &[u8], &str)]) -> Vec<u8> {
    let entries = entries.iter().map(|(media_type, bytes, platform)| {
        let mut entry = entry(media_type, bytes);
        let mut parts = platform.split('/');
        if let (Some(os), Some(architecture)) = (parts.next(), parts.next()) {
            entry["platform"] = json!({"os": os, "architecture": architecture});
            if let Some(variant) = parts.next() {
                entry["platform"]["variant"] = json!(variant);
            }
        }
        entry
    });
    let entries: Vec<Value> = entries.collect();
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes()
}

/// What a fake registry serves, by path.
#[derive(Clone, Default)]
pub(crate) struct Content(HashMap<String, (String, Vec<u8>)>);

impl Content {
    /// A repository with one image under a tag.
    pub(crate) fn of(repository: &str, tag: &str, image: &Image) -> Self {
        let mut content = Self::default();
        content.document(repository, &image.digest().to_string(), MANIFEST, &image.manifest);
        content.document(repository, tag, MANIFEST, &image.manifest);
        content.blob(repository, &image.config);
        content.blob(repository, &image.layer);
        content
    }

    pub(crate) fn document(&mut self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) {
        self.put(&format!("/v2/{repository}/manifests/{name}"), media_type, bytes);
    }

    pub(crate) fn blob(&mut self, repository: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/blobs/{}", Digest::of(bytes));
        self.put(&path, "application/octet-stream", bytes);
    }

    pub(crate) fn put(&mut self, path: &str, media_type: &str, bytes: &[u8]) {
        self.0.insert(path.into(), (media_type.into(), bytes.into()));
    }

    /// The answer of a registry that does everything right.
    pub(crate) fn reply(&self, request: &Request) -> Reply {
        if request.path == "/v2/" {
            return Reply::new(200, "{}");
        }
        let Some((media_type, bytes)) = self.0.get(&request.path) else {
            return Reply::new(
                404,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            );
        };
        let reply = match request.range_start() {
            Some(start) if start >= bytes.len() => Reply::new(416, ""),
            Some(start) => Reply::new(206, &bytes[start..])
                .header("Content-Range", &format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
            None => Reply::new(200, bytes),
        };
        reply
            .header("Content-Type", media_type)
            .header("Docker-Content-Digest", &Digest::of(bytes).to_string())
    }
}

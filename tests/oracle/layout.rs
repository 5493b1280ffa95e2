//! OCI layouts made from layers.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

/// How the blobs of a layout are compressed.
#[derive(Clone, Copy, Debug)]
pub enum Compression {
    Gzip,
    Zstd,
    Plain,
}

/// Writes the layout `directory` with one image, tagged `latest`, of the tars `layers`.
pub fn write(directory: &Path, layers: &[PathBuf], compression: Compression) {
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let mut diff_ids = Vec::new();
    let mut descriptors = Vec::new();
    for layer in layers {
        diff_ids.push(digest(File::open(layer).unwrap()).0);
        let (media_type, compressed) = compress(directory, layer, compression);
        descriptors.push(blob(directory, &compressed, media_type));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = document(directory, &config, "application/vnd.oci.image.config.v1+json");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors});
    let mut manifest = document(directory, &manifest, media_type);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn compress(directory: &Path, layer: &Path, compression: Compression) -> (&'static str, PathBuf) {
    let path = directory.join("layer.tmp");
    let mut source = BufReader::new(File::open(layer).unwrap());
    let mut out = BufWriter::new(File::create(&path).unwrap());
    let media_type = match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
            io::copy(&mut source, &mut encoder).unwrap();
            encoder.finish().unwrap();
            "application/vnd.oci.image.layer.v1.tar+gzip"
        }
        Compression::Zstd => {
            zstd::stream::copy_encode(&mut source, &mut out, 1).unwrap();
            "application/vnd.oci.image.layer.v1.tar+zstd"
        }
        Compression::Plain => {
            io::copy(&mut source, &mut out).unwrap();
            "application/vnd.oci.image.layer.v1.tar"
        }
    };
    out.flush().unwrap();
    (media_type, path)
}

fn document(directory: &Path, value: &serde_json::Value, media_type: &str) -> serde_json::Value {
    let path = directory.join("document.tmp");
    fs::write(&path, value.to_string()).unwrap();
    blob(directory, &path, media_type)
}

/// Moves a file among the blobs and returns its descriptor.
fn blob(directory: &Path, file: &Path, media_type: &str) -> serde_json::Value {
    let (digest, size) = digest(File::open(file).unwrap());
    let (algorithm, hex) = digest.split_once(':').unwrap();
    fs::rename(file, directory.join("blobs").join(algorithm).join(hex)).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

fn digest(mut source: impl Read) -> (String, u64) {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = source.read(&mut buffer).unwrap();
        if read == 0 {
            return (format!("sha256:{}", hex(hasher)), size);
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

pub fn hex(hasher: Sha256) -> String {
    use std::fmt::Write;
    hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

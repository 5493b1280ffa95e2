//! Compression of a layer or archive, told by its first bytes.

use std::io::{self, BufRead, Read};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

/// Windows up to 2^25 bytes, 32 MiB, are decoded: `zstd -19` needs 8 MiB, and more would break the bound on memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

impl Compression {
    /// Told by the stream's first bytes (at least four, unless it is shorter).
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Whether a media type is that of a tar layer (OCI layer.md, and docker's own). Which compression it names does not
/// matter: the bytes decide.
pub fn is_tar_layer(media_type: &str) -> bool {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .map(|kind| kind.strip_prefix("nondistributable.").unwrap_or(kind));
    let docker = media_type
        .strip_prefix("application/vnd.docker.image.rootfs.")
        .map(|kind| kind.strip_prefix("foreign.").unwrap_or(kind));
    matches!(oci, Some("v1.tar" | "v1.tar+gzip" | "v1.tar+zstd"))
        || matches!(docker, Some("diff.tar" | "diff.tar.gzip" | "diff.tar.zstd"))
}

/// The uncompressed content of `reader`. The bytes decide: registries hold layers whose media type is wrong,
/// and the diff_id is checked in any case.
pub fn decompress<'a, R: BufRead + Send + 'a>(mut reader: R) -> io::Result<Box<dyn Read + Send + 'a>> {
    // A pipe may give them one by one.
    let mut start = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let reader = io::Cursor::new(start).chain(reader);
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn by_magic() {
        let text = b"forty-two bytes of nothing in particular..";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        for (bytes, compression) in
            [(text.to_vec(), Compression::None), (gzip, Compression::Gzip), (zstd, Compression::Zstd)]
        {
            assert_eq!(Compression::of(&bytes), compression);
            // Concatenated members and frames are one stream.
            let twice = [&bytes[..], &bytes[..]].concat();
            let mut out = Vec::new();
            decompress(&twice[..]).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, [&text[..], &text[..]].concat());
            // However few bytes come at once.
            let mut out = Vec::new();
            let trickle = io::BufReader::with_capacity(1, &bytes[..]);
            decompress(trickle).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text);
        }
    }

    #[test]
    fn media_types() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", false),
            ("application/vnd.in-toto+json", false),
        ] {
            assert_eq!(is_tar_layer(media_type), expected, "{media_type}");
        }
    }
}

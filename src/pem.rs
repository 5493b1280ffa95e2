//! Certificates in PEM (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Of a line.
const LINE: usize = 64;

/// Certificates in DER as a text, and nothing else in it.
pub(crate) fn certificates<C: AsRef<[u8]>>(certificates: impl IntoIterator<Item = C>) -> String {
    let mut text = String::new();
    for certificate in certificates {
        let encoded = BASE64.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(LINE) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

//! `caCertificates`: whom the programs of a sandbox trust.

use std::sync::Arc;

use rustls_pki_types::pem::{PemObject as _, SectionKind};

use super::problem::Problem;

const FIELD: &str = "caCertificates";
/// In bytes; what systems trust is about 220,000.
const MAX: usize = 1 << 20;

/// A text of certificates in PEM and nothing else: a private key that somebody has in the same file does not become the guest's.
pub(super) fn checked(text: String) -> Result<Arc<str>, Problem> {
    if text.len() > MAX {
        return Err(Problem::field(FIELD, format!("{} bytes, where {MAX} are allowed", text.len())));
    }
    let mut found = false;
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        match section {
            Ok((SectionKind::Certificate, _)) => found = true,
            Ok((SectionKind::Crl | SectionKind::Csr, _)) | Err(_) => {
                return Err(Problem::field(FIELD, "expected certificates in PEM, and nothing else"));
            }
            Ok(_) => return Err(Problem::field(FIELD, "holds a key: expected certificates alone")),
        }
    }
    if found { Ok(text.into()) } else { Err(Problem::field(FIELD, "holds no certificate in PEM")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_alone() {
        let section = |kind: &str| format!("-----BEGIN {kind}-----\nMAA=\n-----END {kind}-----\n");
        let certificate = section("CERTIFICATE");
        for text in [certificate.clone(), format!("# A comment\n{certificate}{certificate}")] {
            assert_eq!(&*checked(text.clone()).unwrap(), text);
        }
        for (text, wrong) in [
            (String::new(), "holds no certificate"),
            ("MAA=".to_owned(), "holds no certificate"),
            (certificate.clone() + &section("PRIVATE KEY"), "holds a key"),
            (section("RSA PRIVATE KEY") + &certificate, "holds a key"),
            (section("X509 CRL"), "and nothing else"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".into(), "and nothing else"),
            ("-----BEGIN CERTIFICATE-----\nMAA=\n".into(), "and nothing else"),
            (certificate.repeat(1 << 15), "where 1048576 are allowed"),
        ] {
            let detail = checked(text).unwrap_err().document().detail;
            assert!(detail.starts_with("caCertificates: ") && detail.contains(wrong), "{detail}");
        }
    }
}

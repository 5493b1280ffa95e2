//! `caCertificates`: whom the programs of a sandbox trust.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::problem::Problem;
use crate::pem;

const FIELD: &str = "caCertificates";
/// In bytes; what systems trust is about 220,000.
const MAX: usize = 1 << 20;
/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// The certificates of a text in PEM, written anew: nothing that stands between them becomes the guest's. A private key that somebody has
/// in the same file is a mistake, which is told.
pub(super) fn checked(text: &str) -> Result<Arc<str>, Problem> {
    let bounded = |length: usize| {
        let wrong = || Problem::field(FIELD, format!("{length} bytes, where {MAX} are allowed"));
        if length > MAX { Err(wrong()) } else { Ok(()) }
    };
    bounded(text.len())?;
    if let Some(label) = text.split(['\n', '\r']).find_map(other_section) {
        let wrong = if label.ends_with("KEY") { "a key" } else { "something else" };
        let wrong = format!("holds {wrong} ({label}): expected certificates alone");
        return Err(Problem::field(FIELD, wrong));
    }
    let mut found: Vec<CertificateDer<'_>> = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(text.as_bytes()).enumerate() {
        let wrong = |wrong: &str| Problem::field(&format!("{FIELD}[{index}]"), wrong);
        let certificate = certificate.map_err(|_| wrong("is no PEM, or ends too early"))?;
        if !is_certificate(&certificate) {
            return Err(wrong("is no X.509 certificate"));
        }
        found.push(certificate);
    }
    if found.is_empty() {
        return Err(Problem::field(FIELD, "holds no certificate in PEM"));
    }
    let text = pem::certificates(found);
    // A text with longer lines becomes a longer one.
    bounded(text.len())?;
    Ok(text.into())
}

/// The beginning of the label if a section that is no certificate begins with this line.
fn other_section(line: &str) -> Option<String> {
    const SHOWN: usize = 40;
    let label = line.trim().strip_prefix("-----BEGIN")?;
    let label = label.trim_end_matches('-').trim();
    (label != "CERTIFICATE").then(|| label.chars().take(SHOWN).filter(|char| !char.is_control()).collect())
}

/// Whether `der` has the outer shape of one (RFC 5280, section 4.1), which no private key has.
fn is_certificate(der: &[u8]) -> bool {
    let Some((SEQUENCE, mut rest, [])) = element(der) else { return false };
    // tbsCertificate, signatureAlgorithm, signatureValue
    for expected in [SEQUENCE, SEQUENCE, BIT_STRING] {
        match element(rest) {
            Some((tag, _, behind)) if tag == expected => rest = behind,
            _ => return false,
        }
    }
    rest.is_empty()
}

/// The tag and the content of the first element, and what is behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = der else { return None };
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        // The length of the length. No more than MAX is looked at.
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    Some((*tag, content, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of a certificate with a signature of so many bytes.
    fn shape(signature: u16) -> Vec<u8> {
        let [high, low] = signature.to_be_bytes();
        let [all_high, all_low] = (signature + 8).to_be_bytes();
        let mut der =
            vec![SEQUENCE, 0x82, all_high, all_low, SEQUENCE, 0, SEQUENCE, 0, BIT_STRING, 0x82, high, low];
        der.extend(std::iter::repeat_n(7, signature.into()));
        der
    }

    fn wrong(text: &str) -> String {
        checked(text).unwrap_err().document().detail
    }

    #[test]
    fn certificates_are_written_anew() {
        let one = pem::certificates([shape(300)]);
        let two = pem::certificates([shape(300), shape(1)]);
        assert_eq!(&*checked(&two).unwrap(), two);
        let long_lines = two.replace('\n', "").replace("CERTIFICATE-----", "CERTIFICATE-----\n");
        let long_lines = long_lines.replace("-----END", "\n-----END");
        for text in [
            two.replace('\n', "\r\n"),
            long_lines,
            format!("# A comment, and -----BEGIN PRIVATE KEY----- in it\n{two}password: secret\n"),
            two.replacen(&one, &format!("{one}\nhunter2\n"), 1),
        ] {
            assert_eq!(&*checked(&text).unwrap(), two, "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let one = pem::certificates([shape(300)]);
        let labelled = |label: &str| one.replace("CERTIFICATE", label);
        for label in [
            "PRIVATE KEY",
            "RSA PRIVATE KEY",
            "EC PRIVATE KEY",
            "DSA PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
            "ENCRYPTED PRIVATE KEY",
        ] {
            let expected = format!("caCertificates: holds a key ({label}): expected certificates alone");
            let section = labelled(label);
            let open = section.split_once("-----END").unwrap().0;
            for text in [
                one.clone() + &section,
                section.clone() + &one,
                one.clone() + open,
                section.replace('\n', "\r"),
            ] {
                assert_eq!(wrong(&text), expected);
            }
            assert_eq!(wrong(&section.replace("-----BEGIN", " -----BEGIN")), expected);
        }
        for label in ["X509 CRL", "TRUSTED CERTIFICATE", "ECHCONFIG"] {
            let text = one.clone() + &labelled(label);
            assert_eq!(
                wrong(&text),
                format!("caCertificates: holds something else ({label}): expected certificates alone")
            );
        }
        let key = pem::certificates([[SEQUENCE, 3, 2, 1, 0]]);
        let open = one.split_once("-----END").unwrap().0;
        for (text, expected) in [
            (String::new(), "caCertificates: holds no certificate"),
            ("MAA=".to_owned(), "caCertificates: holds no certificate"),
            (open.to_owned(), "caCertificates[0]: is no PEM"),
            (
                one.clone() + "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
                "caCertificates[1]: is no PEM",
            ),
            (one.clone() + &key, "caCertificates[1]: is no X.509 certificate"),
            (pem::certificates([&shape(300)[..200]]), "caCertificates[0]: is no X.509 certificate"),
            (
                pem::certificates([[shape(300), vec![0]].concat()]),
                "caCertificates[0]: is no X.509 certificate",
            ),
            (pem::certificates([b""]), "caCertificates[0]: is no X.509 certificate"),
        ] {
            assert!(wrong(&text).starts_with(expected), "{}", wrong(&text));
        }
        assert!(wrong(&one.repeat(1 << 12)).ends_with("where 1048576 are allowed"));
    }
}

//! The bundle as Java reads it: Java knows no PEM. JKS, since every version of Java reads it, whatever type it is told, and needs
//! neither a password nor an encryption for certificates alone. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
const KIND: &[u8] = b"X.509";
/// Java's own truststores have it. It protects nothing; who gives none has the digest left alone.
const PASSWORD: &str = "changeit";
const SALT: &[u8] = b"Mighty Aphrodite";

/// The certificates of `pem`, in their order, under their numbers. What is none is left out.
pub(super) fn jks(pem: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(pem);
    let certificates: Vec<Vec<u8>> = text
        .split(BEGIN)
        .skip(1)
        .filter_map(|rest| {
            let lines: String = rest.split_once(END)?.0.split_ascii_whitespace().collect();
            STANDARD.decode(lines).ok()
        })
        .collect();
    let mut store = Vec::with_capacity(pem.len());
    for number in [MAGIC, VERSION, length(certificates.len())] {
        store.extend(number.to_be_bytes());
    }
    for (number, certificate) in certificates.iter().enumerate() {
        store.extend(TRUSTED_CERTIFICATE.to_be_bytes());
        text_into(&mut store, number.to_string().as_bytes());
        // When it came, in milliseconds: nobody asks.
        store.extend(0_u64.to_be_bytes());
        text_into(&mut store, KIND);
        store.extend(length(certificate.len()).to_be_bytes());
        store.extend(certificate);
    }
    let mut digest = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        digest.update(unit.to_be_bytes());
    }
    digest.update(SALT);
    digest.update(&store);
    store.extend(digest.finalize());
    store
}

/// A bundle is of a few MiB at most.
fn length(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn text_into(store: &mut Vec<u8>, text: &[u8]) {
    store.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    store.extend(text);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::jks;

    #[test]
    fn what_is_no_certificate_is_left_out() {
        let nothing =
            jks(b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nQUJD");
        assert_eq!(nothing.len(), 12 + 20);
        let one = jks(b"text\n-----BEGIN CERTIFICATE-----\nQU\r\nJD\n-----END CERTIFICATE-----\n");
        assert_eq!(one[..12], [0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(&one[12..one.len() - 20], b"\0\0\0\x02\0\x010\0\0\0\0\0\0\0\0\0\x05X.509\0\0\0\x03ABC");
    }

    /// Where there is a Java.
    #[test]
    fn keytool_reads_it() {
        if Command::new("keytool").arg("-help").output().is_err() {
            return;
        }
        let rcgen::CertifiedKey { cert, .. } =
            rcgen::generate_simple_self_signed(["authority.example".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        std::fs::write(&path, jks(format!("{0}\n{0}", cert.pem()).as_bytes())).unwrap();
        let mut keytool = Command::new("keytool");
        let listed =
            keytool.args(["-list", "-rfc", "-storepass", "changeit", "-keystore"]).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.status.success(), "{text} {}", String::from_utf8_lossy(&listed.stderr));
        assert_eq!(text.matches("Entry type: trustedCertEntry").count(), 2, "{text}");
    }
}

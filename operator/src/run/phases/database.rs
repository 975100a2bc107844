//! What pods take of a database's Secret: its URL, and the certificates that it is trusted by.
//!
//! Pure. Never repeats a part of either. Whether there is such a database is for the pods to see.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// A pod gets the certificates as an environment variable, of which Linux takes 128 KiB.
const CERTIFICATES_BYTES_MAX: usize = 64 << 10;

/// What the URL would have to be, if pods refuse it as it is; `with_ca` if they get certificates to trust as well.
pub(super) fn database_url_needed(text: &str, with_ca: bool) -> Option<&'static str> {
    // As the pods read it. For what is only parsed and dropped again it does not matter where in the URL this stands.
    let url = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
    let known =
        text.replace("sslmode=verify-full", if url { "sslmode=require" } else { "sslmode=verify-full" });
    let mode_known =
        ["disable", "prefer", "require"].iter().any(|mode| known.contains(&format!("sslmode={mode}")));
    match known.parse::<Config>() {
        Ok(config) if with_ca && config.get_ssl_mode() == SslMode::Disable => {
            Some("a PostgreSQL URL without sslmode=disable, as spec.database.caSecretRef is given")
        }
        Ok(_) => None,
        Err(_) if known.contains("sslrootcert=") => {
            Some("a PostgreSQL URL without sslrootcert: name the certificates in spec.database.caSecretRef")
        }
        Err(_) if known.contains("sslcert=") || known.contains("sslkey=") => Some(
            "a PostgreSQL URL without sslcert and sslkey: client certificates are not supported, use a password",
        ),
        Err(_) if known.contains("sslmode=") && !mode_known => {
            Some("a PostgreSQL URL whose sslmode is disable, prefer, require or verify-full")
        }
        Err(_) => Some("a PostgreSQL URL such as postgres://user:password@host:5432/database"),
    }
}

/// Whether pods can trust all of what is there.
pub(super) fn are_certificates(text: &str) -> bool {
    let mut roots = RootCertStore::empty();
    let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes());
    let readable = certificates.all(|found| found.is_ok_and(|certificate| roots.add(certificate).is_ok()));
    readable && !roots.is_empty() && text.len() <= CERTIFICATES_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = include_str!("../../../tests/ca.crt");

    #[test]
    fn urls_that_pods_take_are_taken_and_others_are_told_what_to_change() {
        let check = |url: &str, with_ca: bool, told: Option<&str>| {
            let needed = database_url_needed(url, with_ca);
            assert_eq!(needed.is_some(), told.is_some(), "{url}: {needed:?}");
            assert!(needed.unwrap_or_default().contains(told.unwrap_or_default()), "{url}: {needed:?}");
        };
        for mode in ["prefer", "require", "verify-full"] {
            check(&format!("postgresql://u:p@h/d?sslmode={mode}"), true, None);
        }
        check("postgres://u:p@h/d", true, None);
        check("postgres://u:p@h/d?sslmode=disable", false, None);
        check("postgres://u:p@h/d?sslmode=disable", true, Some("without sslmode=disable"));
        check("postgres://u:p@h/d?sslmode=verify-ca", false, Some("whose sslmode is"));
        check("host=h sslmode=verify-full", false, Some("whose sslmode is"));
        check("postgres://u:p@h/d?sslmode=verify-full&sslrootcert=/ca.crt", false, Some("caSecretRef"));
        check("postgres://u:p@h/d?sslcert=c&sslkey=k", false, Some("use a password"));
        check("postgres://u:p@h:port/d?sslmode=require", false, Some("such as"));
    }

    #[test]
    fn certificates_are_taken_whole_or_not_at_all() {
        assert!(are_certificates(CA) && are_certificates(&format!("# comment\n{CA}\n{CA}")));
        for wrong in ["", "no", &CA.replace("CERTIFICATE", "PRIVATE KEY"), &CA[..CA.len() / 2]] {
            assert!(!are_certificates(wrong), "{wrong}");
        }
        assert!(!are_certificates(&format!(
            "{CA}-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n"
        )));
        assert!(!are_certificates(&CA.repeat(1 + CERTIFICATES_BYTES_MAX / CA.len())));
    }
}

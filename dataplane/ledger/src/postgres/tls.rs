//! Which certificates of a PostgreSQL server are believed.
//!
//! Never offers a certificate of our own: passwords say who we are.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::ConfigError;

/// Whose word on a server counts.
#[derive(Clone, Copy)]
pub(super) enum Trust<'a> {
    /// Its own.
    Anybody,
    /// That of the system's store, or of the file in `SSL_CERT_FILE`.
    System,
    /// That of these certificates, in PEM.
    These(&'a str),
}

pub(super) fn connector(trust: Trust<'_>) -> Result<MakeRustlsConnect, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(ConfigError::Tls)?;
    let tls = match trust {
        Trust::Anybody => {
            tls.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
        Trust::System => {
            // A store that cannot be read leaves no trusted certificate: connections then fail and say so.
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            tls.with_root_certificates(roots)
        }
        Trust::These(certificates) => tls.with_root_certificates(roots(certificates)?),
    };
    Ok(MakeRustlsConnect::new(tls.with_no_client_auth()))
}

/// All of them must be usable: one that is left out may be the one that the server needs after its next change.
fn roots(certificates: &str) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    let unreadable = |roots: &RootCertStore| ConfigError::Certificates { number: roots.len() + 1 };
    for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
        // The parsers' own words may repeat what is there, which may be something else, and secret.
        let added = certificate.ok().is_some_and(|certificate| roots.add(certificate).is_ok());
        if !added {
            return Err(unreadable(&roots));
        }
    }
    if roots.is_empty() { Err(unreadable(&roots)) } else { Ok(roots) }
}

/// Opportunistic TLS, libpq's `sslmode=prefer`: keeps out who only listens, not who stands in between.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

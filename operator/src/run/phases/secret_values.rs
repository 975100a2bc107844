//! Which values of Secrets the pods take: one that they would refuse at their start takes down one pod after the other to be found
//! out. Pure.
//!
//! The data plane decides, and shares no code with the operator; `docs/vectors/secrets.json` holds values that both are tested
//! with. Promises: no value is ever part of what is said of it, nor are the parsers' own words, which may repeat parts of it.

use base64::Engine as _;
use certeus_crds::SecretKeyRef;
use certeus_operator::build::SecretUse;
use certeus_tlog::note::{Algorithm, SignerKey};

use super::database::{are_certificates, database_url_needed};
use crate::run::error::Error;

/// Variables of the pods, as the library names them.
const DATABASE_URL: &str = "CERTEUS_DB_URL";
const DATABASE_CA: &str = "CERTEUS_DB_CA";
pub(super) const API_KEY: &str = "CERTEUS_API_KEY";
const DECRYPT_API_KEY: &str = "CERTEUS_DECRYPT_API_KEY";
const ENCRYPTION_KEY: &str = "CERTEUS_ENCRYPTION_KEY";
pub(super) const SIGNING_KEY: &str = "CERTEUS_SIGNING_KEY";

/// Shortest API key.
const API_KEY_BYTES_MIN: usize = 16;
const ENCRYPTION_KEY_BYTES: usize = 32;
const ENCRYPTION_KEYS_MAX: usize = 16;
const SIGNING_KEYS_MAX: usize = 4;

/// The padding at the end may be left out.
const BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// What a pod would refuse, and why.
pub(super) fn refusal(values: &[(&SecretUse, &[u8])]) -> Option<Error> {
    let ordinary = values.iter().find(|(used, _)| used.variable == API_KEY).map(|(_, value)| *value);
    let with_ca = values.iter().any(|(used, _)| used.variable == DATABASE_CA);
    values.iter().find_map(|(used, value)| {
        let SecretKeyRef { name, key } = used.reference.clone();
        let Ok(text) = std::str::from_utf8(value) else {
            return Some(Error::SecretUnusable { name, key, needed: "text in UTF-8" });
        };
        let needed = match used.variable {
            DATABASE_URL => database_url_needed(text, with_ca)?,
            DATABASE_CA if !are_certificates(text) => {
                "certificates in PEM (BEGIN CERTIFICATE), at most 64 KiB of them, each of which can be read"
            }
            API_KEY | DECRYPT_API_KEY if !is_api_key(text) => {
                "an API key of at least 16 characters, all of them visible ASCII without white space or a line feed at the end"
            }
            DECRYPT_API_KEY if ordinary == Some(value) => "an API key that differs from the ordinary one",
            ENCRYPTION_KEY if !is_keyring(text) => {
                "1 to 16 different keys of 32 bytes in base64, with commas or line ends between them (make one with: \
                 openssl rand -base64 32)"
            }
            SIGNING_KEY if public_halves(value).is_none() => return Some(Error::SigningKeyUnusable { name }),
            _ => return None,
        };
        Some(Error::SecretUnusable { name, key, needed })
    })
}

/// No header could carry anything else.
pub(super) fn is_api_key(text: &str) -> bool {
    text.len() >= API_KEY_BYTES_MIN && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The keys of encrypted fields.
fn is_keyring(text: &str) -> bool {
    let keys = text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|key| !key.is_empty());
    let keys: Vec<&str> = keys.take(ENCRYPTION_KEYS_MAX + 1).collect();
    let decoded: Option<Vec<Vec<u8>>> = keys.iter().map(|key| BASE64.decode(key).ok()).collect();
    decoded.is_some_and(|keys| {
        (1..=ENCRYPTION_KEYS_MAX).contains(&keys.len())
            && keys.iter().all(|key| key.len() == ENCRYPTION_KEY_BYTES)
            && (1..keys.len()).all(|place| !keys[..place].contains(&keys[place]))
    })
}

/// The public halves of the signing keys that stand in these lines; `None` if no log can be signed with them.
pub(super) fn public_halves(lines: &[u8]) -> Option<Vec<String>> {
    let lines = std::str::from_utf8(lines).ok()?.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Option<Vec<_>> =
        lines.map(|line| Some(SignerKey::parse(line).ok()?.verifier().clone())).collect();
    let keys = keys?;
    // One log has one name, and whoever verifies it may know no other algorithm.
    let can_sign = keys.len() <= SIGNING_KEYS_MAX
        && keys.iter().any(|key| key.algorithm() == Algorithm::Ed25519)
        && keys.iter().all(|key| key.algorithm() != Algorithm::CosignatureV1 && key.name() == keys[0].name())
        && (1..keys.len()).all(|place| !keys[..place].contains(&keys[place]));
    can_sign.then(|| keys.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn used(variable: &'static str) -> SecretUse {
        let reference = SecretKeyRef { name: "s".to_owned(), key: "k".to_owned() };
        SecretUse { variable, reference, optional: false }
    }

    /// The data plane has a test with the same values.
    #[test]
    fn what_the_pods_take_is_taken_and_what_they_would_refuse_is_refused_and_not_shown() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vectors/secrets.json");
        let vectors: BTreeMap<String, BTreeMap<String, Vec<String>>> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let checked = [DATABASE_URL, API_KEY, DECRYPT_API_KEY, ENCRYPTION_KEY, SIGNING_KEY];
        assert_eq!(vectors.len(), checked.len());
        for variable in checked {
            let (used, values) = (used(variable), &vectors[variable]);
            let told = |value: &String| refusal(&[(&used, value.as_bytes())]);
            for value in &values["accepted"] {
                assert!(told(value).is_none(), "{variable}: {value:?} is refused");
            }
            for value in &values["refused"] {
                let error = told(value).unwrap_or_else(|| panic!("{variable}: {value:?} is taken"));
                let message = error.message();
                assert_eq!(error.reason(), "SecretInvalid");
                assert!(
                    message.contains("Secret s ") && (value.is_empty() || !message.contains(value)),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn certificates_are_checked_and_go_with_the_url() {
        let (url, ca) = (used(DATABASE_URL), used(DATABASE_CA));
        let told = |values: &[(&SecretUse, &[u8])]| refusal(values).map(|error| error.message());
        let authority: &[u8] = include_bytes!("../../../tests/ca.crt");
        assert_eq!(told(&[(&url, b"postgres://db/d"), (&ca, authority)]), None);
        assert!(told(&[(&url, b"postgres://db/d"), (&ca, b"-----BEGIN")]).unwrap().contains("in PEM"));
        let unencrypted: &[u8] = b"postgres://db/d?sslmode=disable";
        assert_eq!(told(&[(&url, unencrypted)]), None);
        assert!(told(&[(&url, unencrypted), (&ca, authority)]).unwrap().contains("without sslmode=disable"));
    }

    #[test]
    fn both_api_keys_differ_and_all_values_are_text() {
        let (ordinary, other, region) = (used(API_KEY), used(DECRYPT_API_KEY), used("AWS_REGION"));
        let told = |values: &[(&SecretUse, &[u8])]| refusal(values).map(|error| error.message());
        let key: &[u8] = b"0123456789abcdef";
        assert_eq!(told(&[(&ordinary, key), (&other, b"fedcba9876543210"), (&region, b"")]), None);
        assert!(told(&[(&ordinary, key), (&other, key)]).unwrap().contains("differs from the ordinary one"));
        assert!(told(&[(&ordinary, key), (&region, &[0xff])]).unwrap().contains("text in UTF-8"));
    }
}

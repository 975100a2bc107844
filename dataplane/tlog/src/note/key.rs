//! Keys of signed notes in the text form of Go's `golang.org/x/mod/sumdb/note`, and the three signature algorithms.
//!
//! Secret keys are wiped from memory when dropped, and nothing but [`SignerKey::to_secret_text`] shows them.

use std::fmt;

use aws_lc_rs::signature::{
    ED25519, Ed25519KeyPair, KeyPair, ML_DSA_44, ML_DSA_44_SIGNING, PqdsaKeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{NoteError, Signature};
use crate::cosignature::{self, TIME_BYTES};

/// A key's name is at most this long, as the message of an ML-DSA-44 cosignature has one byte for its length.
pub const KEY_NAME_BYTES_MAX: usize = 255;
/// Length of the seed that a secret key is derived from, for every algorithm.
pub const SEED_BYTES: usize = 32;

/// Length of an Ed25519 signature.
pub const JWS_SIGNATURE_BYTES: usize = 64;

const SECRET_MARK: &str = "PRIVATE+KEY+";

/// What a key signs and how; the signature types of `signed-note`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Type 0x01: Ed25519 over the note's text.
    Ed25519,
    /// Type 0x04: Ed25519 over time and the note's text, `cosignature/v1`.
    CosignatureV1,
    /// Type 0x06: ML-DSA-44 (FIPS 204) over cosigner, time and the checkpoint that the text is.
    MlDsa44,
}

/// A public key with the name it signs under: `<name>+<id>+<Base64 of type and key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: u32,
    algorithm: Algorithm,
    public: Vec<u8>,
}

/// A secret key with the name it signs under: `PRIVATE+KEY+<name>+<id>+<Base64 of type and seed>`.
pub struct SignerKey {
    verifier: VerifierKey,
    seed: Zeroizing<[u8; SEED_BYTES]>,
    pair: Pair,
}

/// The key pair that the seed stands for; wiped by its library when dropped.
enum Pair {
    Ed25519(Ed25519KeyPair),
    MlDsa44(PqdsaKeyPair),
}

/// Why something is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form `<name>+<id>+<key>`, with `PRIVATE+KEY+` before it for a secret key.
    #[error("not a key: it must read {0}")]
    Form(&'static str),
    /// Names are not empty and have no space, plus or control character.
    #[error(
        "a key's name must have 1 to {KEY_NAME_BYTES_MAX} bytes, and no space, plus or control character"
    )]
    Name,
    /// The algorithm's type byte is not known here.
    #[error("unknown signature algorithm {0:#04x}")]
    Algorithm(u8),
    /// The key has not the length that its algorithm asks for.
    #[error("the key has {got} bytes, and must have {want}")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes there must be.
        want: usize,
    },
    /// The id does not belong to this name and key: one of the three was altered.
    #[error("the key's id does not match its name and key")]
    Id,
    /// The cryptographic library refuses the key.
    #[error("the key was refused")]
    Refused,
}

/// Why a text cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The text or the result is not a note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The algorithm cannot sign this text or time.
    #[error(transparent)]
    Message(#[from] cosignature::MessageError),
    /// The cryptographic library failed.
    #[error("signing failed")]
    Failed,
}

/// Why a signature is not that of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not as long as the algorithm's signatures are.
    #[error("the signature has {got} bytes, and must have {want}")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes there must be.
        want: usize,
    },
    /// The algorithm cannot have signed this text or time.
    #[error(transparent)]
    Message(#[from] cosignature::MessageError),
    /// It was made with another key or over another text.
    #[error("the signature does not belong to this text and key")]
    Mismatch,
}

/// Why a JWS is not signed by a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// Only Ed25519 keys sign JWS here.
    #[error("the key is not an Ed25519 key")]
    Algorithm,
    /// Not what a compact JWS signs.
    #[error("the signing input of a JWS is two parts of base64url with a dot between them")]
    Input,
    /// The cryptographic library failed.
    #[error("signing failed")]
    Failed,
    /// It was made with another key or over another text.
    #[error("the signature does not belong to this text and key")]
    Mismatch,
}

impl Algorithm {
    /// The type byte that `signed-note` assigns.
    #[must_use]
    pub fn type_byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::CosignatureV1 => 0x04,
            Self::MlDsa44 => 0x06,
        }
    }

    /// Whether signatures carry the time at which they were made.
    #[must_use]
    pub fn is_timed(self) -> bool {
        self != Self::Ed25519
    }

    fn from_type_byte(byte: u8) -> Result<Self, KeyError> {
        [Self::Ed25519, Self::CosignatureV1, Self::MlDsa44]
            .into_iter()
            .find(|algorithm| algorithm.type_byte() == byte)
            .ok_or(KeyError::Algorithm(byte))
    }

    fn public_bytes(self) -> usize {
        match self {
            Self::Ed25519 | Self::CosignatureV1 => 32,
            Self::MlDsa44 => 1_312,
        }
    }

    /// Length of a signature, with its time if it has one.
    fn signature_bytes(self) -> usize {
        match self {
            Self::Ed25519 => 64,
            Self::CosignatureV1 => TIME_BYTES + 64,
            Self::MlDsa44 => TIME_BYTES + 2_420,
        }
    }
}

impl VerifierKey {
    /// From a name and a public key: 32 bytes for Ed25519 (RFC 8032), 1,312 for ML-DSA-44 (FIPS 204).
    ///
    /// # Errors
    /// When the name is none, or the key has the wrong length.
    pub fn new(name: &str, algorithm: Algorithm, public: &[u8]) -> Result<Self, KeyError> {
        check_name(name)?;
        let (got, want) = (public.len(), algorithm.public_bytes());
        if got != want {
            return Err(KeyError::Length { got, want });
        }
        let id = key_id(name, algorithm, public);
        Ok(Self { name: name.to_owned(), id, algorithm, public: public.to_vec() })
    }

    /// From its text form, which must be spelled exactly as formatting spells it.
    ///
    /// # Errors
    /// When it is not, or is not a key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        const FORM: KeyError = KeyError::Form("<name>+<id in 8 hex digits>+<type and key in Base64>");
        let (name, id, encoded) = split_key(text).ok_or(FORM)?;
        // The longest known key, with room to say precisely what a longer one is.
        if encoded.len() > 4_096 {
            return Err(FORM);
        }
        let bytes = STANDARD.decode(encoded).map_err(|_| FORM)?;
        let (algorithm, public) = bytes.split_first().ok_or(FORM)?;
        Self::new(name, Algorithm::from_type_byte(*algorithm)?, public)?.with_id(id)
    }

    /// The name, as in signature lines.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id, as in signature lines: 4 bytes of a hash over name, algorithm and key.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The public key alone.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// Checks a signature line's bytes over a note's text, and returns the signed time if the algorithm has one.
    ///
    /// # Errors
    /// When this key did not sign this text so.
    pub fn verify(&self, text: &str, signature: &[u8]) -> Result<Option<u64>, SignatureError> {
        let (got, want) = (signature.len(), self.algorithm.signature_bytes());
        if got != want {
            return Err(SignatureError::Length { got, want });
        }
        let (time, signature) = match signature.split_first_chunk::<TIME_BYTES>() {
            Some((time, rest)) if self.algorithm.is_timed() => (Some(u64::from_be_bytes(*time)), rest),
            _ => (None, signature),
        };
        let message = self.message(text, time.unwrap_or_default())?;
        let outcome = match self.algorithm {
            Algorithm::Ed25519 | Algorithm::CosignatureV1 => {
                UnparsedPublicKey::new(&ED25519, &self.public).verify(&message, signature)
            }
            Algorithm::MlDsa44 => {
                UnparsedPublicKey::new(&ML_DSA_44, &self.public).verify(&message, signature)
            }
        };
        outcome.map(|()| time).map_err(|_| SignatureError::Mismatch)
    }

    /// Checks the signature of a compact JWS; see [`SignerKey::sign_jws`].
    ///
    /// # Errors
    /// When this key did not sign this input.
    pub fn verify_jws(&self, input: &str, signature: &[u8; JWS_SIGNATURE_BYTES]) -> Result<(), JwsError> {
        self.check_jws(input)?;
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        key.verify(input.as_bytes(), signature).map_err(|_| JwsError::Mismatch)
    }

    fn check_jws(&self, input: &str) -> Result<(), JwsError> {
        if self.algorithm != Algorithm::Ed25519 {
            return Err(JwsError::Algorithm);
        }
        if is_jws_input(input) { Ok(()) } else { Err(JwsError::Input) }
    }

    /// The bytes that are signed for a note's text.
    fn message(&self, text: &str, time: u64) -> Result<Vec<u8>, cosignature::MessageError> {
        match self.algorithm {
            Algorithm::Ed25519 => Ok(text.as_bytes().to_vec()),
            Algorithm::CosignatureV1 => cosignature::v1_message(text, time),
            Algorithm::MlDsa44 => cosignature::ml_dsa_44_message(&self.name, text, time),
        }
    }

    /// Checks the id that stood beside the key.
    fn with_id(self, id: &str) -> Result<Self, KeyError> {
        if format!("{:08x}", self.id) == id { Ok(self) } else { Err(KeyError::Id) }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&[self.algorithm.type_byte()], self.public.as_slice()].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({}+{:08x}, {:?})", self.name, self.id, self.algorithm)
    }
}

impl std::str::FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

impl SignerKey {
    /// The key that a seed stands for. A new key needs a seed of 32 bytes from a cryptographic random source.
    ///
    /// # Errors
    /// When the name is none.
    pub fn from_seed(name: &str, algorithm: Algorithm, mut seed: [u8; SEED_BYTES]) -> Result<Self, KeyError> {
        let kept = Zeroizing::new(seed);
        seed.zeroize();
        let (pair, public) = match algorithm {
            Algorithm::Ed25519 | Algorithm::CosignatureV1 => {
                let pair =
                    Ed25519KeyPair::from_seed_unchecked(kept.as_slice()).map_err(|_| KeyError::Refused)?;
                let public = pair.public_key().as_ref().to_vec();
                (Pair::Ed25519(pair), public)
            }
            Algorithm::MlDsa44 => {
                let pair = PqdsaKeyPair::from_seed(&ML_DSA_44_SIGNING, kept.as_slice())
                    .map_err(|_| KeyError::Refused)?;
                let public = pair.public_key().as_ref().to_vec();
                (Pair::MlDsa44(pair), public)
            }
        };
        Ok(Self { verifier: VerifierKey::new(name, algorithm, &public)?, seed: kept, pair })
    }

    /// From its text form, which must be spelled exactly as [`Self::to_secret_text`] spells it.
    ///
    /// # Errors
    /// When it is not, or is not a key. The error says nothing of the key itself.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        const FORM: KeyError =
            KeyError::Form("PRIVATE+KEY+<name>+<id in 8 hex digits>+<type and seed in Base64>");
        let (name, id, encoded) = text.strip_prefix(SECRET_MARK).and_then(split_key).ok_or(FORM)?;
        check_name(name)?;
        if encoded.len() > 4_096 {
            return Err(FORM);
        }
        let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| FORM)?);
        let (algorithm, seed) = bytes.split_first().ok_or(FORM)?;
        let algorithm = Algorithm::from_type_byte(*algorithm)?;
        let seed = seed.try_into().map_err(|_| KeyError::Length { got: seed.len(), want: SEED_BYTES })?;
        let key = Self::from_seed(name, algorithm, seed)?;
        key.verifier.clone().with_id(id)?;
        Ok(key)
    }

    /// The text form, secret.
    #[must_use]
    pub fn to_secret_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 1 + SEED_BYTES]);
        bytes[0] = self.verifier.algorithm.type_byte();
        bytes[1..].copy_from_slice(self.seed.as_slice());
        let encoded = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        Zeroizing::new(format!("{SECRET_MARK}{}+{:08x}+{}", self.verifier.name, self.verifier.id, *encoded))
    }

    /// The public half.
    #[must_use]
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs a note's text. `time` in seconds since the Unix epoch is part of cosignatures, and not used by plain Ed25519.
    /// ML-DSA-44 signatures are randomised by the library, as FIPS 204 advises: signing twice gives two signatures.
    ///
    /// # Errors
    /// When the algorithm cannot sign this text: cosignatures are of checkpoints only.
    pub fn sign(&self, text: &str, time: u64) -> Result<Signature, SignError> {
        let message = self.verifier.message(text, time)?;
        let mut signature = Vec::with_capacity(self.verifier.algorithm.signature_bytes());
        if self.verifier.algorithm.is_timed() {
            signature.extend(time.to_be_bytes());
        }
        match &self.pair {
            Pair::Ed25519(pair) => {
                signature.extend(pair.try_sign(&message).map_err(|_| SignError::Failed)?.as_ref());
            }
            Pair::MlDsa44(pair) => {
                let start = signature.len();
                signature.resize(start + ML_DSA_44_SIGNING.signature_len(), 0);
                pair.sign(&message, &mut signature[start..]).map_err(|_| SignError::Failed)?;
            }
        }
        Ok(Signature::new(self.verifier.name.clone(), self.verifier.id, signature))
    }
}

impl SignerKey {
    /// Signs the signing input of a compact JWS (RFC 7515, section 5.1) as `EdDSA` (RFC 8037).
    ///
    /// The same key signs notes, and neither signature can be passed off as the other: a note's text ends with a line feed, and
    /// of this input every byte is one of base64url, but for the dot.
    ///
    /// # Errors
    /// When the key is not a plain Ed25519 key, or the input is something else.
    pub fn sign_jws(&self, input: &str) -> Result<[u8; JWS_SIGNATURE_BYTES], JwsError> {
        self.verifier.check_jws(input)?;
        let Pair::Ed25519(pair) = &self.pair else { return Err(JwsError::Algorithm) };
        let signature = pair.try_sign(input.as_bytes()).map_err(|_| JwsError::Failed)?;
        signature.as_ref().try_into().map_err(|_| JwsError::Failed)
    }
}

/// Whether a text is what a compact JWS signs: header and payload, neither of them empty.
fn is_jws_input(input: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    input.split_once('.').is_some_and(|(header, payload)| part(header) && part(payload))
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerKey({}+{:08x}, {:?})", self.verifier.name, self.verifier.id, self.verifier.algorithm)
    }
}

/// What a signature line may have as the name of its key.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c == '+' || c < ' ')
}

fn check_name(name: &str) -> Result<(), KeyError> {
    if is_name(name) && name.len() <= KEY_NAME_BYTES_MAX { Ok(()) } else { Err(KeyError::Name) }
}

/// Name, id and Base64. Names have no plus, Base64 may.
fn split_key(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once('+')?;
    let (id, encoded) = rest.split_once('+')?;
    Some((name, id, encoded))
}

fn key_id(name: &str, algorithm: Algorithm, public: &[u8]) -> u32 {
    let hash = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', algorithm.type_byte()])
        .chain_update(public)
        .finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

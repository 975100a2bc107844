//! Signed notes (C2SP `signed-note`): a text, a blank line, and a line for each signature.
//!
//! Owns the note's syntax and the rule when its text may be trusted: some known key signed it, and no known key's signature is
//! wrong. Signatures of unknown keys are kept as they are, so that a note passes through unharmed. Keys are in `key.rs`;
//! what exactly each algorithm signs is in [`crate::cosignature`].
//!
//! Limits: [`NOTE_BYTES_MAX`], [`SIGNATURES_MAX`].

mod key;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use key::{
    Algorithm, JWS_SIGNATURE_BYTES, JwsError, KEY_NAME_BYTES_MAX, KeyError, SEED_BYTES, SignError,
    SignatureError, SignerKey, VerifierKey,
};

/// A note is at most this long: room for 100 signatures of 5 kB in Base64, and for a text.
pub const NOTE_BYTES_MAX: usize = 1 << 20;
/// A note has at most this many signatures, as with Go's package note.
pub const SIGNATURES_MAX: usize = 100;

const SIGNATURE_MARK: &str = "— ";
const KEY_ID_BYTES: usize = 4;

/// A text with signatures that were not verified yet: see [`Self::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<Signature>,
}

/// One signature line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    name: String,
    key_id: u32,
    bytes: Vec<u8>,
}

/// A signature that a known key made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified<'k> {
    /// The key.
    pub key: &'k VerifierKey,
    /// For cosignatures the signed time in seconds since the Unix epoch; 0 if the cosigner makes no statement about time.
    pub time: Option<u64>,
}

/// Why bytes are not a signed note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Longer than [`NOTE_BYTES_MAX`].
    #[error("a note of {0} bytes is too long")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("the note is not UTF-8")]
    Utf8,
    /// A control character other than newline.
    #[error("the note has a control character at byte {0}")]
    ControlCharacter(usize),
    /// A note's text ends with a newline.
    #[error("the note's text does not end with a newline")]
    Text,
    /// There is no blank line with signature lines after it.
    #[error("the note has no signatures")]
    NoSignatures,
    /// More than [`SIGNATURES_MAX`].
    #[error("the note has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// A line after the last blank line is not a signature line.
    #[error("signature line {0} is malformed")]
    SignatureLine(usize),
}

/// Why a note's text must not be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No known key signed the note.
    #[error("no known key signed the note")]
    NoKnownKey,
    /// A signature in the name of a known key is not that key's.
    #[error("the signature of key {name}+{key_id:08x} is invalid")]
    Invalid {
        /// Name of the key.
        name: String,
        /// Id of the key.
        key_id: u32,
        /// What is wrong.
        source: SignatureError,
    },
    /// Two different known keys have the same name and id.
    #[error("two keys are called {name}+{key_id:08x}")]
    Ambiguous {
        /// Name of both keys.
        name: String,
        /// Id of both keys.
        key_id: u32,
    },
}

impl SignedNote {
    /// Signs a text with each of `signers`. `time` in seconds since the Unix epoch goes into cosignatures; plain Ed25519
    /// signatures have none.
    ///
    /// # Errors
    /// When the text cannot be a note's, there is no signer, or a signer cannot sign it.
    pub fn sign<'s>(
        text: String,
        signers: impl IntoIterator<Item = &'s SignerKey>,
        time: u64,
    ) -> Result<Self, SignError> {
        check_text(&text)?;
        let mut note = Self { text, signatures: Vec::new() };
        for signer in signers {
            let signature = signer.sign(&note.text, time)?;
            note.add_signature(signature)?;
        }
        if note.signatures.is_empty() { Err(NoteError::NoSignatures.into()) } else { Ok(note) }
    }

    /// Reads a note. Accepts exactly what formatting the result gives back.
    ///
    /// # Errors
    /// When the bytes are not a note.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteError::TooLong(bytes.len()));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| NoteError::Utf8)?;
        check_characters(note)?;
        // The text keeps its last newline; the blank line's own belongs to neither part.
        let split = note.rfind("\n\n").ok_or(NoteError::NoSignatures)?;
        let (text, lines) = (&note[..=split], &note[split + 2..]);
        if lines.is_empty() {
            return Err(NoteError::NoSignatures);
        }
        let mut signatures = Vec::new();
        for (number, line) in (1..).zip(lines.split_inclusive('\n')) {
            if number > SIGNATURES_MAX {
                return Err(NoteError::TooManySignatures);
            }
            let line = line.strip_suffix('\n').ok_or(NoteError::SignatureLine(number))?;
            signatures.push(Signature::parse_line(line).ok_or(NoteError::SignatureLine(number))?);
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// The text with its final newline. To be trusted only after [`Self::verify`].
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures in their order, of known and of unknown keys.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature, such as a witness's cosignature, after the others.
    ///
    /// # Errors
    /// When the note has as many signatures or bytes as it may have.
    pub fn add_signature(&mut self, signature: Signature) -> Result<(), NoteError> {
        if self.signatures.len() == SIGNATURES_MAX {
            return Err(NoteError::TooManySignatures);
        }
        self.signatures.push(signature);
        let length = self.to_string().len();
        if length > NOTE_BYTES_MAX {
            self.signatures.pop();
            return Err(NoteError::TooLong(length));
        }
        Ok(())
    }

    /// Checks every signature that is in the name of one of `keys`, and returns the keys that signed, each once, in the order
    /// of their signatures.
    ///
    /// # Errors
    /// When none of the keys signed, any signature of theirs is invalid, or two of the keys cannot be told apart.
    pub fn verify<'k>(&self, keys: &'k [VerifierKey]) -> Result<Vec<Verified<'k>>, VerifyError> {
        let mut verified: Vec<Verified<'k>> = Vec::new();
        for signature in &self.signatures {
            let Some(key) = signature.find_key(keys)? else { continue };
            let time = key.verify(&self.text, &signature.bytes).map_err(|source| VerifyError::Invalid {
                name: key.name().to_owned(),
                key_id: key.id(),
                source,
            })?;
            if !verified.iter().any(|known| known.key == key) {
                verified.push(Verified { key, time });
            }
        }
        if verified.is_empty() { Err(VerifyError::NoKnownKey) } else { Ok(verified) }
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| writeln!(f, "{signature}"))
    }
}

impl Signature {
    pub(crate) fn new(name: String, key_id: u32, bytes: Vec<u8>) -> Self {
        Self { name, key_id, bytes }
    }

    /// Reads one line, without its newline; this is how a witness answers.
    #[must_use]
    pub fn parse_line(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix(SIGNATURE_MARK)?.split_once(' ')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (key_id, signature) = bytes.split_first_chunk::<KEY_ID_BYTES>()?;
        if !key::is_name(name) || signature.is_empty() {
            return None;
        }
        Some(Self::new(name.to_owned(), u32::from_be_bytes(*key_id), signature.to_vec()))
    }

    /// Name of the key that this claims to be of.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Id of the key that this claims to be of.
    #[must_use]
    pub fn key_id(&self) -> u32 {
        self.key_id
    }

    /// The signature itself, without the key's id; of a cosignature, beginning with the time.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn find_key<'k>(&self, keys: &'k [VerifierKey]) -> Result<Option<&'k VerifierKey>, VerifyError> {
        let mut found = keys.iter().filter(|key| key.id() == self.key_id && key.name() == self.name);
        let Some(key) = found.next() else { return Ok(None) };
        if found.any(|other| other != key) {
            return Err(VerifyError::Ambiguous { name: self.name.clone(), key_id: self.key_id });
        }
        Ok(Some(key))
    }
}

/// The line without its newline.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.key_id.to_be_bytes(), self.bytes.as_slice()].concat();
        write!(f, "{SIGNATURE_MARK}{} {}", self.name, STANDARD.encode(bytes))
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    check_characters(text)?;
    if text.ends_with('\n') { Ok(()) } else { Err(NoteError::Text) }
}

fn check_characters(note: &str) -> Result<(), NoteError> {
    match note.bytes().position(|byte| byte < b' ' && byte != b'\n') {
        Some(at) => Err(NoteError::ControlCharacter(at)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

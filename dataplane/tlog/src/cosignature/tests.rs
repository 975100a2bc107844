use ml_dsa::{Keypair, MlDsa44, Signer, SigningKey, Verifier};

use super::*;
use crate::hash::Hash;
use crate::note::{
    Algorithm, SignError, Signature, SignatureError, SignedNote, SignerKey, VerifierKey, VerifyError,
};

/// A checkpoint with four signatures, and their keys, made by other software: `github.com/transparency-dev/formats` v0.1.1 for
/// the cosignatures, `golang.org/x/mod/sumdb/note` for the rest. The keys' seeds are 32 bytes 1, 2, 3 and 4.
const COSIGNED: &str = include_str!("../../vectors/cosigned.note");
const COSIGNED_KEYS: &str = include_str!("../../vectors/cosigned.vkeys");
const COSIGNED_TIME: u64 = 1_795_263_696;

const LOG: &str = "log.example/certeus";
const SIGNERS: [(&str, Algorithm, u8); 4] = [
    (LOG, Algorithm::Ed25519, 1),
    (LOG, Algorithm::MlDsa44, 2),
    ("witness.example/w1", Algorithm::CosignatureV1, 3),
    ("witness.example/w2", Algorithm::MlDsa44, 4),
];

fn signers() -> [SignerKey; 4] {
    SIGNERS.map(|(name, algorithm, seed)| SignerKey::from_seed(name, algorithm, [seed; 32]).unwrap())
}

fn text() -> String {
    Checkpoint::new(LOG, 70_000, Hash([7; 32])).unwrap().to_text()
}

#[test]
fn keys_and_signatures_of_other_software_are_understood() {
    let keys: Vec<_> = COSIGNED_KEYS.lines().map(|line| VerifierKey::parse(line).unwrap()).collect();
    assert_eq!(signers().map(|signer| signer.verifier().clone()).as_slice(), keys);
    let note = SignedNote::parse(COSIGNED.as_bytes()).unwrap();
    let verified = note.verify(&keys).unwrap();
    let times: Vec<_> = verified.iter().map(|signature| signature.time).collect();
    assert_eq!(times, [None, Some(COSIGNED_TIME), Some(COSIGNED_TIME), Some(COSIGNED_TIME)]);
    assert_eq!(note.to_string(), COSIGNED);
    // One witness known: the others' signatures are no hindrance.
    assert_eq!(note.verify(&keys[3..]).unwrap().len(), 1);
}

#[test]
fn all_algorithms_sign_one_checkpoint() {
    let signers = signers();
    let note = SignedNote::sign(text(), &signers, 1_700_000_000).unwrap();
    let note = SignedNote::parse(note.to_string().as_bytes()).unwrap();
    let keys: Vec<_> = signers.iter().map(|signer| signer.verifier().clone()).collect();
    let times: Vec<_> = note.verify(&keys).unwrap().iter().map(|signature| signature.time).collect();
    assert_eq!(times, [None, Some(1_700_000_000), Some(1_700_000_000), Some(1_700_000_000)]);
    for signer in &signers {
        let secret = signer.to_secret_text();
        assert_eq!(SignerKey::parse(&secret).unwrap().verifier(), signer.verifier());
    }
}

/// The second implementation of ML-DSA-44: the same seed is the same key, and each accepts what the other signs.
#[test]
fn ml_dsa_44_agrees_with_another_implementation() {
    for seed in [[0; 32], [2; 32], [0xFF; 32], std::array::from_fn(|i| u8::try_from(i).unwrap())] {
        let ours = SignerKey::from_seed(LOG, Algorithm::MlDsa44, seed).unwrap();
        let theirs = SigningKey::<MlDsa44>::from_seed(&seed.into());
        assert_eq!(ours.verifier().public_key(), theirs.verifying_key().encode().as_slice());
        let message = ml_dsa_44_message(LOG, &text(), 5).unwrap();

        let signature = ours.sign(&text(), 5).unwrap();
        let raw = ml_dsa::Signature::<MlDsa44>::try_from(&signature.bytes()[TIME_BYTES..]).unwrap();
        theirs.verifying_key().verify(&message, &raw).unwrap();

        let raw = theirs.sign(&message).encode();
        let timed = [&5u64.to_be_bytes()[..], raw.as_slice()].concat();
        assert_eq!(ours.verifier().verify(&text(), &timed), Ok(Some(5)));
        let other_time = [&6u64.to_be_bytes()[..], raw.as_slice()].concat();
        assert_eq!(ours.verifier().verify(&text(), &other_time), Err(SignatureError::Mismatch));
    }
}

#[test]
fn what_is_signed_is_laid_out_as_specified() {
    assert_eq!(
        v1_message(&text(), 1_679_315_147).unwrap(),
        format!("cosignature/v1\ntime 1679315147\n{}", text()).into_bytes()
    );
    let message = ml_dsa_44_message("w", &text(), 0x0102).unwrap();
    let mut expected = b"subtree/v1\n\0\x01w\0\0\0\0\0\0\x01\x02\x13log.example/certeus".to_vec();
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
    expected.extend([7; 32]);
    assert_eq!(message, expected);
    // Its algorithm covers no extension lines.
    assert_eq!(ml_dsa_44_message("w", &format!("{}more\n", text()), 0x0102).unwrap(), expected);
}

#[test]
fn a_time_is_bound_to_its_signature_and_bounded() {
    for signer in &signers()[1..] {
        let sign = |time| signer.sign(&text(), time);
        let verify = |signature: &[u8]| signer.verifier().verify(&text(), signature);
        for time in [0, 1, TIME_MAX] {
            assert_eq!(verify(sign(time).unwrap().bytes()), Ok(Some(time)));
        }
        assert_eq!(sign(TIME_MAX + 1), Err(SignError::Message(MessageError::Time(TIME_MAX + 1))));
        let mut bytes = sign(9).unwrap().bytes().to_vec();
        bytes[7] ^= 1;
        assert_eq!(verify(&bytes), Err(SignatureError::Mismatch));
        bytes[0] = 0x80;
        assert!(matches!(verify(&bytes), Err(SignatureError::Message(MessageError::Time(_)))));
        let want = bytes.len();
        assert_eq!(verify(&bytes[1..]), Err(SignatureError::Length { got: want - 1, want }));
        assert_eq!(verify(&[]), Err(SignatureError::Length { got: 0, want }));
    }
}

#[test]
fn only_checkpoints_are_cosigned() {
    let [plain, rest @ ..] = signers();
    assert!(plain.sign("any text\n", 0).is_ok());
    let no_checkpoint = MessageError::Checkpoint(CheckpointError::Size);
    for signer in rest {
        assert_eq!(signer.sign("any text\n", 0), Err(SignError::Message(no_checkpoint)));
    }
    let long = Checkpoint::new(&"x".repeat(256), 1, Hash([0; 32])).unwrap().to_text();
    let signer = SignerKey::from_seed(LOG, Algorithm::MlDsa44, [2; 32]).unwrap();
    assert_eq!(signer.sign(&long, 0), Err(SignError::Message(MessageError::TooLong("log's origin"))));
}

#[test]
fn a_signature_does_not_serve_another_cosigner() {
    // The ML-DSA-44 message names its cosigner: the same secret under another name is another key.
    let [_, log, ..] = signers();
    let other = SignerKey::from_seed("witness.example/w3", Algorithm::MlDsa44, [2; 32]).unwrap();
    let signature = log.sign(&text(), 3).unwrap();
    assert_eq!(other.verifier().verify(&text(), signature.bytes()), Err(SignatureError::Mismatch));
}

#[test]
fn a_witness_adds_its_line() {
    let [log, _, witness, _] = signers();
    let mut note = SignedNote::sign(text(), [&log], 0).unwrap();
    let line = witness.sign(note.text(), 12).unwrap().to_string();
    note.add_signature(Signature::parse_line(&line).unwrap()).unwrap();
    let keys = [log.verifier().clone(), witness.verifier().clone()];
    assert_eq!(note.verify(&keys).unwrap().len(), 2);
    // The same line below another checkpoint is a witness's known key with a wrong signature.
    let larger = Checkpoint::new(LOG, 70_001, Hash([7; 32])).unwrap().to_text();
    let mut forged = SignedNote::sign(larger, [&log], 0).unwrap();
    forged.add_signature(Signature::parse_line(&line).unwrap()).unwrap();
    assert!(matches!(forged.verify(&keys), Err(VerifyError::Invalid { .. })));
}

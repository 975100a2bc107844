use super::*;
use crate::hash::leaf_hash;
use crate::note::{Algorithm, SignerKey};
use crate::tree::root_of;

const ORIGIN: &str = "example.com/fancylog";

fn example(extra: &[u8]) -> (TlogProof, SignerKey, Hash) {
    let leaves: Vec<_> = (0..5u8).map(|i| leaf_hash(&[i])).collect();
    let read = |level: u8, index: u64| {
        let index = usize::try_from(index).unwrap();
        Ok::<_, std::convert::Infallible>(root_of(&leaves[index << level..(index + 1) << level]))
    };
    let hashes = proof::inclusion(3, 5, read).unwrap();
    let signer = SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [7; 32]).unwrap();
    let text = Checkpoint::new(ORIGIN, 5, root_of(&leaves)).unwrap().to_text();
    let checkpoint = SignedNote::sign(text, [&signer], 0).unwrap();
    (TlogProof { extra: extra.to_vec(), index: 3, hashes, checkpoint }, signer, leaves[3])
}

#[test]
fn a_proof_file_verifies_and_survives_formatting() {
    for extra in [&b""[..], b"salt"] {
        let (proof, signer, leaf) = example(extra);
        let text = proof.to_string();
        let parsed = TlogProof::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed, proof);
        let keys = [signer.verifier().clone()];
        let (checkpoint, signers) = parsed.verify(&leaf, ORIGIN, &keys).unwrap();
        assert_eq!((checkpoint.size(), signers.len()), (5, 1));
        assert_eq!(
            parsed.verify(&leaf_hash(b"other"), ORIGIN, &keys),
            Err(VerifyError::Inclusion(proof::VerifyError::Root))
        );
        let moved = TlogProof { index: 2, ..parsed };
        assert_eq!(moved.verify(&leaf, ORIGIN, &keys), Err(VerifyError::Inclusion(proof::VerifyError::Root)));
    }
}

#[test]
fn no_altered_byte_goes_unnoticed() {
    let (proof, signer, leaf) = example(b"");
    let keys = [signer.verifier().clone()];
    let good = proof.to_string().into_bytes();
    for place in 0..good.len() {
        for flip in [1, 2, 0x20, 0x80] {
            let mut altered = good.clone();
            altered[place] ^= flip;
            let accepted =
                TlogProof::parse(&altered).is_ok_and(|proof| proof.verify(&leaf, ORIGIN, &keys).is_ok());
            assert!(!accepted, "byte {place}: {}", String::from_utf8_lossy(&altered));
        }
    }
    for length in 0..good.len() {
        let cut = TlogProof::parse(&good[..length]);
        assert!(!cut.is_ok_and(|proof| proof.verify(&leaf, ORIGIN, &keys).is_ok()), "{length} bytes");
    }
}

#[test]
fn what_is_not_a_proof_file_is_refused() {
    let (proof, ..) = example(b"salt");
    let good = proof.to_string();
    let refused = |text: String, error| assert_eq!(TlogProof::parse(text.as_bytes()), Err(error), "{text}");
    refused(String::new(), ParseError::Header);
    refused(good.replace("proof@v1", "proof@v2"), ParseError::Header);
    refused(good.replace("extra c2FsdA==", "extra "), ParseError::Extra);
    refused(good.replace("extra c2FsdA==", "extra c2FsdA"), ParseError::Extra);
    refused(good.replace("extra c2FsdA==", "extra c2FsdA==\nextra c2FsdA=="), ParseError::Index);
    refused(good.replace("index 3", "index 03"), ParseError::Index);
    refused(good.replace("index 3", "index 3\nAAAA"), ParseError::Hash { line: 1, source: HashTextError });
    let hash = format!("{}\n", leaf_hash(b""));
    refused(good.replace("index 3\n", &format!("index 3\n{}", hash.repeat(65))), ParseError::TooManyHashes);
    refused(good.split("\n\n").next().unwrap_or_default().to_owned(), ParseError::NoCheckpoint);
    refused(
        good.split("\n\n").next().unwrap_or_default().to_owned() + "\n\n",
        ParseError::Checkpoint(NoteError::NoSignatures),
    );
    assert_eq!(TlogProof::parse(b"\xff"), Err(ParseError::Utf8));
}

use super::*;
use crate::note::{Algorithm, SignerKey};

const TEXT: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

#[test]
fn the_checkpoint_of_the_specification() {
    let checkpoint = Checkpoint::from_text(TEXT).unwrap();
    assert_eq!(checkpoint.origin(), "example.com/behind-the-sofa");
    assert_eq!(checkpoint.size(), 20_852_163);
    assert_eq!(checkpoint.to_text(), TEXT);
    let extended = format!("{TEXT}one\ntwo words\n");
    let checkpoint = Checkpoint::from_text(&extended).unwrap();
    assert_eq!(checkpoint.extensions().collect::<Vec<_>>(), ["one", "two words"]);
    assert_eq!(checkpoint.to_text(), extended);
}

#[test]
fn what_is_not_a_checkpoint_is_refused() {
    let refused = |text: &str, error| assert_eq!(Checkpoint::from_text(text), Err(error), "{text:?}");
    refused("", CheckpointError::Origin);
    refused(&TEXT.replace("example.com/behind-the-sofa", ""), CheckpointError::Origin);
    refused("a\n", CheckpointError::Size);
    for size in ["", "+1", "-1", "01", "00", " 1", "1.", "9223372036854775808", "18446744073709551616"] {
        refused(&TEXT.replace("20852163", size), CheckpointError::Size);
    }
    refused(TEXT.trim_end(), CheckpointError::Root);
    refused(&TEXT.replace("q2I=", "q2I"), CheckpointError::Root);
    refused(&TEXT.replace("q2I=", "q2J="), CheckpointError::Root);
    refused(&format!("{TEXT}\n"), CheckpointError::Extension);
    refused(&format!("{TEXT}extension"), CheckpointError::Extension);
    refused(&format!("{TEXT}a\n\nb\n"), CheckpointError::Extension);
    assert!(Checkpoint::from_text(&TEXT.replace("20852163", "9223372036854775807")).is_ok());
    assert_eq!(Checkpoint::new("", 0, Hash([0; 32])), Err(CheckpointError::Origin));
    assert_eq!(Checkpoint::new("a\nb", 0, Hash([0; 32])), Err(CheckpointError::Origin));
    assert_eq!(Checkpoint::new("a", u64::MAX, Hash([0; 32])), Err(CheckpointError::Size));
}

#[test]
fn only_the_expected_logs_signature_opens_it() {
    let checkpoint = Checkpoint::from_text(TEXT).unwrap();
    let log = SignerKey::from_seed(checkpoint.origin(), Algorithm::Ed25519, [1; 32]).unwrap();
    let other = SignerKey::from_seed(checkpoint.origin(), Algorithm::Ed25519, [2; 32]).unwrap();
    let note = SignedNote::sign(checkpoint.to_text(), [&log], 0).unwrap().to_string();
    let keys = [log.verifier().clone()];
    let (opened, signers) = Checkpoint::open(note.as_bytes(), checkpoint.origin(), &keys).unwrap();
    assert_eq!((opened, signers.len()), (checkpoint.clone(), 1));
    assert_eq!(
        Checkpoint::open(note.as_bytes(), "example.com/other", &keys),
        Err(OpenError::Origin { found: checkpoint.origin().to_owned() })
    );
    assert_eq!(
        Checkpoint::open(note.as_bytes(), checkpoint.origin(), &[other.verifier().clone()]),
        Err(OpenError::Signature(VerifyError::NoKnownKey))
    );
    let larger = note.replace("20852163", "20852164");
    assert!(matches!(
        Checkpoint::open(larger.as_bytes(), checkpoint.origin(), &keys),
        Err(OpenError::Signature(VerifyError::Invalid { .. }))
    ));
}

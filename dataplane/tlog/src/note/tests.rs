use super::*;

/// The key pair and the note that the documentation of Go's package note shows.
const SECRET: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const PUBLIC: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const TEXT: &str =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const PETER: &str = "— PeterNeumann \
    x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const ENOCH: &str = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";
const ENOCH_PUBLIC: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";

fn keys<const N: usize>(texts: [&str; N]) -> [VerifierKey; N] {
    texts.map(|text| VerifierKey::parse(text).unwrap())
}

#[test]
fn signs_and_verifies_as_go_does() {
    let signer = SignerKey::parse(SECRET).unwrap();
    assert_eq!(signer.to_secret_text().as_str(), SECRET);
    assert_eq!(signer.verifier().to_string(), PUBLIC);
    let note = SignedNote::sign(TEXT.to_owned(), [&signer], 0).unwrap();
    assert_eq!(note.to_string(), format!("{TEXT}\n{PETER}"));
    assert_eq!(SignedNote::parse(note.to_string().as_bytes()), Ok(note));
}

#[test]
fn verifies_the_note_of_the_specification() {
    let note = "This is an example message.\n\n\
        — example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
    let keys = keys(["example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"]);
    let verified = SignedNote::parse(note.as_bytes()).unwrap().verify(&keys).unwrap();
    assert_eq!(verified, [Verified { key: &keys[0], time: None }]);
}

#[test]
fn every_known_signature_must_hold_and_one_must_be_there() {
    let parse = |lines: &str| SignedNote::parse(format!("{TEXT}\n{lines}").as_bytes()).unwrap();
    let both = format!("{PETER}{ENOCH}");
    let [peter, enoch] = keys([PUBLIC, ENOCH_PUBLIC]);
    let names = |lines: &str, keys: &[VerifierKey]| {
        parse(lines).verify(keys).map(|v| v.iter().map(|v| v.key.name().to_owned()).collect::<Vec<_>>())
    };
    let known = [peter.clone(), enoch.clone()];
    assert_eq!(names(&both, &known), Ok(vec!["PeterNeumann".to_owned(), "EnochRoot".to_owned()]));
    assert_eq!(names(&both, &known[1..]), Ok(vec!["EnochRoot".to_owned()]));
    assert_eq!(names(&PETER.repeat(3), &known), Ok(vec!["PeterNeumann".to_owned()]));
    // A key given twice is no other key.
    assert_eq!(names(PETER, &[peter.clone(), peter]).map(|v| v.len()), Ok(1));
    assert_eq!(names(PETER, &known[1..]), Err(VerifyError::NoKnownKey));
    assert_eq!(names(PETER, &[]), Err(VerifyError::NoKnownKey));

    let altered = ENOCH.replace("rwz+eBzm", "rwz+eCzm");
    let invalid = VerifyError::Invalid {
        name: "EnochRoot".to_owned(),
        key_id: 0xaf0c_fe78,
        source: SignatureError::Mismatch,
    };
    assert_eq!(names(&format!("{PETER}{altered}"), &known), Err(invalid));
    assert_eq!(names(&format!("{PETER}{altered}"), &known[..1]).map(|v| v.len()), Ok(1));
}

#[test]
fn what_is_not_a_note_is_refused() {
    let malformed =
        |note: String, error| assert_eq!(SignedNote::parse(note.as_bytes()), Err(error), "{note:?}");
    malformed(String::new(), NoteError::NoSignatures);
    malformed(TEXT.to_owned(), NoteError::NoSignatures);
    malformed(format!("{TEXT}\n"), NoteError::NoSignatures);
    malformed(format!("{TEXT}{PETER}"), NoteError::NoSignatures);
    malformed(format!("{TEXT}\n{}", PETER.trim_end()), NoteError::SignatureLine(1));
    malformed(format!("{TEXT}\n{PETER}Unexpected line.\n"), NoteError::SignatureLine(2));
    malformed(
        format!("{TEXT}\n{}", PETER.replace("PeterNeumann", "Peter Neumann")),
        NoteError::SignatureLine(1),
    );
    malformed(
        format!("{TEXT}\n{}", PETER.replace("PeterNeumann", "Peter+Neumann")),
        NoteError::SignatureLine(1),
    );
    malformed(
        format!("{TEXT}\n{}", PETER.replace("PeterNeumann", "Peter\u{a0}Neumann")),
        NoteError::SignatureLine(1),
    );
    malformed(format!("{TEXT}\n{}", PETER.replace("AM=", "AM")), NoteError::SignatureLine(1));
    malformed(format!("{TEXT}\n— PeterNeumann x08goA==\n"), NoteError::SignatureLine(1));
    malformed(format!("\u{1}{TEXT}\n{PETER}"), NoteError::ControlCharacter(0));
    malformed(format!("{TEXT}\n{PETER}").replace('\n', "\r\n"), NoteError::ControlCharacter(56));
    malformed(format!("{TEXT}\n{}", PETER.repeat(101)), NoteError::TooManySignatures);
    assert!(SignedNote::parse(format!("{TEXT}\n{}", PETER.repeat(100)).as_bytes()).is_ok());
    assert_eq!(SignedNote::parse(b"\xff\n\n"), Err(NoteError::Utf8));
    assert_eq!(
        SignedNote::parse(&vec![b'a'; NOTE_BYTES_MAX + 1]),
        Err(NoteError::TooLong(NOTE_BYTES_MAX + 1))
    );
}

#[test]
fn only_a_notes_text_is_signed() {
    let signer = SignerKey::parse(SECRET).unwrap();
    let sign = |text: &str| SignedNote::sign(text.to_owned(), [&signer], 0).map(|_| ());
    assert_eq!(sign("abc"), Err(NoteError::Text.into()));
    assert_eq!(sign(""), Err(NoteError::Text.into()));
    assert_eq!(sign("a\tb\n"), Err(NoteError::ControlCharacter(1).into()));
    assert_eq!(SignedNote::sign("a\n".to_owned(), [], 0), Err(NoteError::NoSignatures.into()));
}

#[test]
fn no_mangled_key_is_a_key() {
    for (text, is_key) in [
        (PUBLIC, (|text| VerifierKey::parse(text).is_ok()) as fn(&str) -> bool),
        (SECRET, |text| SignerKey::parse(text).is_ok()),
    ] {
        assert!(is_key(text));
        for start in 0..text.len() {
            for end in start..=text.len() {
                assert!(!is_key(&text[start..end]) || end - start == text.len());
            }
        }
        for place in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] += 1;
            assert!(!is_key(std::str::from_utf8(&bytes).unwrap()), "byte {place}");
        }
    }
    let error = |text: &str| VerifierKey::parse(text).unwrap_err();
    let long = "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==";
    assert!(matches!(error(long), KeyError::Form(_) | KeyError::Length { .. }));
    let unknown = "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    assert_eq!(error(unknown), KeyError::Algorithm(0x65));
    assert_eq!(error(&PUBLIC.replace("Peter", "Paul")), KeyError::Id);
    assert_eq!(error(&PUBLIC.replace("PeterNeumann", "")), KeyError::Name);
    assert_eq!(VerifierKey::new("a b", Algorithm::Ed25519, &[0; 32]).unwrap_err(), KeyError::Name);
    assert_eq!(VerifierKey::new("", Algorithm::Ed25519, &[0; 32]).unwrap_err(), KeyError::Name);
    assert_eq!(
        VerifierKey::new("a", Algorithm::Ed25519, &[0; 31]).unwrap_err(),
        KeyError::Length { got: 31, want: 32 }
    );
}

#[test]
fn a_secret_key_does_not_show_itself() {
    let signer = SignerKey::parse(SECRET).unwrap();
    assert_eq!(format!("{signer:?}"), "SignerKey(PeterNeumann+c74f20a3, Ed25519)");
}

#[test]
fn a_jws_is_signed_by_a_note_key_and_no_note_can_be_taken_for_one() {
    // RFC 8037, appendix A.4.
    let seed: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
        0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    let input = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let expected = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let key = SignerKey::from_seed("a", Algorithm::Ed25519, seed).unwrap();
    let signature = key.sign_jws(input).unwrap();
    assert_eq!(base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(signature), expected);
    assert_eq!(key.verifier().verify_jws(input, &signature), Ok(()));
    assert_eq!(key.verifier().verify_jws("eyJhbGciOiJFZERTQSJ9.Rg", &signature), Err(JwsError::Mismatch));
    for text in ["a\n1\nAA==\n", "a.b\n", "a", "a.", ".b", "a.b.c", "a.b=", ""] {
        assert_eq!(key.sign_jws(text), Err(JwsError::Input), "{text:?}");
        assert_eq!(key.verifier().verify_jws(text, &signature), Err(JwsError::Input), "{text:?}");
    }
    for algorithm in [Algorithm::CosignatureV1, Algorithm::MlDsa44] {
        let other = SignerKey::from_seed("a", algorithm, seed).unwrap();
        assert_eq!(other.sign_jws(input), Err(JwsError::Algorithm));
        assert_eq!(other.verifier().verify_jws(input, &signature), Err(JwsError::Algorithm));
    }
}

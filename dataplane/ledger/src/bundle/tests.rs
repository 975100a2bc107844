use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use certeus_tlog::note::{Algorithm, SignerKey};
use certeus_tlog::proof::inclusion;
use certeus_tlog::tree::root_of;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::envelope::{ContentType, ENTRY_DOMAIN, EnvelopeHead};

const ORIGIN: &str = "log.example/default";

fn signer(origin: &str, seed: u8) -> SignerKey {
    SignerKey::from_seed(origin, Algorithm::Ed25519, [seed; 32]).unwrap()
}

fn keys(origin: &str, seed: u8) -> SigningKeys {
    signer(origin, seed).to_secret_text().parse().unwrap()
}

fn trust() -> Trust {
    let keys = vec![signer(ORIGIN, 9).verifier().clone(), signer(ORIGIN, 1).verifier().clone()];
    Trust { origin: ORIGIN.to_owned(), ledger: "default".to_owned(), keys }
}

fn id(n: u64) -> Uuid {
    Uuid::from_u128(0x019c_1126_6400_7abc_8def_0123_4560_0000 + u128::from(n))
}

fn claims(claims: &Value) -> Claims {
    Claims::new(&RawValue::from_string(claims.to_string()).unwrap()).unwrap()
}

/// Three events, of which the last was erased; all of them in a log of five.
fn sample() -> Bundle {
    let payload = |n: u64| format!(r#"{{"type":"t","timestamp":1769860800,"n":{n}}}"#).into_bytes();
    let (mut extras, mut leaves) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let payload = payload(n);
        let time = Timestamp::from_micros(1_769_860_800_000_000).unwrap();
        let (content_type, producer) = (ContentType::Json, None);
        let head = EnvelopeHead {
            ledger: "default",
            id: id(n),
            kind: "t",
            time,
            producer,
            content_type,
            key_id: &[],
        };
        let mut hashed = Vec::new();
        let entry = Envelope { head, payload: &payload }.entry(&[7; 32], &mut hashed);
        extras.push(if n == 3 {
            [&[EXTRA_ERASED], &entry[..]].concat()
        } else {
            [&[EXTRA_INTACT], &hashed[ENTRY_DOMAIN.len()..]].concat()
        });
        leaves.push(leaf_hash(&entry));
    }
    let read = |level: u8, index: u64| {
        let (start, width) = (usize::try_from(index << level).unwrap(), 1 << level);
        Ok::<_, ()>(root_of(&leaves[start..start + width]))
    };
    let entry = |n: u64| Entry {
        id: id(n),
        index: n,
        payload: (n != 3).then(|| payload(n)),
        extra: extras[usize::try_from(n).unwrap()].clone(),
        hashes: inclusion(n, 5, read).unwrap(),
    };
    let note = keys(ORIGIN, 1).sign(5, root_of(&leaves), 0).unwrap().note;
    Bundle {
        rid: id(77),
        origin: ORIGIN.to_owned(),
        issued_at: Timestamp::from_micros(1_769_860_900_000_000).unwrap(),
        ledger: "default".to_owned(),
        claims: claims(&json!({"paid": {"amount": 1.50, "evidence": [id(1)]}})),
        entries: vec![entry(1), entry(4), entry(3)],
        checkpoint: SignedNote::parse(note.as_bytes()).unwrap(),
    }
}

fn sealed(bundle: &Bundle) -> String {
    bundle.sign(&keys(ORIGIN, 1)).unwrap()
}

/// Signs whatever it is told to.
fn forged(header: &str, payload: &[u8]) -> String {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let input = format!("{}.{}", encode(header.as_bytes()), encode(payload));
    let signature = signer(ORIGIN, 1).sign_jws(&input).unwrap();
    format!("{input}.{}", encode(&signature))
}

fn header() -> String {
    let kid = signer(ORIGIN, 1).verifier().id();
    format!(r#"{{"alg":"EdDSA","kid":"{kid:08x}","typ":"certeus-bundle+jws"}}"#)
}

fn refusal(bundle: &str) -> String {
    Bundle::open(bundle, &trust()).unwrap_err().to_string()
}

#[test]
fn a_bundle_opens_and_each_entry_is_a_proof_file() {
    let bundle = sample();
    let jws = sealed(&bundle);
    let Opened { bundle: opened, checkpoint } = Bundle::open(&jws, &trust()).unwrap();
    assert_eq!((opened.rid, opened.issued_at, &opened.entries), (id(77), bundle.issued_at, &bundle.entries));
    assert_eq!((checkpoint.size(), checkpoint.origin()), (5, ORIGIN));
    // Kept as written.
    assert_eq!(opened.claims.as_json().get(), bundle.claims.as_json().get());
    for entry in &opened.entries {
        let file = entry.proof(&opened.checkpoint).to_string();
        let proof = TlogProof::parse(file.as_bytes()).unwrap();
        let leaf = leaf_hash(&entry.log_entry("default").unwrap());
        assert_eq!(proof.verify(&leaf, ORIGIN, &trust().keys).unwrap().0, checkpoint);
    }
    let decoded: Value = serde_json::from_str(&decoded(&jws).unwrap()).unwrap();
    assert_eq!(decoded["header"], serde_json::from_str::<Value>(&header()).unwrap());
    assert_eq!(decoded["payload"]["claims"]["paid"]["evidence"][0], id(1).to_string());
    assert!(decoded["payload"]["entries"][2]["event"].is_null());
    // Nothing of an event is shown to who only logs.
    assert!(!format!("{opened:?}").contains("extra"));
}

/// The vector of `docs/formats/bundle.md`; `UPDATE_GOLDEN=1` rewrites it.
#[test]
fn the_published_vector_is_this_bundle() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/bundle.jws");
    let jws = sealed(&sample());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &jws).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), jws);
    let page = include_str!("../../../../docs/formats/bundle.md");
    assert!(
        page.contains(&format!("\n{}\n", signer(ORIGIN, 1).verifier())),
        "{}",
        signer(ORIGIN, 1).verifier()
    );
}

#[test]
fn another_algorithm_type_or_key_is_refused_before_anything_else() {
    let jws = sealed(&sample());
    let [_, payload, signature] = jws.split('.').collect::<Vec<_>>()[..] else { panic!("{jws}") };
    let with = |header: &str| format!("{}.{payload}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(header));
    for (header, expected) in [
        (r#"{"alg":"none"}"#.to_owned(), "`alg` is \"none\""),
        (header().replace("EdDSA", "HS256"), "`alg` is \"HS256\""),
        (header().replace("EdDSA", "eddsa"), "`alg` is \"eddsa\""),
        (header().replace("certeus-bundle+jws", "JWT"), "`typ` is Some(\"JWT\")"),
        (r#"{"alg":"EdDSA"}"#.to_owned(), "`typ` is None"),
        (r#"{"alg":"EdDSA","typ":"certeus-bundle+jws"}"#.to_owned(), "`kid` is \"\""),
        (
            r#"{"alg":"EdDSA","kid":"00000000","typ":"certeus-bundle+jws"}"#.to_owned(),
            "`kid` is \"00000000\"",
        ),
        (header().replace("\"alg\"", "\"crit\":[],\"alg\""), "unknown field `crit`"),
        (header().replace("\"alg\"", "\"alg\":\"EdDSA\",\"alg\""), "duplicate field `alg`"),
        (header().replace('{', "{ "), "the signature does not belong"),
        ("[]".to_owned(), "the header is not that of a bundle"),
    ] {
        let found = refusal(&with(&header));
        assert!(found.contains(expected), "{header}: {found}");
    }
    // Another key of the log than the one that signed; one of its name that nobody trusts; one of another log.
    let other = format!("{:08x}", signer(ORIGIN, 9).verifier().id());
    let ours = format!("{:08x}", signer(ORIGIN, 1).verifier().id());
    assert!(refusal(&with(&header().replace(&ours, &other))).contains("the signature does not belong"));
    assert!(refusal(&sample().sign(&keys(ORIGIN, 2)).unwrap()).contains("no Ed25519 key of this log"));
    assert!(refusal(&sample().sign(&keys("b.example", 1)).unwrap()).contains("no Ed25519 key of this log"));
}

#[test]
fn what_is_signed_and_proves_nothing_is_refused() {
    let check = |change: &dyn Fn(&mut Bundle), expected: &str| {
        let mut bundle = sample();
        change(&mut bundle);
        let found = refusal(&sealed(&bundle));
        assert!(found.contains(expected), "{expected}: {found}");
    };
    check(&|b| b.origin = "b.example".into(), "of the log \"b.example\"");
    check(&|b| b.ledger = "other".into(), "ledger \"other\"");
    check(&|b| b.rid = Uuid::from_u128(1), "`rid` is not valid");
    check(&|b| b.entries[1].index = 3, "entry 1, event 019c1126-6400-7abc-8def-012345600004: the proof");
    check(&|b| b.entries[0].id = id(2), "its envelope is of another event");
    check(&|b| b.entries[0].payload.as_mut().unwrap()[9] ^= 1, "does not lead to the root");
    check(&|b| b.entries[0].payload.as_mut().unwrap().push(b' '), "its envelope is of another event");
    check(&|b| b.entries[0].payload = None, "its `extra` is neither");
    check(&|b| b.entries[2].payload = Some(b"{}".to_vec()), "its `extra` is neither");
    check(&|b| b.entries[0].extra[5] ^= 1, "does not lead to the root");
    check(&|b| b.entries[0].extra.truncate(40), "holds no envelope");
    check(&|b| b.entries[0].extra.clear(), "its `extra` is neither");
    check(&|b| b.entries[0].hashes.truncate(1), "and must have 3");
    check(&|b| b.entries[0].hashes[0].0[0] ^= 1, "does not lead to the root");
    check(&|b| b.entries[1] = b.entries[0].clone(), "entry 1 repeats event");
    let checkpoint = |origin, seed, size| {
        let note = keys(origin, seed).sign(size, Hash([3; 32]), 0).unwrap().note;
        SignedNote::parse(note.as_bytes()).unwrap()
    };
    check(
        &|b| b.checkpoint = checkpoint("b.example", 1, 5),
        "the checkpoint is not to be trusted: no known key",
    );
    check(&|b| b.checkpoint = checkpoint(ORIGIN, 2, 5), "the checkpoint is not to be trusted: no known key");
    check(&|b| b.checkpoint = checkpoint(ORIGIN, 1, 5), "entry 0, event");
    check(&|b| b.checkpoint = checkpoint(ORIGIN, 1, 1), "entry 0, event");
}

#[test]
fn only_the_format_is_read() {
    let jws = sealed(&sample());
    for (text, expected) in [
        ("", "three parts"),
        ("a.b", "three parts"),
        (&format!("{jws}.") as &str, "three parts"),
        (&format!("{jws}="), "the signature is not base64url"),
        (&jws[..jws.len() - 2], "the signature does not belong"),
        (&jws[..jws.len() - 86], "the signature does not belong"),
        (&format!(" {jws}"), "the header is not base64url"),
        (&format!("{jws}\n"), "the signature is not base64url"),
    ] {
        let found = refusal(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    let long = "A".repeat(BUNDLE_BYTES_MAX + 1);
    assert!(refusal(&long).contains("too long"));
    assert!(refusal(&format!("{}.A.A", "A".repeat(2_000))).contains("too long"));
    let [_, payload, _] = jws.split('.').collect::<Vec<_>>()[..] else { panic!("{jws}") };
    let payload = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    assert!(Bundle::open(&forged(&header(), payload.as_bytes()), &trust()).is_ok());
    for (from, to, expected) in [
        ("\"v\":1", "\"v\":2", "version 2"),
        ("\"v\":1", "\"v\":\"1\"", "invalid type"),
        ("\"v\":1", "\"v\":1,\"w\":1", "unknown field `w`"),
        ("\"v\":1", "\"v\":1,\"iss\":\"a\"", "duplicate field `iss`"),
        ("1769860900", "9000000000000000000", "`iat` is not valid"),
        ("1769860900", "-1", "invalid value"),
        ("\"claims\":{", "\"claims\":{\"paid\":1,", "\"paid\" is there more than once"),
        ("\"index\":4", "\"index\":4,\"more\":0", "unknown field `more`"),
        ("\"event\":\"e", "\"event\":\"=", "`entries.event` is not valid"),
        ("\"extra\":\"A", "\"extra\":\"*", "`entries.extra` is not valid"),
        ("\"hashes\":[\"", "\"hashes\":[\"A", "`entries.hashes` is not valid"),
        ("\"checkpoint\":\"log", "\"checkpoint\":\"\\u0007", "the checkpoint is malformed"),
    ] {
        assert!(payload.contains(from), "{from}");
        let found = refusal(&forged(&header(), payload.replacen(from, to, 1).as_bytes()));
        assert!(found.contains(expected), "{to}: {found}");
    }
    assert!(refusal(&forged(&header(), b"\xff")).contains("the payload is not that of a bundle"));
    let many = Bundle { entries: vec![sample().entries[0].clone(); ENTRIES_MAX + 1], ..sample() };
    assert!(matches!(many.sign(&keys(ORIGIN, 1)), Err(Error::TooManyEntries(1_001))));
    let large = claims(&json!({"x": "x".repeat(PAYLOAD_BYTES_MAX)}));
    assert!(matches!(
        Bundle { claims: large, ..sample() }.sign(&keys(ORIGIN, 1)),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn claims_are_one_object_with_unique_members() {
    let new = |text: &str| Claims::new(&RawValue::from_string(text.to_owned()).unwrap());
    assert!(new(r#"{"a":1,"b":[{"a":1}], "c":1e400}"#).is_ok());
    for text in ["[]", "1", "null", r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":1}"#] {
        assert!(matches!(new(text), Err(ClaimsError::Object(_))), "{text}");
    }
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(125), "]".repeat(125));
    assert!(matches!(new(&deep), Err(ClaimsError::Syntax(_))));
}

#[test]
fn strict_mode_wants_evidence_for_every_claim() {
    let strict = |text: Value, entries: &[(Uuid, bool)]| check_strict(&claims(&text), entries);
    let (one, two) = ((id(1), false), (id(2), false));
    let with = |evidence: Value| json!({"a": {"evidence": [id(1)], "more": 1}, "b": {"evidence": evidence}});
    assert_eq!(strict(with(json!([id(2), id(1)])), &[one, two]), Ok(()));
    assert_eq!(strict(json!({}), &[one]), Ok(()));
    assert_eq!(strict(json!({}), &[]), Err(NotProven::NoEntries));
    let erased = NotProven::Erased { position: 1, id: id(2) };
    assert_eq!(strict(with(json!([id(1)])), &[one, (id(2), true)]), Err(erased));
    let missing = NotProven::Missing { claim: "b".to_owned(), id: id(2) };
    assert_eq!(strict(with(json!([id(1), id(2)])), &[one]), Err(missing));
    let nothing = || Err(NotProven::Evidence { claim: "b".to_owned() });
    for evidence in [json!([]), json!(null), json!(id(1)), json!(["x"]), json!([1]), json!({})] {
        assert_eq!(strict(with(evidence.clone()), &[one]), nothing(), "{evidence}");
    }
    for claim in [json!(1), json!({}), json!([[id(1)]]), json!(null)] {
        let both = json!({"a": {"evidence": [id(1)]}, "b": claim});
        assert_eq!(strict(both, &[one]), nothing(), "{claim}");
    }
}

proptest! {
    #[test]
    fn any_changed_byte_is_refused(place: prop::sample::Index, mask in 1_u8..) {
        let mut bytes = sealed(&sample()).into_bytes();
        let place = place.index(bytes.len());
        bytes[place] ^= mask;
        // What is not text is refused where it is received.
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(Bundle::open(&text, &trust()).is_err());
        }
    }

    #[test]
    fn any_part_of_a_bundle_is_refused(place: prop::sample::Index, text in "[-_.A-Za-z0-9]{0,200}") {
        let jws = sealed(&sample());
        let place = place.index(jws.len());
        prop_assert!(Bundle::open(&jws[..place], &trust()).is_err());
        prop_assert!(Bundle::open(&jws[place..], &trust()).is_err() || place == 0);
        prop_assert!(Bundle::open(&text, &trust()).is_err());
        let _no_panic = decoded(&text);
    }
}

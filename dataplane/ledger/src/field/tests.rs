use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::id::BatchId;

fn key(byte: u8) -> String {
    STANDARD.encode([byte; 32])
}

fn encryption(keys: &str, pointers: &[&str]) -> Encryption {
    Encryption { fields: Fields::new(pointers).unwrap(), keyring: Keyring::parse(keys).unwrap() }
}

fn batch() -> BatchId {
    BatchId::of(Uuid::from_u128(0x019c_1126_6400_7abc_8def_0123_4560_0000))
}

/// Encrypts events of one batch.
fn encrypt(encryption: &Encryption, ledger: &str, events: &[&str]) -> (BatchKeyId, Vec<String>) {
    let mut encryptor = Encryptor::new(encryption, ledger, batch(), [7; SALT_BYTES]);
    let stored = events.iter().map(|event| {
        let mut out = Vec::new();
        encryptor.push(event.as_bytes(), &mut out);
        assert_eq!(out.len(), encryption.fields.encrypted_len(event), "{event}");
        String::from_utf8(out).unwrap()
    });
    let stored = stored.collect();
    (encryptor.key_id(), stored)
}

fn decrypt(keys: &str, id: &BatchKeyId, position: usize, stored: &str) -> Result<Decrypted, DecryptError> {
    let keyring = Keyring::parse(keys).unwrap();
    Decryptor::new(Some(&keyring), "default").decrypt(batch().event(position), id, stored.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The specification's example was made by another implementation; both must change together or not at all.
#[test]
fn the_vector_of_the_specification_holds() {
    let document = include_str!("../../../../docs/formats/field-encryption.md");
    let vector = |name: &str| {
        let line = document.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
        line.trim().to_owned()
    };
    let tenant: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
    let salt: [u8; 16] = std::array::from_fn(|i| 0x20 + u8::try_from(i).unwrap());
    let encryption = encryption(&STANDARD.encode(tenant), &["/card/number", "/a~1b"]);
    let mut encryptor = Encryptor::new(&encryption, "default", batch(), salt);
    let mut stored = Vec::new();
    encryptor.push(b"{}", &mut stored);
    assert_eq!(stored, b"{}");
    stored.clear();
    encryptor.push(vector("received:").as_bytes(), &mut stored);
    assert_eq!(String::from_utf8(stored.clone()).unwrap(), vector("stored:"));
    let id = encryptor.key_id();
    assert_eq!(id.key.to_string(), vector("key-id:"));
    assert_eq!(hex(&id.to_bytes()), vector("batch-key-id:"));
    assert_eq!(BatchKeyId::from_bytes(&id.to_bytes()), Some(id));
    assert_eq!(hex(&nonce(1, 0)), vector("nonce-0:"));
    assert_eq!(hex(Aad::new("default").of(batch().event(1), "/card/number")), vector("aad-0:"));
    let opened = Decryptor::new(Some(&encryption.keyring), "default").decrypt(batch().event(1), &id, &stored);
    assert_eq!(opened, Ok(Decrypted::Payload(vector("received:").into_bytes())));
}

#[test]
fn all_of_a_member_is_encrypted_and_nothing_else_changes() {
    let encryption = encryption(&key(1), &["/card/number", "/email", "/~0t", "/"]);
    for (received, gone, kept) in [
        (r#"{ "email" : "a@b.example" , "x": [1, 2] }"#, "a@b", r#" , "x": [1, 2] }"#),
        // Each occurrence, whatever comes last.
        (r#"{"email":"first","email":"second"}"#, "first", r#"{"email":""#),
        (r#"{"email":"first","email":"second"}"#, "second", r#"","email":""#),
        // The name as it reads, not as it is written.
        (r#"{"\u0065mail":"hidden"}"#, "hidden", r#"{"\u0065mail":""#),
        (r#"{"card":{"number":41111111,"name":"N"}}"#, "4111", r#","name":"N"}}"#),
        (r#"{"card":1,"card":{"number":[41111111,{"number":2}]}}"#, "4111", r#"{"card":1,"card":"#),
        (r#"{"~t":{"deep":"hidden"}}"#, "hidden", r#"{"~t":""#),
        (r#"{"":null}"#, "null", r#"{"":""#),
    ] {
        let (id, stored) = encrypt(&encryption, "default", &[received]);
        assert!(!stored[0].contains(gone) && stored[0].contains(kept), "{}", stored[0]);
        assert_eq!(
            decrypt(&key(1), &id, 0, &stored[0]),
            Ok(Decrypted::Payload(received.as_bytes().to_vec())),
            "{}",
            stored[0]
        );
    }
    for untouched in [
        r#"{"other":"a@b.example"}"#,
        r#"{"card":"number"}"#,
        r#"{"card":[{"number":1}]}"#,
        r#"{"a":{"email":"no"}}"#,
        r#"{"\ud800":1,"x":"\ud800"}"#,
        "{}",
    ] {
        let (id, stored) = encrypt(&encryption, "default", &[untouched]);
        assert_eq!(stored[0], untouched);
        assert_eq!(decrypt(&key(1), &id, 0, &stored[0]), Ok(Decrypted::Nothing));
    }
}

#[test]
fn lengths_tell_little_and_equal_values_look_different() {
    let encryption = encryption(&key(1), &["/a", "/b"]);
    let events = [r#"{"a":true,"b":true}"#, r#"{"a":false,"b":null}"#, r#"{"a":true,"b":true}"#];
    let (_, stored) = encrypt(&encryption, "default", &events);
    assert_eq!(stored[0].len(), stored[1].len());
    let strings: std::collections::HashSet<&str> =
        stored.iter().flat_map(|event| event.split('"')).filter(|part| part.starts_with(PREFIX)).collect();
    assert_eq!(strings.len(), 6);
}

#[test]
fn what_a_client_makes_look_encrypted_is_left_alone_or_encrypted_like_anything() {
    let encryption = encryption(&key(1), &["/a"]);
    let (_, stored) = encrypt(&encryption, "default", &[r#"{"a":"secret"}"#]);
    // An authentic string of another event, sent as a value in a member that is encrypted and in one that is not.
    let copied = stored[0].split('"').find(|part| part.starts_with(PREFIX)).unwrap();
    let received = format!(r#"{{"a":"{copied}","b":"{copied}","c":"{PREFIX}","d":"{PREFIX}!"}}"#);
    let (id, stored) = encrypt(&encryption, "default", &["{}", &received]);
    assert_eq!(decrypt(&key(1), &id, 1, &stored[1]), Ok(Decrypted::Payload(received.into_bytes())));
    // In an event whose batch has a key, but which has nothing encrypted itself.
    let only = format!(r#"{{"b":"{copied}"}}"#);
    assert_eq!(decrypt(&key(1), &id, 0, &only), Ok(Decrypted::Nothing));
}

#[test]
fn members_configured_earlier_are_still_found() {
    let before = encryption(&key(1), &["/old/er"]);
    let (id, stored) = encrypt(&before, "default", &[r#"{"old":{"er":"value"}}"#]);
    // Decrypting knows keys, not members.
    let opened = decrypt(&key(1), &id, 0, &stored[0]);
    assert_eq!(opened, Ok(Decrypted::Payload(br#"{"old":{"er":"value"}}"#.to_vec())));
}

#[test]
fn old_keys_still_decrypt_and_unknown_ones_are_named() {
    let (first, second) = (key(1), key(2));
    let event = r#"{"a":"secret"}"#;
    let (old_id, old) = encrypt(&encryption(&first, &["/a"]), "default", &[event]);
    let rotated = encryption(&format!("{second},{first}\n"), &["/a"]);
    let (new_id, new) = encrypt(&rotated, "default", &[event]);
    assert_eq!(new_id.key, rotated.keyring.ids().next().unwrap());
    assert_ne!(new_id.key, old_id.key);
    let opened = Ok(Decrypted::Payload(event.into()));
    let both = format!("{second} {first}");
    assert_eq!(decrypt(&both, &old_id, 0, &old[0]), opened);
    assert_eq!(decrypt(&both, &new_id, 0, &new[0]), opened);
    assert_eq!(decrypt(&second, &old_id, 0, &old[0]), Ok(Decrypted::MissingKey(old_id.key)));
    let without = Decryptor::new(None, "default").decrypt(batch().event(0), &new_id, new[0].as_bytes());
    assert_eq!(without, Ok(Decrypted::MissingKey(new_id.key)));
}

#[test]
fn only_the_key_that_was_committed_to_opens() {
    let (id, stored) = encrypt(&encryption(&key(1), &["/a"]), "default", &[r#"{"a":"secret"}"#]);
    let refused = Err(DecryptError::Commitment(batch().event(0)));
    let forged = BatchKeyId { commitment: [0; 32], ..id };
    assert_eq!(decrypt(&key(1), &forged, 0, &stored[0]), refused);
    // The id of one key with everything else of another.
    let (other, _) = encrypt(&encryption(&key(2), &["/a"]), "default", &["{}"]);
    assert_eq!(decrypt(&key(2), &BatchKeyId { key: other.key, ..id }, 0, &stored[0]), refused);
    let salted = BatchKeyId { salt: [8; SALT_BYTES], ..id };
    assert_eq!(decrypt(&key(1), &salted, 0, &stored[0]), refused);
    // Of another batch, and of another ledger.
    let keyring = Keyring::parse(&key(1)).unwrap();
    let elsewhere = BatchId::new(5, 5 << 20).event(0);
    let moved = Decryptor::new(Some(&keyring), "default").decrypt(elsewhere, &id, stored[0].as_bytes());
    assert_eq!(moved, Err(DecryptError::Commitment(elsewhere)));
    let moved = Decryptor::new(Some(&keyring), "other").decrypt(batch().event(0), &id, stored[0].as_bytes());
    assert_eq!(moved, refused);
    assert_eq!(BatchKeyId::from_bytes(&id.to_bytes()[1..]), None);
}

#[test]
fn a_value_opens_in_its_own_event_and_place_only() {
    let encryption = encryption(&key(1), &["/a", "/b", "/c/a"]);
    let (id, stored) = encrypt(&encryption, "default", &[r#"{"a":"one","b":"two"}"#, r#"{"a":"one"}"#]);
    assert_eq!(decrypt(&key(1), &id, 1, &stored[0]), Ok(Decrypted::Nothing), "another event");
    let values: Vec<&str> = stored[0].split('"').filter(|part| part.starts_with(PREFIX)).collect();
    let swapped = format!(r#"{{"a":"{}","b":"{}"}}"#, values[1], values[0]);
    assert_eq!(decrypt(&key(1), &id, 0, &swapped), Ok(Decrypted::Nothing), "other members");
    let moved = format!(r#"{{"c":{{"a":"{}"}},"d":["{}"]}}"#, values[0], values[0]);
    assert_eq!(decrypt(&key(1), &id, 0, &moved), Ok(Decrypted::Nothing), "deeper");
    let escaped = format!(r#"{{"a":"\u0063{}"}}"#, &values[0][1..]);
    assert_eq!(decrypt(&key(1), &id, 0, &escaped), Ok(Decrypted::Nothing), "written otherwise");
    assert_eq!(decrypt(&key(1), &id, 0, "{"), Ok(Decrypted::Nothing));
    let broken = format!("{{{PREFIX}");
    assert_eq!(decrypt(&key(1), &id, 0, &broken), Err(DecryptError::NotJson(batch().event(0))));
}

#[test]
fn pointers_that_cannot_be_meant_are_refused() {
    let refusal = |pointers: &[&str]| Fields::new(pointers).unwrap_err().to_string();
    assert!(refusal(&[""]).contains("not a JSON pointer"));
    assert!(refusal(&["email"]).contains("such as /card/number"));
    assert!(refusal(&["/a~2"]).contains("neither ~0"));
    assert!(refusal(&["/a~"]).contains("neither ~0"));
    assert!(refusal(&["/type"]).contains("finds events by"));
    assert!(refusal(&["/ok", "/timestamp/x"]).contains("finds events by"));
    assert_eq!(
        refusal(&["/card", "/card/number"]),
        r#""/card/number" is encrypted already, as a part of "/card": leave one of them out"#
    );
    assert_eq!(refusal(&["/card/a/number", "/card"]), refusal(&["/card", "/card/a/number"]));
    assert!(refusal(&["/a", "/a"]).contains("already"));
    assert!(refusal(&[&"/a".repeat(SEGMENTS_MAX + 1)]).contains("too long"));
    assert!(refusal(&[&format!("/{}", "a".repeat(POINTER_BYTES_MAX))]).contains("too long"));
    assert!(refusal(&vec!["/a"; FIELDS_MAX + 1]).starts_with("there are 65"));
    assert!(Fields::new::<&str>(&[]).unwrap().is_empty());
    assert_eq!(Fields::new(&["/a/b", "/a/c", "/", "/b/a"]).unwrap().len(), 4);
}

#[test]
fn keys_that_cannot_be_meant_are_refused_and_none_is_shown() {
    let refusal = |text: &str| Keyring::parse(text).unwrap_err().to_string();
    let (one, two) = (key(1), key(2));
    assert_eq!(refusal(" ,\n"), "there is no key in it");
    assert_eq!(refusal(&format!("{one}\nsecret!")), "key 2 is not base64");
    assert_eq!(refusal(&STANDARD.encode([1; 31])), TOO_SHORT);
    assert_eq!(refusal(&format!("{one},{two},{one}")), "key 3 is the same as key 1");
    assert!(refusal(&[one.as_str(); 17].join(",")).starts_with("there are 17 keys"));
    let unpadded = format!("{},\r\n{two}\n", one.trim_end_matches('='));
    let keyring = Keyring::parse(&unpadded).unwrap();
    assert_eq!(keyring.ids().count(), 2);
    let shown = format!("{keyring:?}");
    assert!(
        !shown.contains(one.trim_end_matches('='))
            && shown.contains(&keyring.ids().next().unwrap().to_string())
    );
}

const TOO_SHORT: &str = "key 1 has 31 bytes, and must have 32 (make one with: openssl rand -base64 32)";

/// JSON objects in which names are often those of the pointers, and often there twice.
fn object() -> impl Strategy<Value = String> {
    let string = prop_oneof![
        r#"[ -!#-\[\]-~é]{0,20}"#,
        Just(format!("{PREFIX}AAAA")),
        Just(r#"\u0061\n\""#.to_owned())
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        (-1e9..1e9).prop_map(|number: f64| number.to_string()),
        string.prop_map(|text| format!("\"{text}\"")),
    ];
    let name = prop_oneof![Just("a"), Just("b"), Just(r"\u0061"), Just("a~1"), Just("é"), Just("other")];
    let space = || prop_oneof![Just(""), Just(" "), Just("\n\t")];
    let value = leaf.prop_recursive(4, 24, 4, move |inner| {
        let member =
            (name.clone(), space(), inner.clone(), space()).prop_map(|(name, before, value, after)| {
                format!("{before}\"{name}\"{after}:{before}{value}{after}")
            });
        prop_oneof![
            prop::collection::vec(member, 0..5).prop_map(|members| format!("{{{}}}", members.join(","))),
            prop::collection::vec(inner, 0..4).prop_map(|values| format!("[{}]", values.join(" ,"))),
        ]
    });
    let name = prop_oneof![Just("a"), Just("b"), Just(r"\u0061")];
    prop::collection::vec((name, value), 0..5).prop_map(|members| {
        let members: Vec<String> =
            members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

fn pointers() -> impl Strategy<Value = Fields> {
    let segment = prop_oneof![Just("a"), Just("b"), Just("a~01"), Just("é")];
    let pointer = prop::collection::vec(segment, 1..4).prop_map(|names| format!("/{}", names.join("/")));
    prop::collection::vec(pointer, 0..4).prop_map(|mut pointers| {
        loop {
            match Fields::new(&pointers) {
                Ok(fields) => return fields,
                Err(_) => drop(pointers.pop()),
            }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn decrypting_gives_the_bytes_received(events in prop::collection::vec(object(), 1..4), fields in pointers()) {
        let encryption = Encryption { fields, keyring: Keyring::parse(&key(3)).unwrap() };
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let (id, stored) = encrypt(&encryption, "default", &events);
        let mut decryptor = Decryptor::new(Some(&encryption.keyring), "default");
        for (position, (received, stored)) in events.iter().zip(&stored).enumerate() {
            serde_json::from_str::<&serde_json::value::RawValue>(stored).unwrap();
            match decryptor.decrypt(batch().event(position), &id, stored.as_bytes()).unwrap() {
                Decrypted::Payload(opened) => prop_assert_eq!(std::str::from_utf8(&opened).unwrap(), *received),
                Decrypted::Nothing => prop_assert_eq!(stored, received),
                Decrypted::MissingKey(_) => prop_assert!(false),
            }
            // What is found has been replaced: in the stored bytes each pointer leads to nothing but strings of ours.
            encryption.fields.find(stored, |found| {
                assert!(stored[found.place.clone()].starts_with(&format!("\"{PREFIX}")), "{stored}");
            }).unwrap();
        }
    }

    #[test]
    fn a_marked_value_is_nowhere_in_the_stored_bytes(
        mut value in object(), path in prop::collection::vec("[a-z/~\"\\\\é]{0,4}", 1..5), copies in 1_usize..3
    ) {
        // Deep in a value, which is that of a member, at any path, once or twice in the same object.
        value = format!(r#"[{value},"4111-MARK-1111"]"#);
        let mut pointer = String::new();
        for name in path.iter().rev() {
            let name = serde_json::to_string(name).unwrap();
            value = format!("{{{}}}", vec![format!("{name} : {value}"); copies].join(" , "));
        }
        for name in &path {
            pointer::push_segment(&mut pointer, name);
        }
        let (id, stored) = encrypt(&encryption(&key(4), &[&pointer]), "default", &[&value]);
        // Shorter texts come up in base64 by chance.
        prop_assert!(!stored[0].contains("4111-MARK"), "{}", stored[0]);
        prop_assert_eq!(decrypt(&key(4), &id, 0, &stored[0]), Ok(Decrypted::Payload(value.into_bytes())));
    }

    #[test]
    fn one_flipped_bit_is_noticed(value in "[a-z]{0,40}", place in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let (id, stored) = encrypt(&encryption(&key(5), &["/a"]), "default", &[&format!(r#"{{"a":"{value}"}}"#)]);
        let mut bytes = stored[0].clone().into_bytes();
        // Within the string, its prefix included.
        let string = 6..bytes.len() - 2;
        bytes[string.start + place.index(string.len())] ^= 1 << bit;
        let keyring = Keyring::parse(&key(5)).unwrap();
        let opened = Decryptor::new(Some(&keyring), "default").decrypt(batch().event(0), &id, &bytes);
        prop_assert!(!matches!(opened, Ok(Decrypted::Payload(_))), "{:?}", opened);
    }
}

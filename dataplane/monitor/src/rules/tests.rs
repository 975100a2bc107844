//! The form of documents, and a store whose files are torn, altered and left behind.

use std::fs;
use std::path::Path;

use prometheus::Registry;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::file::decode;
use super::*;

fn document(changes: &[(&str, Value)]) -> Value {
    let mut value = json!({
        "uid": "u-1", "generation": 3,
        "groups": [{ "name": "g", "interval": "15s", "rules": [
            { "record": "a:b", "expr": "sum(a)", "labels": { "team": "x" } },
            { "alert": "Down", "expr": "up == 0", "for": "1m", "keep_firing_for": "1h30m", "annotations": { "summary": "é" } }
        ] }],
        "notify": [{ "name": "n", "url": "https://x/", "send_resolved": true }]
    });
    for (pointer, new) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = value.pointer_mut(parent).unwrap();
        match (parent, key.parse::<usize>()) {
            (Value::Array(items), Ok(index)) => items[index] = new.clone(),
            (parent, _) => parent[key] = new.clone(),
        }
    }
    value
}

fn parsed(uid: &str, generation: i64) -> Document {
    let value = document(&[("/uid", json!(uid)), ("/generation", json!(generation))]);
    Document::parse(value.to_string().as_bytes()).unwrap()
}

fn key(name: &str) -> Key {
    Key::new("ns", name).unwrap()
}

fn open(folder: &Path) -> (Store, Registry) {
    let registry = Registry::new();
    (Store::open(Some(folder.to_owned()), &registry).unwrap(), registry)
}

fn metric(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let metric = &family.get_metric()[0];
    metric.get_gauge().get_value() + metric.get_counter().get_value()
}

/// Name, identity and generation of all that is loaded.
fn names(store: &Store) -> Vec<(String, String, i64)> {
    let of =
        |stored: Stored| (stored.key.to_string(), stored.document.uid.clone(), stored.document.generation);
    store.list().into_iter().map(of).collect()
}

fn the_file(folder: &Path, extension: &str) -> std::path::PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|found| found == extension)).unwrap()
}

#[test]
fn a_document_survives_being_written_down() {
    let document = parsed("u", 1);
    let again = Document::parse(&serde_json::to_vec(&document).unwrap()).unwrap();
    assert_eq!(document, again);
    assert_eq!(document.groups[0].rules[1].keep_firing_for.unwrap().as_secs_f64(), 5400.0);
}

#[test]
fn what_has_another_form_is_refused_with_its_place() {
    let rule = json!({ "record": "a", "expr": "b" });
    let long = "x".repeat(9000);
    let cases: &[(&str, Value, &str)] = &[
        ("/uid", json!(""), "uid: must have 1 to 253"),
        ("/uid", json!(7), "uid: invalid type"),
        ("/generation", json!(-1), "generation: must not be below 0"),
        ("/groups", json!([]), "groups: must have 1 to 64 entries, not 0"),
        ("/groups/0/rules", json!(vec![rule; 257]), "groups[0].rules: must have 1 to 256 entries"),
        ("/groups/0/interval", json!("0s"), "groups[0].interval: must be above 0s"),
        ("/groups/0/interval", json!("1x"), "groups[0].interval: \"1x\" is not a duration"),
        ("/groups/0/interval", json!(""), "groups[0].interval: \"\" is not a duration"),
        ("/groups/0/interval", json!("1s1m"), "groups[0].interval: \"1s1m\" is not a duration"),
        ("/groups/0/interval", json!("s"), "groups[0].interval: \"s\" is not a duration"),
        ("/groups/0/interval", json!("99999999999y"), "groups[0].interval: \"99999999999y\" is not"),
        ("/groups/0/rules/0/alert", json!("x"), "groups[0].rules[0]: exactly one of alert and record"),
        ("/groups/0/rules/0/for", json!("1m"), "groups[0].rules[0]: for, keep_firing_for"),
        ("/groups/0/rules/0/expr", json!(long), "groups[0].rules[0].expr: must have 1 to 8192"),
        ("/groups/0/rules/0/limit", json!(1), "groups[0].rules[0].limit: unknown field"),
        ("/notify/0/url", Value::Null, "notify[0]: exactly one of url and url_secret_ref"),
        ("/extra", json!(1), "extra: unknown field"),
    ];
    for (pointer, value, expected) in cases {
        let json = document(&[(pointer, value.clone())]).to_string();
        let error = Document::parse(json.as_bytes()).expect_err(pointer).to_string();
        assert!(error.starts_with(expected), "{pointer} {value}: {error}");
    }
    let group = document(&[])["groups"][0].clone();
    let twice = document(&[("/groups", json!([group, group]))]).to_string();
    assert_eq!(Document::parse(twice.as_bytes()).unwrap_err().path, "groups[1].name");
    for bad in [&b"{"[..], b"", b"[]", b"\xff", b"{} {}"] {
        assert!(Document::parse(bad).is_err(), "{bad:?}");
    }
    for (namespace, name) in
        [("", "a"), ("a.b", "a"), ("a", ""), ("a", "A"), ("a", "../x"), ("a", "-a"), ("a", "a/b")]
    {
        assert!(Key::new(namespace, name).is_err(), "{namespace} {name}");
    }
    assert!(Key::new("a", &"x".repeat(254)).is_err() && Key::new("a-1", "b.c-2").is_ok());
    assert!(Key::new("a", "prometheusrule..b").is_ok(), "the operator names other kinds so");
}

#[test]
fn generations_only_grow_within_one_object() {
    let store = Store::open(None, &Registry::new()).unwrap();
    assert!(store.put(&key("a"), parsed("u", 3)).unwrap());
    assert!(!store.put(&key("a"), parsed("u", 3)).unwrap(), "the same again changes nothing");
    assert!(matches!(store.put(&key("a"), parsed("u", 2)), Err(Error::Stale { have: 3, given: 2 })));
    assert!(store.put(&key("a"), parsed("u", 4)).unwrap());
    assert!(store.put(&key("a"), parsed("other", 1)).unwrap(), "another object of the same name");
    assert_eq!(names(&store), [("ns/a".to_owned(), "other".to_owned(), 1)]);
    assert!(store.delete(&key("a")).unwrap());
    assert!(!store.delete(&key("a")).unwrap());
    assert!(store.list().is_empty());
}

#[test]
fn rules_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/demand");
    let (store, _) = open(&path);
    for (name, generation) in [("a", 1), ("b", 2), ("c", 3)] {
        store.put(&key(name), parsed("u", generation)).unwrap();
    }
    store.put(&key("a"), parsed("u", 7)).unwrap();
    store.delete(&key("b")).unwrap();
    let before = store.list();
    drop(store);
    fs::write(path.join("left.unfinished"), "half").unwrap();
    let (store, registry) = open(&path);
    assert_eq!(store.list(), before);
    assert_eq!(
        names(&store),
        [("ns/a".to_owned(), "u".to_owned(), 7), ("ns/c".to_owned(), "u".to_owned(), 3)]
    );
    assert_eq!(metric(&registry, "certeus_rules_objects"), 2.0);
    assert_eq!(metric(&registry, "certeus_rules_unusable_files_total"), 0.0);
    assert!(!path.join("left.unfinished").exists());
}

/// Every cut and every changed byte of a file costs its own rules and nothing else; the file is kept for whoever wants to look.
#[test]
fn a_torn_or_altered_file_is_set_aside_and_hurts_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    store.put(&key("torn"), parsed("u", 1)).unwrap();
    drop(store);
    let file = the_file(folder.path(), "rules");
    let whole = fs::read(&file).unwrap();
    let (store, _) = open(folder.path());
    store.put(&key("whole"), parsed("u", 2)).unwrap();
    drop(store);

    for length in 0..whole.len() {
        assert!(decode(&whole[..length]).is_err(), "cut to {length}");
        let mut altered = whole.clone();
        altered[length] ^= 1;
        assert!(decode(&altered).is_err(), "byte {length} altered");
    }
    let longer = [&whole[..], b" "].concat();
    for torn in [&whole[..0], &whole[..whole.len() / 2], &whole[..whole.len() - 1], &longer[..]] {
        fs::write(&file, torn).unwrap();
        let (store, registry) = open(folder.path());
        assert_eq!(names(&store), [("ns/whole".to_owned(), "u".to_owned(), 2)]);
        assert_eq!(metric(&registry, "certeus_rules_unusable_files_total"), 1.0);
        assert_eq!(fs::read(file.with_extension("corrupt")).unwrap(), torn);
    }
    // A whole file in the place of another one is no better.
    fs::write(&file, fs::read(the_file(folder.path(), "rules")).unwrap()).unwrap();
    let (store, registry) = open(folder.path());
    assert_eq!((store.list().len(), metric(&registry, "certeus_rules_unusable_files_total")), (1, 1.0));
    // The rules come again, and are whole then.
    store.put(&key("torn"), parsed("u", 1)).unwrap();
    assert_eq!(open(folder.path()).0.list().len(), 2);
}

#[test]
fn what_cannot_be_written_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules");
    let (store, registry) = open(&path);
    store.put(&key("a"), parsed("u", 1)).unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert!(matches!(store.put(&key("a"), parsed("u", 2)), Err(Error::Write(_))));
    assert_eq!(names(&store), [("ns/a".to_owned(), "u".to_owned(), 1)]);
    assert!(matches!(store.delete(&key("a")), Err(Error::Write(_))));
    assert_eq!((store.list().len(), metric(&registry, "certeus_rules_write_failures_total")), (1, 2.0));
    fs::write(&path, "a file where the folder should be").unwrap();
    assert!(open(&path).0.list().is_empty());
}

#[test]
fn there_is_room_for_so_many_and_no_more() {
    let store = Store::open(None, &Registry::new()).unwrap();
    for n in 0..SETS_MAX {
        store.put(&key(&format!("r{n}")), parsed("u", 1)).unwrap();
    }
    assert!(matches!(store.put(&key("more"), parsed("u", 1)), Err(Error::TooMany)));
    assert!(store.put(&key("r0"), parsed("u", 2)).unwrap(), "an edit needs no further place");

    let store = Store::open(None, &Registry::new()).unwrap();
    let annotations = json!({ "a": "x".repeat(DOCUMENT_BYTES_MAX - 1024) });
    let json = document(&[("/groups/0/rules/1/annotations", annotations)]).to_string();
    assert!(json.len() < DOCUMENT_BYTES_MAX);
    let large = Document::parse(json.as_bytes()).unwrap();
    let taken =
        (0..SETS_MAX).take_while(|n| store.put(&key(&format!("r{n}")), large.clone()).is_ok()).count();
    assert_eq!(taken, TOTAL_BYTES_MAX / DOCUMENT_BYTES_MAX);
    assert!(matches!(store.put(&key("more"), large.clone()), Err(Error::TooLarge)));
    store.delete(&key("r0")).unwrap();
    store.put(&key("more"), large).unwrap();
}

proptest! {
    #[test]
    fn no_file_makes_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn periods_survive_being_written_down(text in "[0-9]{0,3}[wdhms]{0,2}[0-9]{0,3}[ms]{0,2}") {
        if let Ok(period) = text.parse::<Period>() {
            prop_assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
        }
    }
}

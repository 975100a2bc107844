use super::file::parse;
use super::*;

const URL: (&str, &str) = ("CERTEUS_DB_URL", "postgres://u:hush@localhost/db");

fn load(yaml: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
    let file = parse(yaml, Path::new("c.yaml"))?;
    resolve(file, |name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

fn refusal(yaml: &str, variables: &[(&str, &str)]) -> String {
    load(yaml, variables).unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = load("", &[URL]).unwrap();
    assert_eq!(config.api, Listen::Address("127.0.0.1:8000".parse().unwrap()));
    assert_eq!(config.admin, "127.0.0.1:9090".parse().unwrap());
    assert_eq!((config.batch_events, config.queue_events, config.queue_bytes), (10_000, 100_000, 64 << 20));
    assert_eq!((config.batch_timeout, config.writers, config.pool_size), (Duration::from_millis(100), 2, 8));
}

#[test]
fn old_events_go_to_the_archive_that_is_named() {
    let both = load("retention: {events: 400d, archive: 's3://bucket/events'}", &[URL]).unwrap();
    let ArchiveConfig { location, keep } = both.archive.unwrap();
    assert_eq!(location.to_string(), "s3://bucket/events");
    assert_eq!(keep, Some(Duration::from_secs(400 * 86_400)));
    let read_only = load("retention: {archive: 'file:///var/a'}", &[URL]).unwrap();
    assert_eq!(read_only.archive.unwrap().keep, None);
    assert!(load("", &[URL]).unwrap().archive.is_none());
}

#[test]
fn a_spool_needs_a_volume_that_is_declared_persistent_and_nothing_to_encrypt() {
    let spool = |yaml: &str, variables: &[(&str, &str)]| load(yaml, variables).unwrap().spool;
    assert_eq!(spool("spool: {path: /s}", &[URL]), None);
    assert_eq!(spool("spool: {path: /s, persistent: false}", &[URL]), None);
    let declared = "spool: {path: /s, maxBytes: 2Mi, persistent: true}";
    assert_eq!(spool(declared, &[URL]), Some(SpoolConfig { path: "/s".into(), bytes_max: 2 << 20 }));
    let key = ("CERTEUS_ENCRYPTION_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    assert_eq!(spool(&format!("{declared}\nencryption: {{fields: [/name]}}"), &[URL, key]), None);
}

#[test]
fn the_environment_wins_over_the_file() {
    let yaml = "api: {listen: '127.0.0.1:1'}\nadmin: {listen: '127.0.0.1:2'}\ndatabase: {poolSize: 9}\n\
                ledger: {batchTimeout: 1s, queueBytes: 2Mi}\nlog: {level: warn}";
    let file_only = load(yaml, &[URL]).unwrap();
    assert_eq!((file_only.pool_size, file_only.queue_bytes), (9, 2 << 20));
    assert_eq!((file_only.batch_timeout, file_only.log_level), (Duration::from_secs(1), LevelFilter::WARN));
    let variables = [
        URL,
        ("CERTEUS_API_LISTEN", "fd:0"),
        ("CERTEUS_METRICS_PORT", "9191"),
        ("CERTEUS_POOL_SIZE", "12"),
        ("CERTEUS_LOG_LEVEL", "debug"),
    ];
    let config = load(yaml, &variables).unwrap();
    assert_eq!((config.api, config.admin.port(), config.pool_size), (Listen::Inherited, 9191, 12));
    assert_eq!(config.log_level, LevelFilter::DEBUG);
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    for (yaml, expected) in [
        ("ledger: {batchSiz: 1}", "c.yaml: ledger.batchSiz: unknown field"),
        ("ledger: {batchSize: many}", "c.yaml: ledger.batchSize: invalid type"),
        ("ledger: {batchTimeout: 5 minutes}", "c.yaml: ledger.batchTimeout: "),
        ("ledger: {queueBytes: 64MB}", "c.yaml: ledger.queueBytes: "),
        ("ledger: {batchSize: 0}", "ledger.batchSize: is 0, and must be from 1 to 1000000"),
        ("ledger: {batchTimeout: 1m}", "ledger.batchTimeout: must be at most 5s"),
        ("database: {poolSize: 2}", "database.poolSize: is 2, and must be from 4 to 500"),
        ("api: {listen: nowhere}", "api.listen: is \"nowhere\", and must be an address"),
        ("retention: {events: 400}", "c.yaml: retention.events: "),
        ("retention: {events: 0d}", "c.yaml: retention.events: "),
        ("retention: {events: 400d}", "retention.archive: is required with retention.events"),
        ("retention: {archive: /var/a}", "retention.archive: must be file:///absolute/path or s3://"),
        ("spool: {persistent: true}", "spool.path: is required with spool.persistent"),
        ("spool: {maxBytes: 5}", "spool.maxBytes: is 5, and must be from 1048576"),
        ("log: {level: loud}", "log.level: is \"loud\", and must be one of off,"),
        ("x: [", "c.yaml: not valid YAML"),
        ("[1]", "c.yaml: "),
    ] {
        let found = refusal(yaml, &[URL]);
        assert!(found.starts_with(expected), "{yaml}: {found}");
    }
    assert!(refusal("", &[]).starts_with("CERTEUS_DB_URL: is required"));
    assert!(
        refusal("", &[("CERTEUS_DB_URL", "mysql://hush")])
            .starts_with("CERTEUS_DB_URL: not a PostgreSQL URL")
    );
    assert!(refusal("", &[URL, ("CERTEUS_API_KEY", "")]).starts_with("CERTEUS_API_KEY: must have"));
    assert!(
        refusal("", &[URL, ("CERTEUS_API_KEY", "0123456789abcdef\n")]).starts_with("CERTEUS_API_KEY: must")
    );
    assert!(refusal("", &[URL, ("CERTEUS_METRICS_PORT", "99999")]).starts_with("CERTEUS_METRICS_PORT"));
}

#[test]
fn what_signs_the_log_is_checked_and_never_shown() {
    let key = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let with_key = [URL, ("CERTEUS_SIGNING_KEY", key), ("CERTEUS_LOG_ANCHOR", "file:///a/b")];
    let config = load("log: {checkpointInterval: 100ms, keyFile: /unused}", &with_key).unwrap();
    assert!(matches!(&config.signing_key, SigningKey::Given(keys) if keys.origin() == "PeterNeumann"));
    assert_eq!(config.checkpoint_interval, Duration::from_millis(100));
    assert!(!format!("{config:?}").contains("AYEKFALVFGyNhPJEMzD1QIDr"));
    let file = load("log: {keyFile: /k, origin: a.example}", &[URL]).unwrap().signing_key;
    let SigningKey::File { path, origin } = file else { panic!("{file:?}") };
    assert_eq!((path.to_str(), origin.as_deref()), (Some("/k"), Some("a.example")));
    assert!(load("", &[URL]).unwrap().signing_key.load().unwrap().is_none());

    let broken = &key[..key.len() - 1];
    for (yaml, variables, expected) in [
        ("", &[URL, ("CERTEUS_SIGNING_KEY", broken)][..], "CERTEUS_SIGNING_KEY: line 1: "),
        ("", &[URL, ("CERTEUS_SIGNING_KEY", " ")], "CERTEUS_SIGNING_KEY: no signing key"),
        (
            "",
            &[URL, with_key[1], ("CERTEUS_SIGNING_KEY_FILE", "/k")],
            "CERTEUS_SIGNING_KEY_FILE: CERTEUS_SIGNING_KEY is set",
        ),
        ("log: {anchor: 'file:///a'}", &[URL], "log.anchor: needs a signing key"),
        ("log: {anchor: /a, keyFile: /k}", &[URL], "log.anchor: is \"/a\", and must be"),
        ("log: {checkpointInterval: 99ms}", &[URL], "log.checkpointInterval: must be from 100ms"),
        ("log: {checkpointInterval: 2m}", &[URL], "log.checkpointInterval: must be from 100ms"),
    ] {
        let found = refusal(yaml, variables);
        assert!(found.starts_with(expected) && !found.contains(broken), "{found}");
    }
    let nowhere = SigningKey::File { path: "/nonexistent/key".into(), origin: None };
    assert!(nowhere.load().unwrap_err().to_string().contains("log.origin"));
}

#[test]
fn what_must_be_proven_is_said_without_doubt() {
    assert_eq!(load("", &[URL]).unwrap().proofs, Proofs::default());
    let yaml = "proofs: {strict: true, publicBaseUrl: 'https://a.example/x/'}";
    let from_file = load(yaml, &[URL]).unwrap().proofs;
    assert_eq!(from_file, Proofs { strict: true, public_base_url: "https://a.example/x".to_owned() });
    let variables = [URL, ("STRICT_PROOF_ONLY", "0"), ("PUBLIC_BASE_URL", "http://b.example")];
    let from_both = load(yaml, &variables).unwrap().proofs;
    assert_eq!(from_both, Proofs { strict: false, public_base_url: "http://b.example".to_owned() });
    assert!(load("", &[URL, ("STRICT_PROOF_ONLY", "1")]).unwrap().proofs.strict);
    for url in ["a.example", "https://", "ftp://a", "https://a?b", "https://a b", "https:///x", "https://a@b"]
    {
        assert!(refusal("", &[URL, ("PUBLIC_BASE_URL", url)]).starts_with("PUBLIC_BASE_URL: is"), "{url}");
    }
}

#[test]
fn switches_in_the_environment_take_the_same_words() {
    const STRICT: &str = "STRICT_PROOF_ONLY";
    const SHARED: &str = "CERTEUS_LOG_ANCHOR_SHARED";
    for (word, on) in [("1", true), ("true", true), ("0", false), ("false", false)] {
        assert_eq!(load("", &[URL, (STRICT, word)]).unwrap().proofs.strict, on, "{word}");
        assert_eq!(
            load("log: { anchor: 'file:///a/b', keyFile: /a/key }", &[URL, (SHARED, word)])
                .unwrap()
                .anchor_shared,
            on,
            "{word}"
        );
    }
    for (name, word) in
        [STRICT, SHARED].into_iter().flat_map(|name| ["", "yes", "2", "True"].map(|word| (name, word)))
    {
        assert!(refusal("", &[URL, (name, word)]).starts_with(&format!("{name}: is")), "{word}");
    }
}

#[test]
fn a_variable_that_is_not_text_is_never_taken_for_absent() {
    use std::os::unix::ffi::OsStringExt;
    for name in VARIABLES {
        let found = Config::load(None, None, |asked| match asked {
            _ if asked == *name => Some(OsString::from_vec(vec![0xff; 32])),
            "CERTEUS_DB_URL" => Some(URL.1.into()),
            _ => None,
        });
        assert_eq!(found.unwrap_err().to_string(), format!("{name}: is not UTF-8"));
    }
}

#[test]
fn encryption_takes_fields_and_keys_or_neither() {
    const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let fields = "encryption: {fields: [/card/number, /email]}";
    let keys = |value| [URL, ("CERTEUS_ENCRYPTION_KEY", value)];
    assert!(load("", &[URL]).unwrap().encryption.is_none());
    assert!(load("encryption: {fields: []}", &[URL]).unwrap().encryption.is_none());
    let both = format!("{TWO},\n{ONE}\n");
    let config = load(fields, &keys(&both)).unwrap();
    let encryption = config.encryption.as_ref().unwrap();
    assert_eq!((encryption.fields.len(), encryption.keyring.ids().count()), (2, 2));
    assert!(!format!("{config:?}").contains("AgIC"));
    // Only decrypts: said on purpose, not forgotten.
    assert!(load("encryption: {fields: []}", &keys(ONE)).unwrap().encryption.unwrap().fields.is_empty());
    for (yaml, keys, expected) in [
        (fields, None, "encryption.fields: needs a key in CERTEUS_ENCRYPTION_KEY"),
        ("", Some(ONE), "CERTEUS_ENCRYPTION_KEY: is set, but encryption.fields is not"),
        (fields, Some(""), "CERTEUS_ENCRYPTION_KEY: there is no key in it"),
        (fields, Some("hush"), "CERTEUS_ENCRYPTION_KEY: key 1 has 3 bytes, and must have 32"),
        (fields, Some("hush!"), "CERTEUS_ENCRYPTION_KEY: key 1 is not base64"),
        ("encryption: {fields: [email]}", Some(ONE), "encryption.fields: \"email\" is not a JSON pointer"),
        ("encryption: {fields: [/type]}", Some(ONE), "encryption.fields: \"/type\" cannot be encrypted"),
    ] {
        let variables: Vec<_> =
            [URL].into_iter().chain(keys.map(|keys| ("CERTEUS_ENCRYPTION_KEY", keys))).collect();
        let found = refusal(yaml, &variables);
        assert!(found.starts_with(expected) && !found.contains("hush"), "{yaml}: {found}");
    }
}

/// The operator, which is to let none of these reach a pod that would refuse it, has a test with the same values.
#[test]
fn secrets_are_taken_and_refused_as_published() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/secrets.json");
    let vectors: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (variable, values) in vectors.as_object().unwrap() {
        let yaml = if variable == "CERTEUS_ENCRYPTION_KEY" { "encryption: {fields: [/name]}" } else { "" };
        let others = [("CERTEUS_API_KEY", "an-ordinary-api-key"), URL];
        for (verdict, is_taken) in [("accepted", true), ("refused", false)] {
            for value in values[verdict].as_array().unwrap() {
                // The first of a name counts.
                let variables = [&[(&**variable, value.as_str().unwrap())][..], &others].concat();
                assert_eq!(load(yaml, &variables).is_ok(), is_taken, "{variable}: {value}");
            }
        }
    }
}

#[test]
fn the_second_key_needs_the_first_and_differs() {
    let (first, second) =
        (("CERTEUS_API_KEY", "0123456789abcdef"), ("CERTEUS_DECRYPT_API_KEY", "fedcba9876543210"));
    let keys = load("", &[URL, first, second]).unwrap().api_keys.unwrap();
    assert!(
        keys.decrypting.is_some() && load("", &[URL, first]).unwrap().api_keys.unwrap().decrypting.is_none()
    );
    assert!(refusal("", &[URL, second]).starts_with("CERTEUS_DECRYPT_API_KEY: needs CERTEUS_API_KEY"));
    assert!(
        refusal("", &[URL, first, (second.0, first.1)]).starts_with("CERTEUS_DECRYPT_API_KEY: must differ")
    );
    assert!(
        refusal("", &[URL, first, (second.0, "short")]).starts_with("CERTEUS_DECRYPT_API_KEY: must have")
    );
}

#[test]
fn certificates_to_trust_are_read_at_the_start() {
    let good = include_str!("../../tests/ca.crt");
    let refused = |ca, url| refusal("", &[("CERTEUS_DB_URL", url), ("CERTEUS_DB_CA", ca)]);
    assert!(load("", &[URL, ("CERTEUS_DB_CA", good)]).is_ok());
    let found = refused("hush", URL.1);
    assert!(
        found.starts_with("CERTEUS_DB_CA: must be certificates in PEM") && !found.contains("hush"),
        "{found}"
    );
    let found = refused(good, "postgres://u:hush@localhost/db?sslmode=disable");
    assert!(found.starts_with("CERTEUS_DB_CA: cannot be used with sslmode=disable"), "{found}");
    let found = refused(good, "postgres://u:hush@localhost/db?sslrootcert=/ca.crt");
    let expected = "CERTEUS_DB_URL: the parameter sslrootcert cannot be used: give the certificates themselves in CERTEUS_DB_CA";
    assert!(found.starts_with(expected), "{found}");
}

#[test]
fn without_a_key_only_loopback_is_served() {
    let everywhere = "api: {listen: '0.0.0.0:8000'}";
    assert!(refusal(everywhere, &[URL]).contains("without CERTEUS_API_KEY"));
    assert!(refusal("admin: {listen: '0.0.0.0:9090'}", &[URL]).starts_with("admin.listen"));
    let key = ("CERTEUS_API_KEY", "0123456789abcdef");
    let config = load(everywhere, &[URL, key]).unwrap();
    assert!(!format!("{config:?}").contains("hush") && !format!("{config:?}").contains(key.1));
}

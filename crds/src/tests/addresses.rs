//! Patterns of the schema and the code beside them.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::sections::{is_anchor, is_archive, is_base_url};
use crate::security::is_secret_name;

static ANCHOR: LazyLock<Value> = LazyLock::new(|| pattern_of("log/properties/anchor"));
static ARCHIVE: LazyLock<Value> = LazyLock::new(|| pattern_of("retention/properties/archive"));
static BASE_URL: LazyLock<Value> = LazyLock::new(|| pattern_of("proofs/properties/publicBaseUrl"));

static SECRET: LazyLock<Value> = LazyLock::new(|| pattern_of("imagePullSecrets/items/properties/name"));

#[test]
fn names_that_no_secret_can_have_are_refused() {
    for (text, valid) in [
        ("registry", true),
        ("0-a.b--c.9", true),
        ("", false),
        (".a", false),
        ("a.", false),
        ("a..b", false),
        ("-a", false),
        ("a-.b", false),
        ("A", false),
        ("a/b", false),
        ("a_b", false),
        ("a\n", false),
    ] {
        assert_eq!((is_secret_name(text), matches(&SECRET, text)), (valid, valid), "{text}");
    }
    let pull = |names: &[&str]| {
        let names: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        let spec = json!({ "database": { "embedded": true }, "imagePullSecrets": names });
        let errors = LedgerCluster::read(cluster(&spec)).err().unwrap_or_default();
        errors.into_iter().map(|error| error.path).collect::<Vec<_>>()
    };
    assert!(pull(&["a", "b"]).is_empty());
    assert_eq!(pull(&["a", "B"]), ["spec.imagePullSecrets[1].name"]);
    assert_eq!(pull(&[""]), ["spec.imagePullSecrets[0].name"]);
    assert_eq!(pull(&["a", "a"]), ["spec.imagePullSecrets[1]"]);
    let many: Vec<String> = (0..17).map(|n| format!("s{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!((pull(&many), pull(&many[1..]).len()), (vec!["spec.imagePullSecrets".to_owned()], 0));
}

#[test]
fn addresses_that_name_no_object_bucket_or_site_are_refused() {
    let check = |field: &Value, is_valid: fn(&str) -> bool, text: &str, expected: bool| {
        assert_eq!((is_valid(text), matches(field, text)), (expected, expected), "{text}");
    };
    for (text, anchor, archive) in [
        ("s3://bucket", false, true),
        ("s3://bucket/", false, false),
        ("s3://bucket/key", true, true),
        ("s3://a.b-c/x_y/z=1+2/k.v", true, true),
        ("s3://bucket/a//b", false, false),
        ("s3://bucket/../b", false, false),
        ("s3://bucket/a/", false, false),
        ("s3://ab/key", false, false),
        ("s3://Bucket/key", false, false),
        ("s3://user@host/key", false, false),
        ("s3://bucket/key?x", false, false),
        ("s3://bucket/key\n", false, false),
        ("file:///var/anchor", false, false),
        ("", false, false),
    ] {
        check(&ANCHOR, is_anchor, text, anchor);
        check(&ARCHIVE, is_archive, text, archive);
    }
    for (text, valid) in [
        ("https://proofs.example.com", true),
        ("http://[::1]:8000/a/b%20c/", true),
        ("https://", false),
        ("https:///a", false),
        ("https://:8000", false),
        ("https://a?b", false),
        ("https://a#b", false),
        ("https://user@a", false),
        ("https://a b", false),
        ("ftp://a", false),
        ("proofs.example.com", false),
    ] {
        check(&BASE_URL, is_base_url, text, valid);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn patterns_and_code_accept_the_same_addresses(text in "s3://[a-zA./-]{0,6}[a/._=@-]{0,4}", url in "https?://[a:/?\\[%@\\\\' ]{0,6}") {
        prop_assert_eq!(is_anchor(&text), matches(&ANCHOR, &text));
        prop_assert_eq!(is_archive(&text), matches(&ARCHIVE, &text));
        prop_assert_eq!(is_base_url(&url), matches(&BASE_URL, &url));
    }
}

//! The grammar of images in the schema and in the code beside it.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::image::{is_reference, is_tag};

static IMAGE: LazyLock<Value> = LazyLock::new(|| pattern_of("image"));
static EMBEDDED: LazyLock<Value> = LazyLock::new(|| pattern_of("database/properties/embeddedImage"));
static VERSION: LazyLock<Value> = LazyLock::new(|| pattern_of("version"));

#[test]
fn what_no_runtime_could_pull_is_refused() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (text, valid) in [
        ("certeus/dataplane", true),
        ("certeus", true),
        ("postgres:18", true),
        ("localhost:5000/b", true),
        ("registry.example:5000/certeus/data-plane:1.2.3", true),
        ("Registry.Example/a__b/c--d/e.f", true),
        ("[::1]:5000/a", true),
        (&format!("a/b@{digest}"), true),
        (&format!("a/b:1@{digest}"), true),
        ("bad image", false),
        ("a/B", false),
        ("a//b", false),
        ("/a", false),
        ("a/", false),
        ("a/-b", false),
        ("a._b/c", false),
        ("a___b", false),
        ("https://a/b", false),
        ("a:", false),
        ("a:b:c", false),
        ("a:.1", false),
        ("a@sha256:00", false),
        ("a@", false),
        ("a:x/b", false),
        ("a ", false),
        ("a\n", false),
        ("", false),
    ] {
        let seen = (is_reference(text), matches(&IMAGE, text), matches(&EMBEDDED, text));
        assert_eq!(seen, (valid, valid, valid), "{text}");
    }
    let (longest, too_long) = ("1".repeat(128), "1".repeat(129));
    for (text, valid) in [
        ("1.2.3", true),
        ("v1_a-B", true),
        ("_", true),
        (&longest, true),
        (&too_long, false),
        ("a b", false),
        (".1", false),
        ("-1", false),
        ("1+2", false),
        ("a/b", false),
        ("", false),
    ] {
        assert_eq!((is_tag(text), matches(&VERSION, text)), (valid, valid), "{text}");
    }
    let refused = cluster_errors(
        &json!({ "database": { "embedded": true, "embeddedImage": "a b" }, "image": "bad image", "version": "a b" }),
    );
    let paths: Vec<&str> = refused.iter().filter_map(|error| Some(error.split_once(": ")?.0)).collect();
    assert_eq!(paths, ["spec.image", "spec.database.embeddedImage", "spec.version"], "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn patterns_and_code_accept_the_same_images(
        image in "([aA.:\\[\\]1-]{1,5}/)?[aA1._:/-]{1,8}(:[a.-]{0,3})?(@[a-c:+]{1,4}:[a-g0]{31,33})?",
        tag in "[aA1._+-]{0,5}",
    ) {
        prop_assert_eq!(is_reference(&image), matches(&IMAGE, &image), "{}", image);
        prop_assert_eq!(is_tag(&tag), matches(&VERSION, &tag), "{}", tag);
    }
}

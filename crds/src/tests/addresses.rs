//! Patterns of the schema and the code beside them.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::sections::{is_anchor, is_archive, is_base_url};

static ANCHOR: LazyLock<Value> = LazyLock::new(|| pattern_of("log/properties/anchor"));
static ARCHIVE: LazyLock<Value> = LazyLock::new(|| pattern_of("retention/properties/archive"));
static BASE_URL: LazyLock<Value> = LazyLock::new(|| pattern_of("proofs/properties/publicBaseUrl"));

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

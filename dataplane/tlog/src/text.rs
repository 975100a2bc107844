//! The small pieces of text that several formats share.

use std::str::FromStr;

/// A number in ASCII decimal without sign or leading zero, which is how every C2SP format writes numbers.
pub(crate) fn parse_decimal<T: FromStr>(text: &str) -> Option<T> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

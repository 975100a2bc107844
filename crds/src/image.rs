//! What a container image may be called: the grammar of references and tags of the OCI distribution specification and of the
//! container runtimes, as patterns for the schema and as code beside them.

/// The same language as [`is_tag`].
pub(crate) const TAG_PATTERN: &str = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$";

/// The same language as [`is_reference`]: a registry's host and port, components of a name, a tag, a digest.
pub(crate) const REFERENCE_PATTERN: &str = "^(([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\
     |\\[[A-Fa-f0-9:]+\\])(:[0-9]+)?/)?\
     [a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*\
     (:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?\
     (@[A-Za-z][A-Za-z0-9]*([-_+.][A-Za-z][A-Za-z0-9]*)*:[A-Fa-f0-9]{32,})?$";

/// A tag.
pub(crate) fn is_tag(text: &str) -> bool {
    let in_tag = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(in_tag) && !text.starts_with(['.', '-'])
}

/// A name, and a tag and a digest if need be.
pub(crate) fn is_reference(text: &str) -> bool {
    let (text, digest) = split(text, text.find('@'));
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = split(text, text[last..].find(':').map(|colon| last + colon));
    let in_registry = name.split_once('/').is_some_and(|(host, path)| is_host(host) && is_path(path));
    (is_path(name) || in_registry) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

/// What stands before and behind a byte.
fn split(text: &str, at: Option<usize>) -> (&str, Option<&str>) {
    at.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (Err(address), None),
        Some((address, rest)) => (Err(address), Some(rest.strip_prefix(':').unwrap_or_default())),
        None => {
            let (name, port) = split(text, text.find(':'));
            (Ok(name), port)
        }
    };
    let in_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(in_label) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_number = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = match host {
        Ok(name) => name.split('.').all(is_label),
        Err(address) => {
            !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        }
    };
    is_host && port.is_none_or(is_number)
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_component)
}

/// Words of lower-case letters and digits with one dot, one or two underscores, or dashes between two of them.
fn is_component(text: &str) -> bool {
    let in_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    text.bytes().all(|byte| in_word(byte) || b"._-".contains(&byte))
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text.split(|character: char| character.is_ascii_alphanumeric()).all(is_separator)
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_part)
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

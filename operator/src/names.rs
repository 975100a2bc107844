//! Names of Kubernetes objects as they come from options and files, checked where they enter.

use std::fmt;
use std::str::FromStr;

const LABEL_LENGTH_MAX: usize = 63;
const SUBDOMAIN_LENGTH_MAX: usize = 253;

/// A namespace's name: a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Namespace(String);

/// A pod's name: a DNS subdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName(String);

/// Why a text is no such name. Whoever shows it shows the text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "a namespace's name has 1 to {LABEL_LENGTH_MAX} lower-case letters, digits and dashes, the first and the last no dash"
    )]
    Namespace,
    #[error(
        "a pod's name has 1 to {SUBDOMAIN_LENGTH_MAX} lower-case letters, digits, dashes and dots, with a letter or digit at \
         both ends of each part"
    )]
    PodName,
}

impl Namespace {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sound = text.len() <= LABEL_LENGTH_MAX && is_label(text);
        sound.then(|| Self(text.to_owned())).ok_or(Error::Namespace)
    }
}

impl FromStr for PodName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sound = text.len() <= SUBDOMAIN_LENGTH_MAX && text.split('.').all(is_label);
        sound.then(|| Self(text.to_owned())).ok_or(Error::PodName)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    plain && !text.is_empty() && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_kubernetes_takes_are_names() {
        let long = |length: usize| "a".repeat(length);
        for good in ["a", "0", "kube-system", "a--b", &long(63)] {
            assert!(good.parse::<Namespace>().is_ok() && good.parse::<PodName>().is_ok(), "{good}");
        }
        for bad in ["", "A_b", "X y", "-a", "a-", "a/b", "ä", " a", "a\n"] {
            assert!(bad.parse::<Namespace>().is_err() && bad.parse::<PodName>().is_err(), "{bad}");
        }
        assert!("a.b".parse::<Namespace>().is_err() && long(64).parse::<Namespace>().is_err());
        assert!("a.b-0.c".parse::<PodName>().is_ok() && long(253).parse::<PodName>().is_ok());
        for bad in ["a..b", ".a", "a.", "a.-b", &long(254)] {
            assert!(bad.parse::<PodName>().is_err(), "{bad}");
        }
    }
}

//! The form in which rules are delivered and stored, and what must hold of it. The names of the fields are those of Prometheus' rule files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Groups of a document.
const GROUPS_MAX: usize = 64;
/// Rules of a group.
const RULES_MAX: usize = 256;
/// Labels, and annotations, of a rule.
const LABELS_MAX: usize = 64;
/// Targets of a document.
const TARGETS_MAX: usize = 16;
/// Characters of a name, of whatever.
const NAME_LENGTH_MAX: usize = 253;
/// Characters of an expression.
const EXPR_LENGTH_MAX: usize = 8192;
/// Characters of the address of a target.
const URL_LENGTH_MAX: usize = 2048;

/// What is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Invalid {
    /// Such as `groups[0].rules[1].expr`.
    pub path: String,
    /// What is wrong, and what would be valid.
    pub problem: String,
}

fn invalid<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { path: path.into(), problem: problem.into() })
}

/// Namespace and name of the object whose rules a document holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    namespace: String,
    name: String,
}

impl Key {
    /// A key of names such as Kubernetes has. Two dots in a row, which it does not allow, are taken: so the operator tells rules
    /// from objects of different kinds apart.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn new(namespace: &str, name: &str) -> Result<Self, Invalid> {
        for (path, text, length_max, dots) in
            [("namespace", namespace, 63, false), ("name", name, NAME_LENGTH_MAX, true)]
        {
            let plain =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || dots && b == b'.';
            let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            let bytes = text.as_bytes();
            if !bytes.iter().copied().all(plain)
                || !ends(bytes.first())
                || !ends(bytes.last())
                || bytes.len() > length_max
            {
                return invalid(
                    path,
                    format!("must be at most {length_max} lower-case letters, digits and dashes"),
                );
            }
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The rules of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Identity of the object: another object of the same name has another one.
    pub uid: String,
    /// Generation of the object's spec; grows with each edit.
    pub generation: i64,
    /// The rules.
    pub groups: Vec<Group>,
    /// Where alerts go.
    #[serde(default)]
    pub notify: Vec<Target>,
}

/// Rules that are evaluated together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Unique in the document.
    pub name: String,
    /// How often.
    pub interval: Period,
    /// In the order of evaluation.
    pub rules: Vec<Rule>,
}

/// One alerting or recording rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the alert; makes this an alerting rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
    /// Name of the series; makes this a recording rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// PromQL.
    pub expr: String,
    /// How long the expression must hold before the alert fires.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Period>,
    /// How long the alert fires on after the expression stopped to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_firing_for: Option<Period>,
    /// Added to the alert or series.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Texts for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A webhook that gets alerts: its address, or the Secret that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Unique in the document.
    pub name: String,
    /// The address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where the address is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKey>,
    /// Whether to tell when an alert is over.
    pub send_resolved: bool,
}

/// A key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// Name of the Secret.
    pub name: String,
    /// The key in it.
    pub key: String,
}

impl Document {
    /// Reads a document from JSON.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, Invalid> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let document: Self = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            Invalid { path: error.path().to_string(), problem: error.into_inner().to_string() }
        })?;
        deserializer.end().or_else(|error| invalid(".", error.to_string()))?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), Invalid> {
        let Self { uid, generation, groups, notify } = self;
        check_name("uid", uid)?;
        if *generation < 0 {
            return invalid("generation", "must not be below 0");
        }
        check_count("groups", groups.len(), 1, GROUPS_MAX)?;
        check_count("notify", notify.len(), 0, TARGETS_MAX)?;
        let mut names = BTreeSet::new();
        for (g, group) in groups.iter().enumerate() {
            let path = format!("groups[{g}]");
            check_name(&format!("{path}.name"), &group.name)?;
            if !names.insert(&group.name) {
                return invalid(format!("{path}.name"), "an earlier group has the same name");
            }
            if group.interval.millis == 0 {
                return invalid(format!("{path}.interval"), "must be above 0s");
            }
            check_count(&format!("{path}.rules"), group.rules.len(), 1, RULES_MAX)?;
            for (r, rule) in group.rules.iter().enumerate() {
                rule.check(&format!("{path}.rules[{r}]"))?;
            }
        }
        let mut names = BTreeSet::new();
        for (t, target) in notify.iter().enumerate() {
            let path = format!("notify[{t}]");
            check_name(&format!("{path}.name"), &target.name)?;
            if !names.insert(&target.name) {
                return invalid(format!("{path}.name"), "an earlier target has the same name");
            }
            target.check(&path)?;
        }
        Ok(())
    }
}

impl Rule {
    fn check(&self, path: &str) -> Result<(), Invalid> {
        let Self { alert, record, expr, hold_for, keep_firing_for, labels, annotations } = self;
        match (alert, record) {
            (Some(alert), None) => check_name(&format!("{path}.alert"), alert)?,
            (None, Some(record)) => {
                check_name(&format!("{path}.record"), record)?;
                if hold_for.is_some() || keep_firing_for.is_some() || !annotations.is_empty() {
                    return invalid(
                        path,
                        "for, keep_firing_for and annotations belong to alerting rules only",
                    );
                }
            }
            (Some(_), Some(_)) | (None, None) => {
                return invalid(path, "exactly one of alert and record must be given");
            }
        }
        check_text(&format!("{path}.expr"), expr, EXPR_LENGTH_MAX)?;
        check_count(&format!("{path}.labels"), labels.len(), 0, LABELS_MAX)?;
        check_count(&format!("{path}.annotations"), annotations.len(), 0, LABELS_MAX)
    }
}

impl Target {
    fn check(&self, path: &str) -> Result<(), Invalid> {
        match (&self.url, &self.url_secret_ref) {
            (Some(url), None) => check_text(&format!("{path}.url"), url, URL_LENGTH_MAX),
            (None, Some(SecretKey { name, key })) => {
                check_name(&format!("{path}.url_secret_ref.name"), name)?;
                check_name(&format!("{path}.url_secret_ref.key"), key)
            }
            (Some(_), Some(_)) | (None, None) => {
                invalid(path, "exactly one of url and url_secret_ref must be given")
            }
        }
    }
}

fn check_count(path: &str, count: usize, min: usize, max: usize) -> Result<(), Invalid> {
    if (min..=max).contains(&count) {
        return Ok(());
    }
    invalid(path, format!("must have {min} to {max} entries, not {count}"))
}

fn check_name(path: &str, name: &str) -> Result<(), Invalid> {
    check_text(path, name, NAME_LENGTH_MAX)
}

fn check_text(path: &str, text: &str, length_max: usize) -> Result<(), Invalid> {
    if !text.trim().is_empty() && text.chars().count() <= length_max {
        return Ok(());
    }
    invalid(path, format!("must have 1 to {length_max} characters"))
}

/// A span of whole milliseconds, written as Prometheus does: `15s`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    millis: u64,
}

/// Unit and its milliseconds, largest first.
const UNITS: [(&str, u64); 7] = [
    ("y", 31_536_000_000),
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Period {
    /// In seconds.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        std::time::Duration::from_millis(self.millis).as_secs_f64()
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration such as 15s or 1h30m, or is too long");
        if text == "0" {
            return Ok(Self { millis: 0 });
        }
        let (mut rest, mut millis, mut units) = (text, 0_u64, UNITS.iter());
        while !rest.is_empty() || text.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let letters = rest[digits..].bytes().take_while(u8::is_ascii_lowercase).count();
            let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
            // What was skipped is not looked at again: larger units stand first, each once.
            let (_, factor) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
            millis = part.and_then(|part| millis.checked_add(part)).ok_or_else(wrong)?;
            rest = &rest[digits + letters..];
        }
        Ok(Self { millis })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        // Years and weeks are read, not written: 90d says more than 12w6d.
        for (unit, millis) in UNITS.iter().filter(|(unit, _)| !["y", "w"].contains(unit)) {
            if rest >= *millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

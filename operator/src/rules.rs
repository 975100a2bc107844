//! Decides about `AlertRule`s, and `PrometheusRule`s that are given to a cluster: whether pods may have the rules, which pods lack
//! them, and what the status says.
//! Pure, and one object at a time, so that a mistake in one hurts no other. Follows the checks of Prometheus' own rule files; where it
//! is stricter, the rule could only have failed later, at each evaluation or when its alert fires.
//! Promises: no error repeats the address of a notify target. Read next: `delivery.rs`, `template.rs`, `prometheus_rule.rs`.

mod delivery;
mod prometheus_rule;
mod promql;
mod status;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use bytes::Bytes;
use certeus_crds::{AlertRule, Duration, FieldError, NotifyTarget, Rule, RuleGroup, field_path};
use hyper::Uri;
use serde::Serialize;

pub use delivery::{Loaded, LoadedRules, Plan, Step, Wanted, path, plan};
pub use prometheus_rule::{CLUSTER_LABEL, import, imported_name, name_of_imported, prometheus_rule_resource};
pub use status::{CLUSTER_NOT_FOUND, Delivery, INVALID, PARTIAL, Subject, VALID, status};

/// Rules are evaluated at most this often.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// And at least this often: an alert that is looked at less than daily guards nothing.
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
/// Longest `for` and `keep_firing_for`.
const HOLD_MAX: Duration = Duration::from_secs(31 * 86_400);
/// What a pod takes for one object.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The label that holds the name of a series.
const NAME_LABEL: &str = "__name__";

/// Rules that pods may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// What is sent to the pods, as JSON.
    pub body: Bytes,
    /// How many groups. A `PrometheusRule` may have none that pods can use; then they have nothing of it.
    pub groups: usize,
    /// How many rules in all of them.
    pub rules: usize,
    /// What pods do not get of the object, in words; mostly nothing.
    pub left_out: String,
}

/// What is sent to a pod. Groups have the form they have in the object, which is that of Prometheus.
#[derive(Serialize)]
struct Body<'a> {
    uid: &'a str,
    generation: i64,
    groups: &'a [RuleGroup],
    notify: Vec<Target<'a>>,
}

/// An address that is secret goes by the name of its Secret: the value is nothing to keep in a pod that sends nothing yet.
#[derive(Serialize)]
struct Target<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url_secret_ref: Option<SecretKey<'a>>,
    send_resolved: bool,
}

#[derive(Serialize)]
struct SecretKey<'a> {
    name: &'a str,
    key: &'a str,
}

/// Checks `object` and forms what is sent to the pods.
///
/// # Errors
/// Everything that is wrong with it.
pub fn validate(object: &AlertRule) -> Result<Accepted, Vec<FieldError>> {
    let mut errors = object.check();
    for (index, group) in object.spec.groups.iter().enumerate() {
        check_group(index, group, &mut errors);
    }
    for (index, target) in object.spec.notify.iter().enumerate() {
        check_target(index, target, &mut errors);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let body = Body {
        uid: object.metadata.uid.as_deref().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        groups: &object.spec.groups,
        notify: object.spec.notify.iter().map(Target::from).collect(),
    };
    let too_large = |problem: String| vec![FieldError::new("spec", problem)];
    let body = serde_json::to_vec(&body)
        .map_err(|error| too_large(format!("cannot be written as JSON: {error}")))?;
    if body.len() > BODY_BYTES_MAX {
        return Err(too_large(format!(
            "has {} bytes as JSON; pods take at most {BODY_BYTES_MAX}",
            body.len()
        )));
    }
    let rules = object.spec.groups.iter().map(|group| group.rules.len()).sum();
    // Without what the writer set aside beyond it: all of them are kept.
    let body = body.into_boxed_slice().into();
    Ok(Accepted { body, groups: object.spec.groups.len(), rules, left_out: String::new() })
}

impl<'a> From<&'a NotifyTarget> for Target<'a> {
    fn from(target: &'a NotifyTarget) -> Self {
        let NotifyTarget { name, url, url_secret_ref, send_resolved } = target;
        let url_secret_ref = url_secret_ref.as_ref();
        Self {
            name,
            url: url.as_deref(),
            url_secret_ref: url_secret_ref.map(|key| SecretKey { name: &key.name, key: &key.key }),
            send_resolved: *send_resolved,
        }
    }
}

fn check_group(index: usize, group: &RuleGroup, errors: &mut Vec<FieldError>) {
    let path = format!("spec.groups[{index}]");
    // Of zero the object's own check has told.
    let interval = group.interval;
    if interval.as_millis() > 0 && !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        let problem = format!("group {:?}: must be from {INTERVAL_MIN} to {INTERVAL_MAX}", group.name);
        errors.push(FieldError::new(format!("{path}.interval"), problem));
    }
    let mut seen = BTreeSet::new();
    for (r, rule) in group.rules.iter().enumerate() {
        let place = Place { path: format!("{path}.rules[{r}]"), group: &group.name, rule };
        check_rule(&place, errors);
        // Prometheus' own mixins have rules of one name and different expressions in a group: only a copy is a mistake.
        if !seen.insert((&rule.alert, &rule.record, &rule.labels, rule.expr.trim())) {
            errors.push(
                place.error(
                    "",
                    "is a copy of an earlier rule of the group: name, labels and expr are the same",
                ),
            );
        }
    }
}

/// Where a rule stands, for its errors.
struct Place<'a> {
    path: String,
    group: &'a str,
    rule: &'a Rule,
}

impl Place<'_> {
    /// An error in a field of the rule, or in the rule as such where that is empty.
    fn error(&self, field: &str, problem: impl std::fmt::Display) -> FieldError {
        let path = if field.is_empty() { self.path.clone() } else { format!("{}.{field}", self.path) };
        self.error_at(path, problem)
    }

    fn error_at(&self, path: String, problem: impl std::fmt::Display) -> FieldError {
        let rule = match (&self.rule.alert, &self.rule.record) {
            (Some(alert), _) => format!(", alert {alert:?}"),
            (None, Some(record)) => format!(", record {record:?}"),
            (None, None) => String::new(),
        };
        FieldError::new(path, format!("group {:?}{rule}: {problem}", self.group))
    }
}

fn check_rule(place: &Place<'_>, errors: &mut Vec<FieldError>) {
    let Rule { alert, record, expr, hold_for, keep_firing_for, labels, annotations } = place.rule;
    if let Err(problem) = promql::check(expr) {
        errors.push(place.error("expr", problem));
    }
    for (field, name) in [("alert", alert), ("record", record)] {
        if let Some(problem) = name.as_deref().and_then(wrong_name) {
            errors.push(place.error(field, problem));
        }
    }
    if record.as_ref().is_some_and(|record| record.contains(['{', '}'])) {
        errors.push(place.error("record", "must be a name without { and }; put labels into labels"));
    }
    for (field, duration) in [("for", hold_for), ("keep_firing_for", keep_firing_for)] {
        if duration.is_some_and(|duration| duration > HOLD_MAX) {
            errors.push(place.error(field, format!("must be at most {HOLD_MAX}")));
        }
    }
    for (field, texts) in [("labels", labels), ("annotations", annotations)] {
        for (name, text) in texts.iter().flatten() {
            let path = field_path(&format!("{}.{field}", place.path), name);
            if let Some(problem) = wrong_name(name) {
                errors.push(place.error_at(path.clone(), format!("the name {problem}")));
            }
            if field == "labels" && name == NAME_LABEL {
                let problem = "the name of a series is given by record, not by this label";
                errors.push(place.error_at(path.clone(), problem));
            }
            // The labels of a recording rule are taken as they are.
            if alert.is_some()
                && let Err(problem) = template::check(text)
            {
                errors.push(place.error_at(path, format!("not a valid template: {problem}")));
            }
        }
    }
}

/// Prometheus 3 takes any text for a name. Control characters would only spoil logs and pages.
fn wrong_name(name: &str) -> Option<&'static str> {
    if name.trim().is_empty() {
        Some("must not be empty")
    } else if name.contains(char::is_control) {
        Some("must not contain control characters")
    } else {
        None
    }
}

/// The errors do not repeat the address: it may hold what was meant to be secret.
fn check_target(index: usize, target: &NotifyTarget, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: &str, problem: String| {
        errors.push(FieldError::new(format!("spec.notify[{index}].{field}"), problem));
    };
    if let Some(problem) = wrong_name(&target.name) {
        wrong("name", problem.to_owned());
    }
    let Some(url) = &target.url else { return };
    let name = &target.name;
    let Ok(uri) = url.parse::<Uri>() else {
        return wrong(
            "url",
            format!("target {name:?}: is not an address such as https://alerts.example.com/hook"),
        );
    };
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            wrong(
                "url",
                format!(
                    "target {name:?}: has a user or a password in it; put it into a Secret (urlSecretRef)"
                ),
            );
        }
        Some(authority) if !authority.host().is_empty() => {}
        Some(_) | None => wrong("url", format!("target {name:?}: names no host")),
    }
}

//! `PrometheusRule`s of the Prometheus operator: their alerting rules, in the form in which pods get those of `AlertRule`s, and what is
//! left out of them. Checked as `AlertRule`s are. Promises: errors name the place in the object that the user wrote; no name that pods
//! know a `PrometheusRule` under is one of an `AlertRule`.

use std::collections::BTreeSet;
use std::mem::take;

use certeus_crds::{AlertRule, FieldError, GROUP, VERSION};
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use serde_json::{Map, Value, json};

use super::{Accepted, BODY_BYTES_MAX, validate};
use crate::counted;

/// The label that gives a `PrometheusRule` to the `LedgerCluster` of this name in the same namespace.
pub const CLUSTER_LABEL: &str = "certeus.io/cluster";
/// Begins the names under which pods know `PrometheusRule`s. No object of Kubernetes has two dots in a row in its name.
const PREFIX: &str = "prometheusrule..";
/// Longest name of rules that pods take.
const NAME_LENGTH_MAX: usize = 253;
/// What counts of a group and of a rule. Pods know no more.
const GROUP_FIELDS: [&str; 4] = ["name", "interval", "labels", "rules"];
const RULE_FIELDS: [&str; 7] = ["alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"];

/// The kind of the Prometheus operator that holds rules.
#[must_use]
pub fn prometheus_rule_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PrometheusRule"))
}

/// The name under which pods know the rules of the `PrometheusRule` of this name.
#[must_use]
pub fn imported_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The name of the `PrometheusRule` whose rules pods know under `name`; `None` if they are an `AlertRule`'s.
#[must_use]
pub fn name_of_imported(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

/// Checks the alerting rules of a `PrometheusRule` and forms what is sent to the pods: nothing if it has none. Its labels have no part in that,
/// so the result holds for the whole generation.
///
/// # Errors
/// Everything that is wrong with it.
pub fn import(mut object: DynamicObject) -> Result<Accepted, Vec<FieldError>> {
    let name_length_max = NAME_LENGTH_MAX - PREFIX.len();
    if object.metadata.name.as_ref().is_some_and(|name| name.len() > name_length_max) {
        let problem = format!("must have at most {name_length_max} characters for pods to take the rules");
        return Err(vec![FieldError::new("metadata.name", problem)]);
    }
    let mut alerting = Alerting::default();
    match object.data.pointer_mut("/spec/groups").map(Value::take) {
        None | Some(Value::Null) => {}
        Some(Value::Array(groups)) => {
            groups.into_iter().enumerate().for_each(|(index, group)| alerting.take_group(index, group));
        }
        Some(_) => return Err(vec![FieldError::new("spec.groups", "must be an array")]),
    }
    let Alerting { groups, places, records, ignored, label_bytes } = alerting;
    if label_bytes > BODY_BYTES_MAX {
        let problem =
            format!("labels of groups, on each of their rules, have more than {BODY_BYTES_MAX} bytes");
        return Err(vec![FieldError::new("spec", problem)]);
    }
    let mut left_out = Vec::new();
    if records > 0 {
        left_out.push(format!("left out: {}", counted(records, "recording rule")));
    }
    if !ignored.is_empty() {
        let fields: Vec<String> = ignored.into_iter().collect();
        left_out.push(format!("without effect: {}", fields.join(", ")));
    }
    let left_out = left_out.join("; ");
    if groups.is_empty() {
        return Ok(Accepted { left_out, ..Accepted::default() });
    }
    let metadata = &object.metadata;
    // Which cluster they are for has no part in the checks.
    let rule = AlertRule::read(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "AlertRule",
        "metadata": { "uid": metadata.uid, "generation": metadata.generation },
        "spec": { "clusterRef": { "name": "any" }, "groups": groups },
    }));
    rule.and_then(|rule| validate(&rule)).map(|accepted| Accepted { left_out, ..accepted }).map_err(
        |errors| {
            let at_its_place = |FieldError { path, problem }| FieldError {
                path: original(&path, &places).unwrap_or(path),
                problem,
            };
            errors.into_iter().map(at_its_place).collect()
        },
    )
}

/// The alerting rules of an object. What has another shape than it should is kept, for the checks to tell of.
#[derive(Default)]
struct Alerting {
    groups: Vec<Value>,
    /// Where each of these groups and its rules stand in the object.
    places: Vec<(usize, Vec<usize>)>,
    /// Recording rules, which are left out.
    records: usize,
    /// Fields that have no effect.
    ignored: BTreeSet<String>,
    /// What groups' labels add to their rules. Past what pods take nothing is added any more: a group has many rules.
    label_bytes: usize,
}

impl Alerting {
    fn take_group(&mut self, index: usize, group: Value) {
        let mut places = Vec::new();
        let group = match group {
            Value::Object(mut group) => {
                self.keep(&mut group, &GROUP_FIELDS);
                let labels = group.remove("labels").unwrap_or_default();
                let label_bytes = labels.to_string().len();
                let mut rules = group.remove("rules").unwrap_or_default();
                if let Value::Array(all) = &mut rules {
                    for (index, rule) in take(all).into_iter().enumerate() {
                        if let Some(rule) = self.alerting_rule(rule, &labels, label_bytes) {
                            all.push(rule);
                            places.push(index);
                        }
                    }
                }
                let has_none = rules.is_null() || rules.as_array().is_some_and(Vec::is_empty);
                if has_none {
                    return;
                }
                group.insert("rules".to_owned(), rules);
                Value::Object(group)
            }
            other => other,
        };
        self.groups.push(group);
        self.places.push((index, places));
    }

    /// A rule with its group's labels; `None` if it is a recording rule.
    fn alerting_rule(&mut self, rule: Value, labels: &Value, label_bytes: usize) -> Option<Value> {
        let Value::Object(mut rule) = rule else { return Some(rule) };
        let has = |field: &str| rule.get(field).is_some_and(|value| !value.is_null());
        if has("record") && !has("alert") {
            self.records += 1;
            return None;
        }
        self.keep(&mut rule, &RULE_FIELDS);
        // An int-or-string.
        if let Some(Value::Number(number)) = rule.get("expr") {
            let expr = number.to_string();
            rule.insert("expr".to_owned(), Value::String(expr));
        }
        if labels.is_null() {
            return Some(Value::Object(rule));
        }
        self.label_bytes = self.label_bytes.saturating_add(label_bytes);
        if self.label_bytes > BODY_BYTES_MAX {
            return None;
        }
        let labels = match (rule.remove("labels").unwrap_or_default(), labels) {
            // As in Prometheus: the rule's own value counts.
            (Value::Object(own), Value::Object(labels)) => {
                Value::Object(labels.clone().into_iter().chain(own).collect())
            }
            (own, Value::Object(_)) if !own.is_null() => own,
            (_, labels) => labels.clone(),
        };
        rule.insert("labels".to_owned(), labels);
        Some(Value::Object(rule))
    }

    /// Drops what pods do not know and takes note of it.
    fn keep(&mut self, object: &mut Map<String, Value>, known: &[&str]) {
        object.retain(|field, value| {
            let is_known = known.contains(&field.as_str());
            if !is_known && !value.is_null() {
                self.ignored.insert(field.clone());
            }
            is_known
        });
    }
}

/// The path in the object of what has this one among its alerting rules.
fn original(path: &str, places: &[(usize, Vec<usize>)]) -> Option<String> {
    let (group, rest) = path.strip_prefix("spec.groups[")?.split_once(']')?;
    let (group, rules) = places.get(group.parse::<usize>().ok()?)?;
    let path = format!("spec.groups[{group}]");
    let Some((rule, rest)) = rest.strip_prefix(".rules[").and_then(|rest| rest.split_once(']')) else {
        return Some(path + rest);
    };
    let rule = rules.get(rule.parse::<usize>().ok()?)?;
    Some(format!("{path}.rules[{rule}]{rest}"))
}

#[cfg(test)]
mod tests;

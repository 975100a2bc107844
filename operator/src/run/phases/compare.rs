//! Whether an object on the API server is as we would write it. Pure.

use serde_json::{Map, Value};

/// What of a StatefulSet's specification may change; all else is fixed when it is created.
const STATEFUL_SET_MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// Label selectors are ours as a whole, wherever they stand: the API server adds nothing to them, and with an entry more they
/// select other pods. An apply replaces them, as they are atomic to the API server. Template labels are not among them: whoever
/// injects something into pods labels them, and they select nothing.
const SELECTORS: [&str; 4] = ["selector", "podSelector", "namespaceSelector", "labelSelector"];

/// Whether `live` has everything that `desired` says. What the API server or others added besides does not count, except
/// in lists and label selectors: an element more is a difference. May report a difference where there is none (two spellings of a quantity); an
/// apply then changes nothing.
pub(crate) fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(name, value)| match live.get(name) {
                Some(present) => {
                    contains(present, value)
                        && (!SELECTORS.contains(&name.as_str()) || adds_nothing(present, value))
                }
                None => is_empty(value),
            })
        }
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len()
                && live.iter().zip(desired).all(|(live, desired)| contains(live, desired))
        }
        (live, desired) => live == desired || (is_empty(live) && is_empty(desired)),
    }
}

/// Whether `live`, which has everything that `desired` says, says no more than that.
fn adds_nothing(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), desired) => live.iter().all(|(name, present)| match desired.get(name) {
            Some(value) => adds_nothing(present, value),
            None => is_empty(present),
        }),
        (Value::Array(live), Value::Array(desired)) => {
            live.iter().zip(desired).all(|(live, desired)| adds_nothing(live, desired))
        }
        (_, _) => true,
    }
}

/// Whether the lists of `live` have as many elements as those of `desired`.
pub(crate) fn lists_agree(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired
            .iter()
            .all(|(name, value)| live.get(name).is_none_or(|present| lists_agree(present, value))),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len()
                && live.iter().zip(desired).all(|(live, desired)| lists_agree(live, desired))
        }
        (_, _) => true,
    }
}

/// `live` with everything that `desired` says: fields are added or replaced, lists are as `desired` has them.
pub(crate) fn overlay(live: Value, desired: &Value) -> Value {
    match (live, desired) {
        (Value::Object(mut live), Value::Object(desired)) => {
            for (name, value) in desired {
                let present = live.remove(name).unwrap_or_default();
                live.insert(name.clone(), overlay(present, value));
            }
            Value::Object(live)
        }
        (Value::Array(live), Value::Array(desired)) if live.len() == desired.len() => Value::Array(
            live.into_iter().zip(desired).map(|(live, desired)| overlay(live, desired)).collect(),
        ),
        (_, desired) => desired.clone(),
    }
}

/// The API server leaves out what says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Puts into a desired StatefulSet what the live one has of the fields that nobody can change, and names those that differed.
/// So everything else can still be changed.
pub(crate) fn keep_fixed_fields(desired: &mut Value, live: &Value) -> Vec<String> {
    let (Some(desired), Some(live)) = (spec(desired), live.get("spec").and_then(Value::as_object)) else {
        return Vec::new();
    };
    let mut kept = Vec::new();
    for (name, value) in desired.iter_mut() {
        if STATEFUL_SET_MUTABLE.contains(&name.as_str()) {
            continue;
        }
        let present = live.get(name).unwrap_or(&Value::Null);
        if !contains(present, value) {
            value.clone_from(present);
            kept.push(format!("spec.{name}"));
        }
    }
    desired.retain(|_, value| !value.is_null());
    kept
}

fn spec(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.get_mut("spec")?.as_object_mut()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(live: &Value, desired: &Value, expected: bool) {
        assert_eq!(contains(live, desired), expected, "{live} {desired}");
    }

    #[test]
    fn what_others_add_is_no_difference_and_what_they_change_is() {
        let live = json!({ "a": 1, "b": { "c": ["x", { "d": 2, "default": true }] }, "status": {} });
        check(&live, &json!({ "a": 1 }), true);
        check(&live, &json!({ "b": { "c": ["x", { "d": 2 }] } }), true);
        check(&live, &json!({ "a": 2 }), false);
        check(&live, &json!({ "b": { "c": ["x"] } }), false);
        check(&live, &json!({ "b": { "c": ["y", { "d": 2 }] } }), false);
        check(&live, &json!({ "e": 1 }), false);
        check(&live, &json!({ "e": {}, "f": [], "g": null }), true);
        check(&json!({ "ingress": [{ "a": 1 }, {}] }), &json!({ "ingress": [{ "a": 1 }] }), false);
    }

    #[test]
    fn an_entry_more_in_a_selector_is_a_difference() {
        let labels = |labels: Value| json!({ "spec": { "selector": labels, "podSelector": { "matchLabels": labels } } });
        let desired = labels(json!({ "name": "a" }));
        check(&desired, &desired, true);
        check(&labels(json!({ "name": "a", "their": "entry" })), &desired, false);
        let with = |expressions: Value| json!({ "selector": { "matchLabels": { "name": "a" }, "matchExpressions": expressions } });
        let desired = json!({ "selector": { "matchLabels": { "name": "a" } } });
        check(&with(json!([])), &desired, true);
        check(&with(json!([{ "key": "their", "operator": "Exists" }])), &desired, false);
        // One that selects everything selects less with an entry.
        let everywhere =
            |selector: Value| json!({ "ingress": [{ "from": [{ "namespaceSelector": selector }] }] });
        check(&everywhere(json!({})), &everywhere(json!({})), true);
        check(&everywhere(json!({ "matchLabels": { "their": "entry" } })), &everywhere(json!({})), false);
        let node = json!({ "nodeSelector": { "a": "b", "their": "entry" }, "labels": { "their": "entry" } });
        check(&node, &json!({ "nodeSelector": { "a": "b" }, "labels": {} }), true);
    }

    #[test]
    fn what_others_added_to_a_list_goes_and_what_the_server_filled_in_stays() {
        let live = json!({ "ports": [{ "port": 1, "default": true }], "extra": [1], "ip": "x" });
        let desired = json!({ "ports": [{ "port": 2 }], "extra": [] });
        assert!(!lists_agree(&live, &desired) && lists_agree(&live, &json!({ "ports": [{ "port": 9 }] })));
        let expected = json!({ "ports": [{ "port": 2, "default": true }], "extra": [], "ip": "x" });
        assert_eq!(overlay(live, &desired), expected);
    }

    #[test]
    fn fixed_fields_of_a_stateful_set_stay_and_are_named() {
        let live = json!({ "spec": { "replicas": 2, "serviceName": "old", "podManagementPolicy": "Parallel",
            "volumeClaimTemplates": [{ "spec": { "size": 1, "mode": "Filesystem" } }] } });
        let mut desired = json!({ "spec": { "replicas": 5, "serviceName": "old", "template": {},
            "volumeClaimTemplates": [{ "spec": { "size": 2 } }] } });
        assert_eq!(keep_fixed_fields(&mut desired, &live), ["spec.volumeClaimTemplates"]);
        let expected = json!({ "replicas": 5, "serviceName": "old", "template": {},
            "volumeClaimTemplates": [{ "spec": { "size": 1, "mode": "Filesystem" } }] });
        assert_eq!(desired["spec"], expected);
        assert_eq!(keep_fixed_fields(&mut desired, &live), [""; 0]);
    }
}

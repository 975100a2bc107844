//! Objects in the shape that the Prometheus operator documents, and in shapes that it would refuse.

use std::path::Path;

use super::*;

fn object(groups: Value) -> DynamicObject {
    let mut object = json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": { "name": "a", "namespace": "ns", "uid": "u-1", "generation": 1 },
    });
    object["spec"]["groups"] = groups;
    serde_json::from_value(object).unwrap()
}

/// What is wrong with an object of these groups.
#[track_caller]
fn errors(groups: Value) -> Vec<String> {
    import(object(groups)).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn an_object_of_the_documented_shape_becomes_what_pods_are_sent() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read_to_string(folder.join("prometheusrule.yaml")).unwrap();
    let accepted = import(serde_saphyr::from_str(&text).unwrap()).unwrap();
    assert_eq!((accepted.groups, accepted.rules), (2, 3));
    assert_eq!(
        accepted.left_out,
        "left out: 2 recording rules; without effect: limit, partial_response_strategy, query_offset"
    );
    let body: Value = serde_json::from_slice(&accepted.body).unwrap();
    let body = serde_json::to_string_pretty(&body).unwrap() + "\n";
    let path = folder.join("prometheusrule.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &body).unwrap();
    }
    assert_eq!(body, std::fs::read_to_string(&path).unwrap(), "run with UPDATE_GOLDEN=1 and read the diff");
}

#[test]
fn mistakes_are_told_with_their_place_in_the_object() {
    let record = json!({ "record": "a:b", "expr": "sum(" });
    let none = json!({ "name": "none", "rules": [] });
    let only_records = json!({ "name": "records", "rules": [record] });
    let group = |rules: Value| json!([only_records, none, { "name": "g", "rules": rules }]);
    let valid = json!({ "alert": "Up", "expr": "up == 1" });
    for (rule, expected) in [
        (json!({ "alert": "Down", "expr": "up ==" }), r#".expr: group "g", alert "Down": is not PromQL"#),
        (json!({ "alert": "Down", "expr": {} }), ".expr: must be a string, not an object"),
        (json!({ "alert": "Down" }), ".expr: is required"),
        (json!({ "alert": "Down", "expr": "up", "for": "5 minutes" }), ".for: "),
        (json!({ "alert": "Down", "expr": "up", "labels": { "a": 1 } }), ".labels.a: must be a string"),
        (json!({ "alert": "Down", "expr": "up", "labels": [] }), ".labels: must be an object"),
        (
            json!({ "alert": "Down", "expr": "up", "annotations": { "a": "{{ $x }}" } }),
            r#".annotations.a: group "g", alert "Down": not a valid template"#,
        ),
        (json!({ "expr": "up" }), ": exactly one of alert and record must be given"),
        (json!({ "alert": "Down", "record": "b", "expr": "up" }), ": exactly one of alert and record"),
        (valid.clone(), r#": group "g", alert "Up": is a copy of an earlier rule"#),
        (json!("up"), ": must be an object, not a string"),
    ] {
        let told = errors(group(json!([record, valid, record, rule])));
        assert!(told[0].starts_with("spec.groups[2].rules[3]"), "{told:?}");
        assert!(told[0].contains(expected), "{expected}: {told:?}");
    }
    for (groups, expected) in [
        (json!("x"), "spec.groups: must be an array"),
        (json!([none, "x"]), "spec.groups[1]: must be an object, not a string"),
        (json!([none, { "name": "g", "rules": 1 }]), "spec.groups[1].rules: must be an array"),
        (json!([none, { "rules": [valid] }]), "spec.groups[1].name: is required"),
        (
            json!([none, { "name": "g", "interval": "2d", "rules": [valid] }]),
            "spec.groups[1].interval: group",
        ),
        (
            json!([none, { "name": "g", "labels": "x", "rules": [valid] }]),
            "spec.groups[1].rules[0].labels: must be an object",
        ),
        (
            json!([{ "name": "g", "rules": [valid] }, none, { "name": "g", "rules": [valid] }]),
            "spec.groups[2]: must differ from all others in name",
        ),
    ] {
        let told = errors(groups);
        assert!(told[0].starts_with(expected), "{expected}: {told:?}");
    }
}

#[test]
fn an_object_without_alerting_rules_is_empty_and_not_wrong() {
    for groups in [json!(null), json!([]), json!([{ "name": "g" }]), json!([{ "name": "g", "rules": null }])]
    {
        assert_eq!(import(object(groups)), Ok(Accepted::default()));
    }
    let records =
        json!([{ "name": "g", "limit": null, "rules": [{ "record": "a:b", "alert": null, "expr": 1 }] }]);
    let accepted = import(object(records)).unwrap();
    assert_eq!((accepted.groups, &*accepted.left_out), (0, "left out: 1 recording rule"));
    let mut bare = object(json!(null));
    bare.data = json!({});
    assert_eq!(import(bare), Ok(Accepted::default()));
}

#[test]
fn labels_of_a_group_cannot_make_a_small_object_huge() {
    let rules = vec![json!({ "alert": "a", "expr": "1" }); 20_000];
    let labels = json!({ "a": "x".repeat(500_000) });
    let told = errors(json!([{ "name": "g", "labels": labels, "rules": rules }]));
    assert_eq!(told, ["spec: labels of groups, on each of their rules, have more than 1048576 bytes"]);
}

#[test]
fn names_are_none_of_an_alert_rule_and_fit_into_a_pod() {
    assert_eq!(name_of_imported(&imported_name("a.b")), Some("a.b"));
    assert_eq!(name_of_imported("prometheusrule.a"), None);
    for (length, fits) in [(237, true), (238, false)] {
        let mut object = object(json!([]));
        let name = "x".repeat(length);
        assert_eq!(imported_name(&name).len() <= NAME_LENGTH_MAX, fits);
        object.metadata.name = Some(name);
        assert_eq!(import(object).is_ok(), fits);
    }
}

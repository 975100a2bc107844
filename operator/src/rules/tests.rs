//! The validation of whole objects, the difference to what a pod has, and the status that follows.

use std::collections::BTreeMap;

use certeus_crds::{AlertRule, AlertRuleStatus};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

/// A valid object of two rules, with some of it replaced.
fn object(changes: &[(&str, Value)]) -> AlertRule {
    let mut value = json!({
        "apiVersion": "certeus.io/v1alpha1", "kind": "AlertRule",
        "metadata": { "name": "rules", "namespace": "ns", "uid": "u-1", "generation": 3 },
        "spec": {
            "clusterRef": { "name": "demo" },
            "groups": [{ "name": "g", "interval": "15s", "rules": [
                { "record": "job:up:sum", "expr": "sum by (job) (up)", "labels": { "team": "no template: }}" } },
                { "alert": "Down", "expr": "up == 0", "for": "1m", "keep_firing_for": "5m",
                    "labels": { "severity": "page" }, "annotations": { "summary": "{{ $labels.instance }} is down" } }
            ] }],
            "notify": [
                { "name": "team", "url": "https://alerts.example.com/hook" },
                { "name": "secret", "urlSecretRef": { "name": "hooks", "key": "url" }, "sendResolved": false }
            ]
        }
    });
    for (pointer, new) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = value.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = new.clone(),
            other => other[key] = new.clone(),
        }
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_valid_object_becomes_what_pods_are_sent() {
    let accepted = validate(&object(&[])).unwrap();
    let body: Value = serde_json::from_slice(&accepted.body).unwrap();
    assert_eq!((&body["uid"], &body["generation"]), (&json!("u-1"), &json!(3)));
    assert_eq!(body["groups"][0]["rules"][1]["keep_firing_for"], "5m");
    assert_eq!(
        body["notify"],
        json!([
            { "name": "team", "url": "https://alerts.example.com/hook", "send_resolved": true },
            { "name": "secret", "url_secret_ref": { "name": "hooks", "key": "url" }, "send_resolved": false }
        ])
    );
}

#[test]
fn every_mistake_is_named_with_group_rule_and_field() {
    const RECORD: &str = "/spec/groups/0/rules/0";
    const ALERT: &str = "/spec/groups/0/rules/1";
    let record = |field: &str| format!("{RECORD}/{field}");
    let alert = |field: &str| format!("{ALERT}/{field}");
    let copy = json!({ "alert": "Down", "expr": " up == 0 ", "labels": { "severity": "page" } });
    let cases: [(String, Value, &str); 22] = [
        (
            alert("expr"),
            json!("up =="),
            r#"spec.groups[0].rules[1].expr: group "g", alert "Down": is not PromQL: "#,
        ),
        (
            record("expr"),
            json!("up[5m]"),
            r#"spec.groups[0].rules[0].expr: group "g", record "job:up:sum": gives a matrix; "#,
        ),
        (
            alert("alert"),
            json!("a\nb"),
            "rules[1].alert: group \"g\", alert \"a\\nb\": must not contain control characters",
        ),
        (alert("alert"), json!(" "), "rules[1].alert: group \"g\", alert \" \": must not be empty"),
        (
            record("record"),
            json!("up{a=\"b\"}"),
            "rules[0].record: group \"g\", record \"up{a=\\\"b\\\"}\": must be a name without",
        ),
        (alert("for"), json!("90d"), "rules[1].for: group \"g\", alert \"Down\": must be at most 31d"),
        (
            alert("keep_firing_for"),
            json!("32d"),
            "rules[1].keep_firing_for: group \"g\", alert \"Down\": must be at most 31d",
        ),
        (
            alert("labels"),
            json!({ "__name__": "x" }),
            "rules[1].labels.__name__: group \"g\", alert \"Down\": the name of a series",
        ),
        (alert("labels"), json!({ "": "x" }), "the name must not be empty"),
        (
            alert("labels"),
            json!({ "a": "{{ $x }}" }),
            "rules[1].labels.a: group \"g\", alert \"Down\": not a valid template: line 1, column 4: there is no variable $x",
        ),
        (
            alert("annotations"),
            json!({ "a": "é\n {{ humanize" }),
            "rules[1].annotations.a: group \"g\", alert \"Down\": not a valid template: line 2, column 5: humanize takes",
        ),
        (
            record("annotations"),
            json!({ "a": "b" }),
            "rules[0]: for, keep_firing_for and annotations belong to alerting rules only",
        ),
        (record("alert"), json!("Both"), "rules[0]: exactly one of alert and record"),
        (RECORD.to_owned(), copy, "rules[1]: group \"g\", alert \"Down\": is a copy of an earlier rule"),
        ("/spec/groups/0/interval".to_owned(), json!("0s"), "spec.groups[0].interval: must be above 0s"),
        (
            "/spec/groups/0/interval".to_owned(),
            json!("10ms"),
            "spec.groups[0].interval: group \"g\": must be from 1s to 1d",
        ),
        (
            "/spec/groups/0/interval".to_owned(),
            json!("2d"),
            "spec.groups[0].interval: group \"g\": must be from 1s to 1d",
        ),
        ("/spec/notify/0/name".to_owned(), json!("secret"), "spec.notify"),
        (
            "/spec/notify/0/url".to_owned(),
            json!("https://hush:hush@x/"),
            "spec.notify[0].url: target \"team\": has a user or a password",
        ),
        (
            "/spec/notify/0/url".to_owned(),
            json!("https://hush hush/"),
            "spec.notify[0].url: target \"team\": is not an address",
        ),
        ("/spec/notify/0/url".to_owned(), json!("https:///hush"), "spec.notify[0].url: target \"team\": "),
        (
            "/spec/notify/0/urlSecretRef".to_owned(),
            json!({ "name": "a", "key": "b" }),
            "spec.notify[0]: exactly one of url",
        ),
    ];
    for (pointer, value, expected) in cases {
        let errors = validate(&object(&[(&pointer, value.clone())])).expect_err(&pointer);
        let told = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(told.contains(expected), "{pointer} {value}: {told}");
        assert!(!told.contains("hush"), "{told}");
        assert_eq!(errors.len(), 1, "{pointer} {value}: {told}");
    }
    let group = serde_json::to_value(&object(&[]).spec.groups[0]).unwrap();
    let errors = validate(&object(&[("/spec/groups", json!([group, group]))])).unwrap_err();
    assert!(errors[0].to_string().starts_with("spec.groups"), "{errors:?}");
}

#[test]
fn only_alerts_have_templates() {
    let labels = json!({ "team": "{{ as it is" });
    validate(&object(&[("/spec/groups/0/rules/0/labels", labels)])).unwrap();
}

#[test]
fn the_samples_are_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/alertrule.yaml");
    let value: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    validate(&AlertRule::read(value).unwrap()).unwrap();
}

fn wanted(
    list: &[(&'static str, &'static str, i64, bool)],
) -> BTreeMap<(&'static str, &'static str), Wanted<'static>> {
    let of = |&(name, uid, generation, is_accepted)| (("ns", name), Wanted { uid, generation, is_accepted });
    list.iter().map(of).collect()
}

fn loaded(list: &[(&str, &str, i64)]) -> Loaded {
    let of = |&(name, uid, generation): &(&str, &str, i64)| LoadedRules {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        generation,
    };
    Loaded { rules: list.iter().map(of).collect() }
}

#[track_caller]
fn check_plan(
    has: &[(&str, &str, i64)],
    should: &[(&'static str, &'static str, i64, bool)],
    steps: &[&str],
    up_to_date: &[&str],
) {
    let plan = plan(&wanted(should), &loaded(has));
    let told = plan.steps.iter().map(|step| match step {
        Step::Put(_, name) => format!("put {name}"),
        Step::Delete(_, name) => format!("delete {name}"),
    });
    assert_eq!(told.collect::<Vec<_>>(), steps);
    assert_eq!(plan.loaded.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), up_to_date);
}

#[test]
fn a_pod_is_brought_to_what_is_wanted_and_no_further() {
    check_plan(&[], &[], &[], &[]);
    check_plan(&[("a", "1", 4)], &[("a", "1", 4, true)], &[], &["a"]);
    check_plan(&[], &[("a", "1", 1, true), ("b", "2", 1, true)], &["put a", "put b"], &[]);
    check_plan(&[("a", "1", 3)], &[("a", "1", 4, true)], &["put a"], &[]);
    check_plan(&[("gone", "9", 1)], &[], &["delete gone"], &[]);
    // Another object of the same name.
    check_plan(&[("a", "0", 9)], &[("a", "1", 1, true)], &["put a"], &[]);
    // The API server forgot what the pod knows.
    check_plan(&[("a", "1", 9)], &[("a", "1", 4, true)], &["delete a", "put a"], &[]);
    // An edit with a mistake leaves the working rules alone, but not those of another object.
    check_plan(&[("a", "1", 3)], &[("a", "1", 4, false)], &[], &[]);
    check_plan(&[("a", "0", 3)], &[("a", "1", 4, false)], &["delete a"], &[]);
    check_plan(&[], &[("a", "1", 4, false)], &[], &[]);
}

fn told(status: &AlertRuleStatus) -> Vec<String> {
    let of = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)
    };
    status.conditions.iter().map(of).collect()
}

#[test]
fn the_status_says_how_far_the_rules_came() {
    let then: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    let mut object = object(&[]);
    let some = |loaded, total, error: Option<&'static str>| Delivery { loaded, total: Some(total), error };
    let accepted = validate(&object).unwrap();
    let errors = [FieldError::new("spec.x", "is wrong")];
    let of = |object: &'_ AlertRule, verdict: Result<(), ()>, delivery, time| {
        let verdict = verdict.map(|()| &accepted).map_err(|()| &errors[..]);
        let (generation, before) = (object.metadata.generation, object.status.as_ref());
        status(Subject { generation, cluster: "demo", before, verdict, lacks_room: false }, delivery, time)
    };
    let check = |verdict, delivery, expected: [&str; 2], error: Option<&str>| {
        let status = of(&object, verdict, delivery, now);
        assert_eq!(told(&status), expected);
        assert_eq!((status.last_error.as_deref(), status.observed_generation), (error, Some(3)));
        assert_eq!(status.state, None);
    };
    let valid = "Accepted=True Valid: 2 rules in 1 group";
    let all = "Loaded=True AllPods: 2 of 2 pods have loaded this generation";
    check(Ok(()), some(2, 2, None), [valid, all], None);
    let some_of = "Loaded=False Delivering: 1 of 2 pods have loaded this generation";
    check(Ok(()), some(1, 2, None), [valid, some_of], None);
    let failed = "Loaded=False DeliveryFailed: 1 of 2 pods have loaded this generation; pod demo-1: no reply";
    let error = Some("pod demo-1: no reply");
    check(Ok(()), some(1, 2, error), [valid, failed], error);
    check(Ok(()), some(0, 0, None), [valid, "Loaded=False NoPods: the cluster has no pods"], None);
    let kept =
        "Loaded=False NotAccepted: rules that are not accepted are not sent; pods keep an earlier generation";
    let missing = "there is no LedgerCluster \"demo\" in this namespace";
    let not_found = format!("Accepted=False ClusterNotFound: {missing}");
    check(Ok(()), Delivery::default(), [&not_found, kept], Some(missing));
    let invalid = "Accepted=False Invalid: spec.x: is wrong";
    check(Err(()), some(2, 2, None), [invalid, kept], Some("spec.x: is wrong"));

    // What did not change keeps its time, and the whole is the same as before.
    object.status = Some(of(&object, Ok(()), some(2, 2, None), then));
    assert_eq!(object.status, Some(of(&object, Ok(()), some(2, 2, None), now)));
    let worse = of(&object, Ok(()), some(1, 2, None), now);
    let times: Vec<Timestamp> = worse.conditions.iter().map(|c| c.last_transition_time.0).collect();
    assert_eq!(times, [then, now]);

    let many: Vec<FieldError> =
        (0..400).map(|n| FieldError::new(format!("spec.é{n}"), "é".repeat(200))).collect();
    let subject =
        Subject { generation: None, cluster: "demo", before: None, verdict: Err(&many), lacks_room: false };
    let long = status(subject, some(0, 1, None), now);
    assert!(long.last_error.unwrap().chars().count() <= 1024 + 3);
}

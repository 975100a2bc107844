//! AlertRules: checked, brought to real pods, acknowledged, and let go, a thousand of them as well as one.

use std::fmt::Write;
use std::time::{Duration, Instant};

use certeus_crds::AlertRule;
use certeus_e2e::cluster::operator::Operator;
use certeus_e2e::http::{Client, Exchange, Request};
use kube::ResourceExt;
use serde_json::Value;

use crate::installed::{IN_TIME, Installed, SOON, fixed, writes};

/// Longer than the time between two looks at the pods.
const REST: Duration = Duration::from_secs(12);

fn rule(name: &str, cluster: &str, expr: &str) -> String {
    format!(
        "---\napiVersion: certeus.io/v1alpha1\nkind: AlertRule\nmetadata: {{name: {name}}}\nspec:\n  clusterRef: {{name: {cluster}}}\n  \
         groups:\n  - name: g\n    interval: 15s\n    rules:\n    - alert: Down\n      expr: {expr}\n      for: 1m\n      \
         annotations: {{summary: '{{{{ $labels.instance }}}} is down'}}\n"
    )
}

/// Names and generations of what a pod has; `None` while it does not answer.
pub(crate) fn loaded(world: &Installed, pod: &str) -> Option<Vec<String>> {
    let key = world.api_key("trades");
    let headers = [("x-api-key", &key[..])];
    let request = Request { method: "GET", path: "/rules", headers: &headers, body: b"" };
    let exchange = Client::new(Duration::from_secs(5)).send(world.kubelet.admin_of(pod)?, &request);
    let Exchange::Reply(reply) = exchange else { return None };
    let list: Value = serde_json::from_slice(&reply.body).unwrap();
    let entry = |rules: &Value| format!("{}@{}", rules["name"].as_str().unwrap(), rules["generation"]);
    Some(list["rules"].as_array()?.iter().map(entry).collect())
}

pub(crate) fn has(world: &Installed, pod: &str, expected: &[&str]) -> bool {
    loaded(world, pod).is_some_and(|rules| rules == expected)
}

/// Status and reason of a condition.
fn condition(rule: &AlertRule, kind: &str) -> (String, String) {
    let conditions = rule.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    found.map(|condition| (condition.status.clone(), condition.reason.clone())).unwrap_or_default()
}

fn wait_for(world: &Installed, name: &str, kind: &str, status: &str, reason: &str) -> AlertRule {
    let is_so = |rule: Option<&AlertRule>| {
        rule.is_some_and(|rule| {
            let current = rule.status.as_ref().and_then(|status| status.observed_generation);
            condition(rule, kind) == (status.to_owned(), reason.to_owned())
                && current == rule.metadata.generation
        })
    };
    world.space.wait(&format!("{kind} {reason}"), name, IN_TIME, is_so).unwrap().unwrap()
}

pub(crate) fn has_no_trouble(operator: &Operator) {
    let log = operator.log();
    assert!(!log.to_lowercase().contains("forbidden"), "the operator lacks a right:\n{log}");
}

#[test]
fn rules_reach_the_pods_follow_edits_and_go() {
    let _turn = crate::beside();
    let world = Installed::new("rules", false);
    let operator = world.operator();
    world.space.apply(&rule("early", "trades", "up == 0")).unwrap();
    wait_for(&world, "early", "Accepted", "False", "ClusterNotFound");
    world.create("trades", &fixed(2));
    world.wait_for_pods("trades", 2);
    let early = wait_for(&world, "early", "Loaded", "True", "AllPods");
    let status = early.status.clone().unwrap();
    assert_eq!((status.loaded_pods, status.total_pods, status.state), (2, 2, None));
    assert_eq!(early.finalizers(), ["certeus.io/rules"]);
    for pod in ["trades-0", "trades-1"] {
        assert!(has(&world, pod, &["early@1"]), "{:?}", loaded(&world, pod));
    }
    let line = world.space.kubectl(&["get", "ar/early", "--no-headers"]).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[..4], ["early", "trades", "True", "2"], "{line}");

    // A mistake is told, hurts no other, and leaves what works.
    world.space.apply(&rule("late", "trades", "up == 0")).unwrap();
    world.space.apply(&rule("early", "trades", "'rate(up)'")).unwrap();
    let wrong = wait_for(&world, "early", "Accepted", "False", "Invalid");
    let error = wrong.status.unwrap().last_error.unwrap();
    assert!(
        error.starts_with("spec.groups[0].rules[0].expr: group \"g\", alert \"Down\": is not PromQL"),
        "{error}"
    );
    wait_for(&world, "late", "Loaded", "True", "AllPods");
    assert!(has(&world, "trades-0", &["early@1", "late@1"]), "{:?}", loaded(&world, "trades-0"));
    world.wait("an event", SOON, || {
        let events = world.space.kubectl(&["get", "events", "--field-selector=reason=Invalid", "-o", "name"]);
        events.is_ok_and(|events| !events.is_empty())
    });
    world.space.apply(&rule("early", "trades", "up == 1")).unwrap();
    wait_for(&world, "early", "Loaded", "True", "AllPods");
    assert!(has(&world, "trades-1", &["early@3", "late@1"]), "{:?}", loaded(&world, "trades-1"));

    // At rest nothing is written; what the first looks at the pods said of their database is corrected some seconds later. A pod that
    // dies has its rules again before anybody could bring them.
    world.wait_for_condition("trades", "DatabaseReachable", "True");
    operator.front().forget();
    std::thread::sleep(REST);
    assert_eq!(writes(&operator), [""; 0], "written at rest");
    operator.stop().unwrap();
    world.kubelet.kill("trades-0").unwrap();
    world.wait("the pod's own rules", IN_TIME, || has(&world, "trades-0", &["early@3", "late@1"]));

    // What was deleted meanwhile goes when there is an operator again.
    world.space.kubectl(&["delete", "ar/late", "--wait=false"]).unwrap();
    let operator = world.operator();
    let is_gone = |rule: Option<&AlertRule>| rule.is_none();
    world.space.wait("the end of the rules", "late", IN_TIME, is_gone).unwrap();
    world.wait("pods without them", SOON, || has(&world, "trades-0", &["early@3"]));

    // A pod that no longer answers holds up a deletion for half a minute, a cluster that is gone not at all.
    world.kubelet.freeze("trades-1").unwrap();
    let begun = Instant::now();
    world.space.kubectl(&["delete", "ar/early", "--wait=false"]).unwrap();
    world.space.wait("the end of the rules", "early", IN_TIME, is_gone).unwrap();
    let frozen_for = begun.elapsed();
    world.kubelet.thaw("trades-1").unwrap();
    // The kubelet may have ended the frozen pod before the operator gave up.
    assert!(frozen_for > Duration::from_secs(15), "gone after {frozen_for:?}");
    world.wait("what was left over to be removed", IN_TIME, || has(&world, "trades-1", &[]));
    world.space.apply(&rule("orphan", "trades", "up == 0")).unwrap();
    wait_for(&world, "orphan", "Loaded", "True", "AllPods");
    world.space.kubectl(&["delete", "lc/trades", "--wait=false"]).unwrap();
    world.space.kubectl(&["delete", "ar/orphan", "--wait=false"]).unwrap();
    world.space.wait("the end of the rules", "orphan", IN_TIME, is_gone).unwrap();
    has_no_trouble(&operator);
    operator.stop().unwrap();
}

#[test]
fn a_thousand_rules_are_loaded_and_then_cost_nothing() {
    const RULES: usize = 1000;
    let _alone = crate::alone();
    let world = Installed::new("many-rules", false);
    let operator = world.operator();
    world.create("trades", &fixed(2));
    world.wait_for_pods("trades", 2);
    let mut manifests = String::new();
    for n in 0..RULES {
        manifests.write_str(&rule(&format!("r{n}"), "trades", "up == 0")).unwrap();
    }
    let begun = Instant::now();
    let path = world.space.dir().join("rules.yaml");
    std::fs::write(&path, manifests).unwrap();
    world.space.kubectl(&["create", "-f", path.to_str().unwrap()]).unwrap();
    let created = begun.elapsed();
    let all_loaded = || {
        let rules = world.space.list::<AlertRule>("").unwrap();
        let is_loaded = |rule: &AlertRule| condition(rule, "Loaded").0 == "True";
        rules.len() == RULES && rules.iter().all(is_loaded)
    };
    world.wait("all rules to be loaded", Duration::from_secs(180), all_loaded);
    println!("{RULES} AlertRules: created after {created:.1?}, all loaded after {:.1?}", begun.elapsed());
    let count = |pod| loaded(&world, pod).map(|rules| rules.len());
    assert_eq!((count("trades-0"), count("trades-1")), (Some(RULES), Some(RULES)));
    operator.front().forget();
    std::thread::sleep(REST);
    assert_eq!(writes(&operator), [""; 0], "written at rest");
    let deleted = Instant::now();
    world.space.kubectl(&["delete", "ar", "--all", "--wait=false"]).unwrap();
    let all_gone = || world.space.list::<AlertRule>("").unwrap().is_empty();
    world.wait("all rules to be gone", Duration::from_secs(180), all_gone);
    println!("{RULES} AlertRules: gone after {:.1?}", deleted.elapsed());
    world.wait("pods without rules", SOON, || has(&world, "trades-0", &[]) && has(&world, "trades-1", &[]));
    has_no_trouble(&operator);
    operator.stop().unwrap();
}

//! The custom resources as somebody with `kubectl` meets them.

use certeus_crds::LedgerCluster;
use certeus_e2e::cluster::space::Space;
use kube::api::{Patch, PatchParams};
use serde_json::json;

fn cluster(name: &str, more: &str) -> String {
    format!(
        "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{name: {name}}}\n\
         spec:\n  database: {{embedded: true}}\n{more}"
    )
}

/// Texts in the order in which they must come.
#[track_caller]
fn shows(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            panic!("'{part}' is missing in its place in:\n{text}")
        };
        rest = after;
    }
}

#[test]
fn explain_tells_every_field() {
    let space = Space::with_definitions("explain").unwrap();
    let text = space.kubectl(&["explain", "ledgercluster.spec"]).unwrap();
    shows(
        &text,
        &[
            "KIND:",
            "LedgerCluster",
            "VERSION:",
            "v1alpha1",
            "FIELDS:",
            "autoscaling",
            "database",
            "-required-",
        ],
    );
    let text = space.kubectl(&["explain", "lc.spec.autoscaling.cooldown"]).unwrap();
    shows(&text, &["cooldown <string>", "How long the load must stay low"]);
    let text = space.kubectl(&["explain", "alertrules.spec.groups.rules"]).unwrap();
    shows(&text, &["alert", "expr", "keep_firing_for", "record"]);
}

#[test]
fn get_shows_what_matters() {
    let space = Space::with_definitions("get").unwrap();
    space.apply(&cluster("trades", "")).unwrap();
    let status = json!({ "status": {
        "replicas": 3, "readyReplicas": 2, "desiredReplicas": 3, "selector": "app=x",
        "conditions": [{
            "type": "Ready", "status": "False", "reason": "PodsNotReady", "message": "2 of 3 pods are ready",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    } });
    let api = space.api::<LedgerCluster>();
    space.block(api.patch_status("trades", &PatchParams::default(), &Patch::Merge(&status))).unwrap();
    let text = space.kubectl(&["get", "lc"]).unwrap();
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        lines.next().unwrap(),
        ["NAME", "READY", "REASON", "PODS", "DESIRED", "CPU", "QUEUE", "AGE"],
        "{text}"
    );
    assert_eq!(lines.next().unwrap()[..5], ["trades", "False", "PodsNotReady", "2", "3"], "{text}");
    shows(
        &space.kubectl(&["get", "ledgerclusters", "-o", "wide"]).unwrap(),
        &["QUEUE", "LAST DECISION", "IMAGE", "AGE"],
    );
    shows(&space.kubectl(&["get", "certeus"]).unwrap(), &["ledgercluster.certeus.io/trades"]);
}

#[test]
fn defaults_are_written_into_the_object() {
    let space = Space::with_definitions("defaults").unwrap();
    space.apply(&cluster("plain", "")).unwrap();
    let found = space.get::<LedgerCluster>("plain").unwrap().unwrap();
    let (min, max) = (found.spec.autoscaling.min, found.spec.autoscaling.max);
    let stored =
        space.kubectl(&["get", "lc/plain", "-o", "jsonpath={.spec.autoscaling.min} {.spec.autoscaling.max}"]);
    assert_eq!(stored.unwrap(), format!("{min} {max}"));
    let unknown = space.apply(&cluster("typo", "  autoscalling: {min: 1}\n")).unwrap_err().to_string();
    shows(&unknown, &["strict decoding error", "unknown field \"spec.autoscalling\""]);
}

#[test]
fn scale_sets_a_fixed_number_and_refuses_to_fight_the_autoscaler() {
    let space = Space::with_definitions("scale").unwrap();
    space.apply(&cluster("fixed", "  autoscaling: {enabled: false}\n  replicas: 2\n")).unwrap();
    space.kubectl(&["scale", "lc/fixed", "--replicas=4"]).unwrap();
    assert_eq!(space.get::<LedgerCluster>("fixed").unwrap().unwrap().spec.replicas, Some(4));
    space.apply(&cluster("scaled", "")).unwrap();
    let refused = space.kubectl(&["scale", "lc/scaled", "--replicas=4"]).unwrap_err().to_string();
    shows(&refused, &["set autoscaling.enabled to false as well"]);
}

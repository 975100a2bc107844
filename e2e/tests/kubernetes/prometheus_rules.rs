//! PrometheusRules that a label gives to a cluster: their kind comes while the operator runs, and they are only read.

use certeus_e2e::cluster::front::Seen;
use certeus_e2e::cluster::operator::Operator;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::alert_rules::{has, has_no_trouble, loaded};
use crate::installed::{IN_TIME, Installed, SOON, asked, fixed};

fn api(world: &Installed) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PrometheusRule");
    Api::namespaced_with(world.space.client().clone(), world.space.name(), &ApiResource::from_gvk(&kind))
}

/// A rule file such as users of the Prometheus operator have.
fn groups(expr: &str) -> Value {
    json!([
        { "name": "records", "rules": [{ "record": "job:up:sum", "expr": "sum by (job) (up)" }] },
        { "name": "alerts", "interval": "30s", "limit": 5, "labels": { "team": "payments" }, "rules": [
            { "alert": "Down", "expr": expr, "for": "5m", "labels": { "severity": "page" },
                "annotations": { "summary": "{{ $labels.instance }} is down" } },
            { "alert": "Watchdog", "expr": 1 },
        ] },
    ])
}

fn create(world: &Installed, name: &str, labels: &Value) -> bool {
    let object = json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": { "name": name, "labels": labels }, "spec": { "groups": groups("up == 0") },
    });
    let object = serde_json::from_value(object).unwrap();
    world.space.block(api(world).create(&PostParams::default(), &object)).is_ok()
}

fn patch(world: &Installed, name: &str, patch: &Value) {
    world.space.block(api(world).patch(name, &PatchParams::default(), &Patch::Merge(patch))).unwrap();
}

/// What Events of this reason say of PrometheusRules.
fn told(world: &Installed, reason: &str) -> String {
    let selector = format!("--field-selector=involvedObject.kind=PrometheusRule,reason={reason}");
    let message = "jsonpath={range .items[*]}{.involvedObject.name}: {.message}{'\\n'}{end}";
    world.space.kubectl(&["get", "events", &selector, "-o", message]).unwrap()
}

/// What the operator asks to learn whether there are such kinds: once for each that may come later, every ten seconds.
const IS_KNOWN: &str = "/apis/monitoring.coreos.com/v1";

#[test]
fn prometheus_rules_with_the_label_reach_the_pods_follow_edits_and_go() {
    let _definitions = crate::definitions();
    let _turn = crate::beside();
    let world = Installed::new("imported", false);
    let operator = world.operator();
    world.create("trades", &fixed(1));
    world.wait("the question for the kinds", SOON, || asked(&operator, IS_KNOWN) >= 2);
    world.space.define_foreign("monitoring.coreos.com", "PrometheusRule").unwrap();
    let given = json!({ "certeus.io/cluster": "trades", "role": "alert-rules" });
    world.wait("the kind", SOON, || create(&world, "latency", &given));
    assert!(create(&world, "others", &json!({ "role": "alert-rules" })));
    assert!(create(&world, "astray", &json!({ "certeus.io/cluster": "trade" })));

    world.wait_for_pods("trades", 1);
    let first = ["prometheusrule..latency@1"];
    world.wait("the rules", IN_TIME, || has(&world, "trades-0", &first));
    world.wait("the word of it", SOON, || {
        told(&world, "Loaded") == "latency: 2 rules in 1 group are in 1 of 1 pods\n"
    });
    let partial = told(&world, "Partial");
    assert!(partial.contains("left out: 1 recording rule; without effect: limit"), "{partial}");
    let astray = told(&world, "ClusterNotFound");
    assert!(astray.starts_with("astray: there is no LedgerCluster \"trade\""), "{astray}");

    // A mistake is told and leaves what works; an edit replaces it.
    patch(&world, "latency", &json!({ "spec": { "groups": groups("up ==") } }));
    world.wait("the word of the mistake", SOON, || {
        told(&world, "Invalid").starts_with(
            "latency: spec.groups[1].rules[0].expr: group \"alerts\", alert \"Down\": is not PromQL",
        )
    });
    assert!(has(&world, "trades-0", &first), "{:?}", loaded(&world, "trades-0"));
    let refused = operator.metric("certeus_operator_prometheus_rules", &["refused"]).unwrap();
    assert_eq!(refused, Some(1.0));
    patch(&world, "latency", &json!({ "spec": { "groups": groups("up[5m]") } }));
    world.wait("the word of another mistake", SOON, || told(&world, "Invalid").contains("gives a matrix"));
    patch(&world, "latency", &json!({ "spec": { "groups": groups("up == 2") } }));
    world.wait("the edited rules", SOON, || has(&world, "trades-0", &["prometheusrule..latency@4"]));
    // Another cluster's, which there is none of; then this one's again.
    for (label, expected) in [("other", &[][..]), ("trades", &["prometheusrule..latency@4"])] {
        patch(&world, "latency", &json!({ "metadata": { "labels": { "certeus.io/cluster": label } } }));
        world.wait("what the label says", SOON, || has(&world, "trades-0", expected));
    }
    patch(&world, "others", &json!({ "metadata": { "labels": { "certeus.io/cluster": "trades" } } }));
    let both = ["prometheusrule..latency@4", "prometheusrule..others@1"];
    world.wait("two objects", SOON, || has(&world, "trades-0", &both));

    // What happens without an operator is caught up with.
    operator_wrote_none(&operator.front().seen());
    has_no_trouble(&operator);
    operator.stop().unwrap();
    patch(&world, "latency", &json!({ "metadata": { "labels": { "certeus.io/cluster": null } } }));
    let operator = world.operator();
    world.wait("one object", SOON, || has(&world, "trades-0", &both[1..]));
    world.space.block(api(&world).delete("others", &DeleteParams::default())).unwrap();
    world.wait("none", SOON, || has(&world, "trades-0", &[]));
    operator_wrote_none(&operator.front().seen());
    has_no_trouble(&operator);
    operator.stop().unwrap();
}

/// The Prometheus operator is removed and installed again, beside a ledger that has rules from it and is monitored by it.
#[test]
fn a_definition_that_goes_takes_its_objects_along_and_is_picked_up_when_it_is_back() {
    let _definitions = crate::definitions();
    let _turn = crate::beside();
    let world = Installed::new("undefined", false);
    let kinds = [("PrometheusRule", "prometheusrules"), ("ServiceMonitor", "servicemonitors")];
    let define = || {
        for (kind, _) in kinds {
            world.space.define_foreign("monitoring.coreos.com", kind).unwrap();
        }
        let given = json!({ "certeus.io/cluster": "trades" });
        world.wait("the kind", SOON, || create(&world, "latency", &given));
    };
    let refused = |operator: &Operator| {
        let watches = kinds.map(|(_, plural)| {
            let label = format!("watch=\"{plural}\"");
            operator.metric("certeus_operator_watch_refused_namespaces", &[&label]).unwrap().unwrap_or(0.0)
        });
        watches.iter().sum::<f64>()
    };
    let operator = world.operator();
    define();
    world.create("trades", &(fixed(1) + "  monitoring: {serviceMonitor: true}\n"));
    world.wait_for_pods("trades", 1);
    for round in 0..2 {
        if round > 0 {
            define();
        }
        world.wait("the rules", IN_TIME, || has(&world, "trades-0", &["prometheusrule..latency@1"]));
        world.wait_for_condition("trades", "Monitored", "True");
        world.wait("the ServiceMonitor", SOON, || {
            world.space.kubectl(&["get", "servicemonitors.monitoring.coreos.com/trades"]).is_ok()
        });
        for (_, plural) in kinds {
            world.space.kubectl(&["delete", &format!("crd/{plural}.monitoring.coreos.com")]).unwrap();
        }
        world.wait("no rules", IN_TIME, || has(&world, "trades-0", &[]));
        let (reason, _) = world.wait_for_condition("trades", "Monitored", "False");
        assert_eq!(reason, "DefinitionMissing");
        // Nothing goes on failing, and nothing is asked of them any more.
        world.wait("the end of the watches", IN_TIME, || refused(&operator) == 0.0);
        let looks = asked(&operator, IS_KNOWN);
        let lists = || kinds.map(|(_, plural)| asked(&operator, plural));
        world.wait("more looks", IN_TIME, || asked(&operator, IS_KNOWN) >= looks + 2);
        let before = lists();
        world.wait("still more looks", IN_TIME, || asked(&operator, IS_KNOWN) >= looks + 6);
        assert_eq!((lists(), refused(&operator)), (before, 0.0));
    }
    let (_, message) = world.wait_for_condition("trades", "Degraded", "False");
    assert_eq!(message, "");
    operator_wrote_none(&operator.front().seen());
    has_no_trouble(&operator);
    operator.stop().unwrap();
}

/// PrometheusRules belong to others.
#[track_caller]
fn operator_wrote_none(seen: &[Seen]) {
    let is_theirs = |seen: &&Seen| seen.path.contains("prometheusrules");
    assert!(seen.iter().filter(is_theirs).all(|seen| !seen.is_write()), "written to PrometheusRules");
}

//! What the chart renders and refuses, without a Kubernetes API.

use std::collections::BTreeSet;
use std::process::Command;

use certeus_e2e::cluster::space::repository;
use certeus_e2e::programs;
use serde_json::{Value, json};

use super::{EVERYTHING, chart, find, objects, run_helm, template, text};

fn names(objects: &[Value]) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let name = |object: &Value| {
        let metadata = &object["metadata"];
        format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
    };
    objects.iter().map(name).collect()
}

#[test]
fn lint_finds_nothing() {
    let chart = chart();
    for values in [&["--set=watchNamespaces={a,b}"][..], &EVERYTHING[1..], &[]] {
        let lint = [&["lint", "--strict", chart.to_str().unwrap()], values].concat();
        let output = run_helm(None, &lint);
        assert!(output.status.success() && !text(&output).contains("[WARNING]"), "{}", text(&output));
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let refused = [
        ("--set=replica=2", "replica"),
        ("--set=image.tags=1", "tags"),
        ("--set=replicas=0", "replicas"),
        ("--set=replicas=3", "replicas"),
        ("--set=logLevel=loud", "logLevel"),
        ("--set=image.digest=latest", "digest"),
        ("--set=image.repository=a@sha256:0", "repository"),
        ("--set=watchNamespaces={Upper}", "watchNamespaces"),
        ("--set=watchNamespaces={a,a}", "watchNamespaces"),
        ("--set=networkPolicy.egress.apiServerPorts={0}", "apiServerPorts"),
        ("--set=metrics.serviceMonitor.interval=often", "interval"),
        ("--set=serviceAccount.create=false", "name"),
        ("--set=ledgerCluster.create=true", "database"),
        ("--set=podLabels.a=true", "podLabels"),
    ];
    for (argument, named) in refused {
        let Err(told) = template(&[argument]) else { panic!("{argument} was accepted") };
        assert!(told.contains("don't meet the specifications of the schema"), "{argument}: {told}");
        assert!(told.contains(named), "{argument}: {told}");
    }
}

#[test]
fn a_first_ledger_that_nothing_would_act_on_is_refused() {
    let in_namespace = |given: &str| {
        let watched = "--set=watchNamespaces={a,b}";
        // Whether or not the definitions are known already.
        [&EVERYTHING[..], &EVERYTHING[1..]].map(|values| template(&[values, &[watched, given]].concat()))
    };
    for (given, namespace) in
        [("--set=ledgerCluster.namespace=c", "\"c\""), ("--set=replicas=2", "\"certeus-system\"")]
    {
        for rendered in in_namespace(given) {
            let told = rendered.unwrap_err();
            let expected =
                format!("ledgerCluster.namespace is {namespace}, which is not in watchNamespaces (a, b)");
            assert!(told.contains(&expected), "{told}");
        }
    }
    let [known, unknown] = in_namespace("--set=ledgerCluster.namespace=b");
    let known = objects(&known.unwrap());
    assert_eq!(find(&known, "LedgerCluster", "ledger")["metadata"]["namespace"], "b");
    assert!(unknown.is_ok());
}

#[test]
fn what_follows_from_the_chart_is_up_to_date() {
    let mut check = Command::new(repository().join("scripts/manifests.sh"));
    let output = check.arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn definitions_are_rendered_as_they_are_and_kept() {
    let rendered = objects(&template(&["--show-only=templates/crds.yaml"]).unwrap());
    assert_eq!(rendered.len(), 2);
    for name in ["ledgerclusters.certeus.io", "alertrules.certeus.io"] {
        let source = std::fs::read_to_string(repository().join(format!("crds/{name}.yaml"))).unwrap();
        let mut definition = find(&rendered, "CustomResourceDefinition", name).clone();
        assert_eq!(definition["metadata"]["annotations"], json!({ "helm.sh/resource-policy": "keep" }));
        definition["metadata"] = json!({ "name": name });
        assert!(definition == objects(&source)[0], "{name} differs from crds/{name}.yaml");
    }
    let none = objects(&template(&["--set=crds.install=false"]).unwrap());
    assert!(none.iter().all(|object| object["kind"] != "CustomResourceDefinition"));
}

#[test]
fn rights_are_for_all_namespaces_or_for_those_that_are_named() {
    let all = objects(&template(&[]).unwrap());
    let rules = find(&all, "ClusterRole", "certeus")["rules"].clone();
    find(&all, "ClusterRoleBinding", "certeus");

    let named = ["--set=watchNamespaces={a,b}", "--set=crds.install=false", "--set=rbac.aggregate=false"];
    let some = objects(&template(&named).unwrap());
    let cluster_wide = some.iter().filter(|object| object["metadata"]["namespace"].is_null());
    assert_eq!(
        cluster_wide.count(),
        0,
        "somebody without rights on the whole cluster can install it: {:?}",
        names(&some)
    );
    for namespace in ["a", "b"] {
        let role = some
            .iter()
            .find(|object| object["kind"] == "Role" && object["metadata"]["namespace"] == namespace);
        assert_eq!(role.unwrap()["rules"], rules);
    }
    let container = &find(&some, "Deployment", "certeus")["spec"]["template"]["spec"]["containers"][0];
    let arguments =
        json!(["run", "--listen=[::]:9090", "--log-level=info", "--namespace=a", "--namespace=b"]);
    assert_eq!(container["args"], arguments);
}

#[test]
fn nothing_runs_with_more_rights_than_it_needs() {
    let all = objects(&template(&EVERYTHING).unwrap());
    let pods = [
        &find(&all, "Deployment", "certeus")["spec"]["template"]["spec"],
        &find(&all, "Pod", "certeus-test-ready")["spec"],
    ];
    for pod in pods {
        let expected = json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" },
        });
        assert_eq!(pod["securityContext"], expected);
        for container in pod["containers"].as_array().unwrap() {
            let expected = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
            });
            assert_eq!(container["securityContext"], expected);
            assert!(container["resources"]["limits"]["memory"].is_string());
        }
    }
    for object in &all {
        for rule in object["rules"].as_array().into_iter().flatten() {
            assert!(!rule.to_string().contains('*'), "{rule}");
        }
    }
}

#[test]
fn credentials_for_registries_reach_all_pods_of_the_chart() {
    let all = objects(&template(&["--set=imagePullSecrets[0].name=registry"]).unwrap());
    let operator = &find(&all, "Deployment", "certeus")["spec"]["template"]["spec"];
    for pod in [operator, &find(&all, "Pod", "certeus-test-ready")["spec"]] {
        assert_eq!(pod["imagePullSecrets"], json!([{ "name": "registry" }]));
    }
}

#[test]
fn a_first_ledger_comes_with_definitions_that_are_known() {
    let known = objects(&template(&EVERYTHING).unwrap());
    let ledger = find(&known, "LedgerCluster", "ledger");
    assert_eq!(ledger["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    assert_eq!(ledger["spec"], json!({ "database": { "embedded": true } }));
    let unknown = objects(&template(&EVERYTHING[1..]).unwrap());
    assert!(unknown.iter().all(|object| object["kind"] != "LedgerCluster"));
}

#[test]
fn one_pod_has_no_budget_and_a_digest_goes_before_a_tag() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let argument = format!("--set=image.digest={digest}");
    let one = [argument.as_str(), "--set=image.tag=1.2.3", "--set=replicas=1"];
    let one = objects(&template(&one).unwrap());
    assert!(one.iter().all(|object| object["kind"] != "PodDisruptionBudget"));
    let container = &find(&one, "Deployment", "certeus")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], format!("certeus/dataplane@{digest}"));
    let two = objects(&template(&[]).unwrap());
    let container = &find(&two, "Deployment", "certeus")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["image"],
        format!("certeus/dataplane:{}", env!("CARGO_PKG_VERSION")),
        "the chart's appVersion"
    );
}

/// What is started must know the options that it is started with.
#[test]
fn the_programs_take_what_they_are_given() {
    let values = template(&["--set=watchNamespaces={a,b}"]).unwrap();
    let all = objects(&values);
    let container = &find(&all, "Deployment", "certeus")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["certeus-operator"]));
    let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    // The help is only printed when everything before it makes sense.
    let output = Command::new(programs::operator().unwrap()).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let mut check = Command::new(programs::dataplane().unwrap());
    check
        .arg("--config")
        .arg(repository().join("config/compose/certeus.yaml"))
        .arg("--check-config")
        .env_clear();
    check.env("CERTEUS_DB_URL", "postgres://certeus:secret@postgres:5432/certeus");
    let output = check.env("CERTEUS_API_KEY", "0123456789abcdef").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

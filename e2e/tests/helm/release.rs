//! The life of a release on a real Kubernetes API: install, upgrade, uninstall, and what is left then.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use certeus_e2e::cluster::control_plane::ControlPlane;
use certeus_e2e::cluster::space::{Space, repository};
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::{EVERYTHING, chart, objects, run_helm, template, text};

const SYSTEM: &str = "certeus-system";

/// What the operator may do in a namespace that it watches: group, resources, verbs.
const RIGHTS: [(&str, &str, &str); 14] = [
    ("certeus.io", "ledgerclusters", "get list watch"),
    ("certeus.io", "alertrules", "get list watch patch"),
    ("certeus.io", "ledgerclusters/status alertrules/status", "patch"),
    ("certeus.io", "ledgerclusters/finalizers", "update"),
    ("", "configmaps services serviceaccounts", "get list watch create patch delete"),
    ("apps", "statefulsets", "get list watch create patch delete"),
    ("policy", "poddisruptionbudgets", "get list watch create patch delete"),
    ("networking.k8s.io", "networkpolicies", "get list watch create patch delete"),
    ("monitoring.coreos.com", "servicemonitors", "get list watch create patch delete"),
    ("", "secrets", "get list watch create"),
    ("monitoring.coreos.com", "prometheusrules", "list watch"),
    ("", "pods", "get list watch"),
    ("autoscaling", "horizontalpodautoscalers", "list watch"),
    ("events.k8s.io", "events", "create patch"),
];
const LEASE_RIGHTS: [&str; 3] = [
    "create coordination.k8s.io/leases",
    "get coordination.k8s.io/leases certeus-operator",
    "update coordination.k8s.io/leases certeus-operator",
];

/// The definitions, roles and names of the releases belong to the whole cluster: one test at a time, and none in a cluster that
/// has ledgers, as tests delete the definitions in the end.
#[track_caller]
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_used =
        exists(&["crd", "ledgerclusters.certeus.io"]) || exists(&["namespace", SYSTEM]) && !is_ending(SYSTEM);
    assert!(!is_used, "Certeus is installed in this cluster, or a test before this one did not clean up");
    alone
}

fn is_ending(namespace: &str) -> bool {
    get(&["namespace", namespace])["status"]["phase"] == "Terminating"
}

/// helm on the real API; fails the test when helm fails.
#[track_caller]
pub(super) fn helm(arguments: &[&str]) -> String {
    try_helm(arguments).unwrap_or_else(|error| panic!("helm {}: {error}", arguments.join(" ")))
}

fn try_helm(arguments: &[&str]) -> Result<String, String> {
    let output = run_helm(Some(ControlPlane::get().unwrap().kubeconfig()), arguments);
    if output.status.success() { Ok(text(&output)) } else { Err(text(&output)) }
}

#[track_caller]
pub(super) fn get(arguments: &[&str]) -> Value {
    let found = ControlPlane::get().unwrap().kubectl(&[&["get", "-o", "json"], arguments].concat()).unwrap();
    serde_json::from_str(&found).unwrap()
}

/// Whether the object is there; anything but "not found" fails the test.
#[track_caller]
pub(super) fn exists(arguments: &[&str]) -> bool {
    let all = [&["get", "--ignore-not-found", "-o", "name"], arguments].concat();
    !ControlPlane::get().unwrap().kubectl(&all).unwrap().trim().is_empty()
}

/// Definitions of others that the chart can make objects of.
pub(super) fn install_foreign_definitions(space: &Space) {
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        space.define_foreign("monitoring.coreos.com", kind).unwrap();
    }
}

/// The chart as an earlier version of it may have been: a definition lacks a column.
fn earlier_chart(dir: &Path) -> PathBuf {
    let copy = dir.join("earlier");
    let status = Command::new("cp").arg("-R").arg(chart()).arg(&copy).status().unwrap();
    assert!(status.success());
    let path = copy.join("files/crds/ledgerclusters.certeus.io.yaml");
    let now = fs::read_to_string(&path).unwrap();
    let column = "    - jsonPath: .status.readyReplicas\n      name: Pods\n      type: integer\n";
    assert!(now.contains(column));
    fs::write(&path, now.replace(column, "")).unwrap();
    copy
}

fn columns() -> Vec<String> {
    let definition = get(&["crd", "ledgerclusters.certeus.io"]);
    let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap().clone();
    columns.iter().map(|column| column["name"].as_str().unwrap().to_owned()).collect()
}

/// All that a ServiceAccount may do in a namespace, as `verb group/resource [name]`.
fn rights(space: &Space, (account, home): (&str, &str), namespace: &str) -> BTreeSet<String> {
    let plane = space.plane();
    let token = plane.kubectl(&["create", "token", account, "--namespace", home]).unwrap();
    let kubeconfig = space.dir().join(format!("kubeconfig-{account}"));
    plane.kubeconfig_for(&kubeconfig, token.trim(), None).unwrap();
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
        ..SelfSubjectRulesReview::default()
    };
    let status = space.block(async {
        let read = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(read, &options);
        let client = kube::Client::try_from(config.await.unwrap()).unwrap();
        let reviews: Api<SelfSubjectRulesReview> = Api::all(client);
        reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
    });
    assert!(!status.incomplete, "the API server knows only a part");
    let mut all = BTreeSet::new();
    for rule in status.resource_rules {
        let names = rule.resource_names.unwrap_or_default();
        for (verb, group) in rule
            .verbs
            .iter()
            .flat_map(|verb| rule.api_groups.iter().flatten().map(move |group| (verb, group)))
        {
            for resource in rule.resources.iter().flatten() {
                let plain = format!("{verb} {group}/{resource}");
                if names.is_empty() {
                    all.insert(plain);
                } else {
                    all.extend(names.iter().map(|name| format!("{plain} {name}")));
                }
            }
        }
    }
    all
}

/// The API server learns of a changed role a moment later.
#[track_caller]
fn assert_rights(space: &Space, account: (&str, &str), namespace: &str, expected: &BTreeSet<String>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = rights(space, account, namespace);
        if found == *expected {
            return;
        }
        let (more, fewer): (Vec<_>, Vec<_>) =
            (found.difference(expected).collect(), expected.difference(&found).collect());
        assert!(Instant::now() < deadline, "in {namespace} not expected: {more:?}, missing: {fewer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn expected_rights() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (group, resources, verbs) in RIGHTS {
        for resource in resources.split(' ') {
            all.extend(verbs.split(' ').map(|verb| format!("{verb} {group}/{resource}")));
        }
    }
    all
}

fn with<'a>(rights: &BTreeSet<String>, more: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    rights.iter().cloned().chain(more.into_iter().map(ToOwned::to_owned)).collect()
}

#[test]
fn install_upgrade_uninstall_and_install_again() {
    let _alone = alone();
    let space = Space::new("helm").unwrap();
    install_foreign_definitions(&space);
    let chart = chart();
    let chart = chart.to_str().unwrap();
    let earlier = earlier_chart(space.dir());

    // The first ledger has to wait until its kind is known, and the user is told.
    let ledger = ["--set=ledgerCluster.create=true", "--set=ledgerCluster.spec.database.embedded=true"];
    let install =
        ["install", "certeus", earlier.to_str().unwrap(), "--namespace", SYSTEM, "--create-namespace"];
    let notes = helm(&[&install[..], &ledger].concat());
    assert!(notes.contains("WAS NOT CREATED YET"), "{notes}");
    assert!(exists(&["deployment", "certeus", "--namespace", SYSTEM]));
    assert!(!columns().contains(&"Pods".to_owned()));

    // An upgrade upgrades the definitions, too, and makes the ledger.
    let upgrade = ["upgrade", "certeus", chart, "--namespace", SYSTEM];
    let notes = helm(&[&upgrade[..], &ledger].concat());
    assert!(notes.contains("wait --for=condition=Ready ledgercluster/ledger"), "{notes}");
    assert!(columns().contains(&"Pods".to_owned()));
    let made = get(&["ledgercluster", "ledger", "--namespace", SYSTEM]);

    // The API server takes everything that can be rendered.
    let rendered = template(&EVERYTHING).unwrap();
    let file = space.dir().join("rendered.yaml");
    fs::write(&file, &rendered).unwrap();
    let dry_run =
        ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f"];
    let accepted = space.plane().kubectl(&[&dry_run[..], &[file.to_str().unwrap()]].concat()).unwrap();
    assert_eq!(accepted.lines().count(), objects(&rendered).len(), "{accepted}");
    assert!(!accepted.to_lowercase().contains("warning"), "{accepted}");

    // An upgrade that changes nothing leaves the ledger alone.
    helm(&[&upgrade[..], &ledger, &["--set=metrics.serviceMonitor.enabled=true"]].concat());
    assert!(exists(&["servicemonitor", "certeus", "--namespace", SYSTEM]));
    let same = get(&["ledgercluster", "ledger", "--namespace", SYSTEM]);
    assert_eq!((&same["metadata"]["uid"], &same["spec"]), (&made["metadata"]["uid"], &made["spec"]));

    // The definitions and the ledger outlive the release, and nothing else does.
    helm(&["uninstall", "certeus", "--namespace", SYSTEM]);
    for kind in [
        "deployment",
        "service",
        "serviceaccount",
        "networkpolicy",
        "poddisruptionbudget",
        "role",
        "rolebinding",
    ] {
        let found = get(&[kind, "--namespace", SYSTEM, "--selector=app.kubernetes.io/instance=certeus"]);
        assert_eq!(found["items"], json!([]), "{kind}");
    }
    assert!(!exists(&["clusterrole", "certeus"]) && !exists(&["clusterrolebinding", "certeus"]));
    assert!(exists(&["crd", "ledgerclusters.certeus.io"]) && exists(&["crd", "alertrules.certeus.io"]));
    let kept = get(&["ledgercluster", "ledger", "--namespace", SYSTEM]);
    assert_eq!(kept["metadata"]["uid"], made["metadata"]["uid"]);

    // The same release takes them over again. Another one does not take them away.
    let install = ["install", "certeus", chart, "--namespace", SYSTEM];
    helm(&[&install[..], &ledger].concat());
    let again = get(&["ledgercluster", "ledger", "--namespace", SYSTEM]);
    assert_eq!(again["metadata"]["uid"], made["metadata"]["uid"]);
    let other = ["install", "other-certeus", chart, "--namespace", space.name()];
    let refused = try_helm(&other).unwrap_err();
    assert!(refused.contains("certeus.io") && refused.contains("exists and cannot be imported"), "{refused}");
    let namespaces = format!("--set=watchNamespaces={{{}}}", space.name());
    helm(&[&other[..], &["--set=crds.install=false,rbac.aggregate=false", &namespaces]].concat());
    helm(&["uninstall", "other-certeus", "--namespace", space.name()]);
    helm(&["uninstall", "certeus", "--namespace", SYSTEM]);

    // The plain manifests make the same.
    let default = repository().join("config/default");
    space.plane().kubectl(&["apply", "--server-side", "-k", default.to_str().unwrap()]).unwrap();
    assert!(exists(&["deployment", "certeus", "--namespace", SYSTEM]));
    // Their namespace admits only pods that need nothing; there is no node to run these on.
    space
        .plane()
        .kubectl(&[
            "wait",
            "--for=jsonpath={.status.replicas}=2",
            "deployment/certeus",
            "--namespace",
            SYSTEM,
        ])
        .unwrap();
    let basis = rights(&space, ("default", SYSTEM), "default");
    let expected = expected_rights();
    let expected = with(&basis, expected.iter().map(String::as_str));
    assert_rights(&space, ("certeus", SYSTEM), "default", &expected);
    space.plane().kubectl(&["delete", "ledgercluster", "--all", "--namespace", SYSTEM]).unwrap();
    let definitions = repository().join("config/crd");
    space.plane().kubectl(&["delete", "-k", definitions.to_str().unwrap()]).unwrap();
    space.plane().kubectl(&["delete", "namespace", SYSTEM, "--wait=false"]).unwrap();
}

#[test]
fn the_operator_may_do_what_it_needs_and_nothing_else() {
    let _alone = alone();
    let space = Space::new("rights").unwrap();
    let chart = chart();
    let chart = chart.to_str().unwrap();
    let home = space.name();
    let watched = Space::new("watched").unwrap();
    let watched = watched.name();
    let basis = |namespace| rights(&space, ("default", home), namespace);
    let account = ("rights", home);
    let expected = expected_rights();
    let expected = expected.iter().map(String::as_str);

    // Everywhere.
    let install =
        ["install", "rights", chart, "--namespace", home, "--set=fullnameOverride=rights,crds.install=false"];
    helm(&install);
    assert_rights(&space, account, watched, &with(&basis(watched), expected.clone()));
    let there = with(&basis(home), expected.clone().chain(LEASE_RIGHTS));
    assert_rights(&space, account, home, &there);

    // In one namespace alone.
    let namespaces = format!("--set=watchNamespaces={{{watched}}}");
    let upgrade = ["upgrade", "rights", chart, "--namespace", home, "--reuse-values", &namespaces];
    helm(&upgrade);
    assert_rights(&space, account, watched, &with(&basis(watched), expected.clone()));
    assert_rights(&space, account, "default", &basis("default"));
    assert_rights(&space, account, home, &with(&basis(home), LEASE_RIGHTS));

    // Users who may edit a namespace may do so with ledgers.
    let definitions = repository().join("config/crd");
    let definitions = definitions.to_str().unwrap();
    space.kubectl(&["apply", "--server-side", "-k", definitions]).unwrap();
    space.kubectl(&["create", "rolebinding", "editors", "--clusterrole=edit", "--group=editors"]).unwrap();
    let can = |verb: &str, subresource: &str| {
        let subresource = format!("--subresource={subresource}");
        let asked = [
            "auth",
            "can-i",
            verb,
            "ledgerclusters.certeus.io",
            "--as=somebody",
            "--as-group=editors",
            &subresource,
        ];
        space.kubectl(&asked).is_ok_and(|answer| answer.trim() == "yes")
    };
    // Aggregation is a controller's work, a moment later.
    let all = [("get", ""), ("create", ""), ("delete", ""), ("update", "scale")];
    let deadline = Instant::now() + Duration::from_secs(30);
    while !all.iter().all(|(verb, subresource)| can(verb, subresource)) {
        assert!(Instant::now() < deadline, "the rights were not aggregated");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!can("update", "status"), "the status is the operator's");
    helm(&["uninstall", "rights", "--namespace", home]);
    space.kubectl(&["delete", "-k", definitions]).unwrap();
}

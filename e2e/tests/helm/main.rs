//! The chart with the real helm: what it renders, what it refuses, and its life on a real Kubernetes API.
//! `scripts/setup.sh helm` builds helm; the environment variable `HELM` names another one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alerts;
mod operator;
mod release;
mod rendered;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use certeus_e2e::cluster::guard::Guard;
use certeus_e2e::cluster::space::repository;
use serde_json::Value;

fn chart() -> PathBuf {
    repository().join("charts/certeus")
}

/// Runs helm to its end, with files of its own below the folder of this process.
fn run_helm<S: AsRef<OsStr>>(kubeconfig: Option<&Path>, arguments: &[S]) -> Output {
    let built = repository().join(".tools/bin/helm");
    let program = match std::env::var_os("HELM") {
        Some(program) => PathBuf::from(program),
        None if built.exists() => built,
        None => "helm".into(),
    };
    let mut command = Command::new(program);
    command.args(arguments).env("HOME", Guard::get().unwrap().dir()).env_remove("KUBECONFIG");
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    command.output().expect("helm is installed: run scripts/setup.sh go helm")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `helm template` in the namespace `certeus-system`; on failure what helm complained about. A helm that was built without
/// its makefile takes an old Kubernetes for given.
fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = chart();
    let all = [
        &[
            "template",
            "certeus",
            chart.to_str().unwrap(),
            "--namespace=certeus-system",
            "--kube-version=1.36.0",
        ],
        arguments,
    ]
    .concat();
    let output = run_helm(None, &all);
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(text(&output)) }
}

/// The objects of a YAML text, without empty documents.
fn objects(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

/// The only object of this kind and name.
#[track_caller]
fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found =
        objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let object = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "{kind} {name} twice");
    object
}

/// Everything that the chart can render, for a server that knows LedgerClusters.
const EVERYTHING: [&str; 11] = [
    "--api-versions=certeus.io/v1alpha1/LedgerCluster",
    "--set=metrics.serviceMonitor.enabled=true",
    "--set=metrics.serviceMonitor.labels.release=prometheus",
    "--set=metrics.prometheusRule.enabled=true",
    "--set=metrics.dashboard.enabled=true",
    "--set=networkPolicy.egress.enabled=true",
    "--set=networkPolicy.from[0].namespaceSelector.matchLabels.name=monitoring",
    "--set=imagePullSecrets[0].name=registry",
    "--set=priorityClassName=system-cluster-critical",
    "--set=ledgerCluster.create=true",
    "--set=ledgerCluster.spec.database.embedded=true",
];

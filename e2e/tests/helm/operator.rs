//! The operator as the chart starts it, with the rights that the chart gives it for all namespaces. There is no kubelet: what is
//! tested is that nothing which it has to do is forbidden.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use certeus_e2e::cluster::guard::Process;
use certeus_e2e::cluster::space::{Space, repository};
use certeus_e2e::{http, programs};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::release::{alone, exists, get, helm, install_foreign_definitions};
use super::{chart, find, objects, template};

const LIMIT: Duration = Duration::from_secs(60);

#[track_caller]
fn wait_until(what: &str, log: &std::path::Path, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        let told = || fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < deadline, "{what} took longer than {} s:\n{}", LIMIT.as_secs(), told());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn status(admin: SocketAddr, path: &str) -> Option<u16> {
    http::request(admin, "GET", path).ok().map(|reply| reply.status)
}

#[test]
fn nothing_that_the_operator_does_is_forbidden() {
    let _alone = alone();
    let home = Space::new("operator").unwrap();
    let ledgers = Space::new("ledgers").unwrap();
    install_foreign_definitions(&home);
    let chart = chart();
    helm(&["install", "certeus", chart.to_str().unwrap(), "--namespace", home.name()]);

    // Command and environment are those of the Deployment; only port and kubeconfig are the test's.
    let all = objects(&template(&[]).unwrap());
    let container = &find(&all, "Deployment", "certeus")["spec"]["template"]["spec"]["containers"][0];
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    let token = home.kubectl(&["create", "token", "certeus"]).unwrap();
    let kubeconfig = home.dir().join("kubeconfig");
    home.plane().kubeconfig_for(&kubeconfig, token.trim(), None).unwrap();
    let log = home.dir().join("operator.log");
    let mut command = Command::new(programs::operator().unwrap());
    command.args(arguments.map(|argument| match argument.strip_prefix("--listen=") {
        Some(_) => format!("--listen={admin}"),
        None => argument.to_owned(),
    }));
    command
        .env_clear()
        .env("KUBECONFIG", &kubeconfig)
        .env("POD_NAME", "operator-0")
        .env("POD_NAMESPACE", home.name());
    let mut process = Process::start(command.stderr(File::create(&log).unwrap())).unwrap();
    let paths = ["livenessProbe", "readinessProbe"]
        .map(|probe| container[probe]["httpGet"]["path"].as_str().unwrap());
    for path in paths {
        wait_until("the probe", &log, || status(admin, path) == Some(200));
    }
    let lease = get(&["lease", "certeus-operator", "--namespace", home.name()]);
    assert!(lease["spec"]["holderIdentity"].as_str().unwrap().starts_with("operator-0"), "{lease}");

    ledgers.put_secret("keys", &[("api", "0123456789abcdef")]).unwrap();
    let ledger = json!({
        "apiVersion": "certeus.io/v1alpha1", "kind": "LedgerCluster", "metadata": { "name": "ledger" },
        "spec": {
            "database": { "embedded": true },
            "security": { "apiKeySecretRef": { "name": "keys", "key": "api" } },
            "monitoring": { "serviceMonitor": true, "dashboard": true },
        },
    });
    ledgers.apply(&ledger.to_string()).unwrap();
    let namespaced = ["--namespace", ledgers.name()];
    let made = [
        "secret/ledger-signing-key",
        "serviceaccount/ledger-dataplane",
        "configmap/ledger-config",
        "configmap/ledger-dashboard",
        "service/ledger",
        "service/ledger-pods",
        "poddisruptionbudget/ledger",
        "networkpolicy/ledger",
        "servicemonitor/ledger",
        "statefulset/ledger-database",
        "statefulset/ledger",
    ];
    for object in made {
        wait_until(object, &log, || exists(&[&[object], &namespaced[..]].concat()));
    }
    let is_observed = || {
        let ledger = get(&[&["ledgercluster", "ledger"], &namespaced[..]].concat());
        ledger["status"]["observedGeneration"] == ledger["metadata"]["generation"]
            && ledger["status"]["conditions"] != Value::Null
    };
    wait_until("the status", &log, is_observed);

    // What is deleted comes again, and what is no longer wanted goes.
    ledgers.kubectl(&["delete", "service/ledger"]).unwrap();
    wait_until("the Service", &log, || exists(&[&["service/ledger"], &namespaced[..]].concat()));
    let less = json!({ "spec": { "monitoring": { "serviceMonitor": false, "dashboard": false } } });
    ledgers.kubectl(&["patch", "ledgercluster/ledger", "--type=merge", "-p", &less.to_string()]).unwrap();
    for gone in ["servicemonitor/ledger", "configmap/ledger-dashboard"] {
        wait_until(gone, &log, || !exists(&[&[gone], &namespaced[..]].concat()));
    }

    let page = http::request(admin, "GET", "/metrics").unwrap();
    let page = String::from_utf8(page.body).unwrap();
    let told = fs::read_to_string(&log).unwrap();
    assert!(!page.contains("result=\"forbidden\""), "{page}\n{told}");
    assert!(!told.to_lowercase().contains("forbidden"), "{told}");
    assert!(page.contains("certeus_operator_leader 1"), "{page}");

    process.signal(Signal::TERM);
    let mut ended = None;
    wait_until("the end", &log, || {
        ended = process.ended().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success(), "{}", fs::read_to_string(&log).unwrap());
    ledgers.kubectl(&["delete", "ledgercluster/ledger"]).unwrap();
    helm(&["uninstall", "certeus", "--namespace", home.name()]);
    home.kubectl(&["delete", "-k", repository().join("config/crd").to_str().unwrap()]).unwrap();
}

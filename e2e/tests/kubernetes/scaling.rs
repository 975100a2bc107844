//! Scaling for real: the operator, the process kubelet, pods of the real data plane and load on them.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use certeus_crds::LedgerCluster;
use certeus_e2e::cluster::guard::{Guard, Process};
use certeus_e2e::cluster::kubelet::Kubelet;
use certeus_e2e::cluster::space::Space;
use certeus_e2e::http::{Client, Exchange, Request, request};
use certeus_e2e::postgres::Postgres;
use certeus_e2e::programs;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::json;

const SOON: Duration = Duration::from_secs(90);
const API_KEY: &str = "0123456789abcdef0123456789abcdef";
const CLUSTER: &str = r"
apiVersion: certeus.io/v1alpha1
kind: LedgerCluster
metadata: {name: demo}
spec:
  image: certeus/dataplane:test
  # So little that a few clients are a surge on any machine.
  resources: {requests: {cpu: 200m}}
  autoscaling: {min: 1, max: 3, cooldown: 5s}
  database: {secretRef: {name: database, key: url}}
  security: {apiKeySecretRef: {name: database, key: api}}
";

/// An operator that works in one namespace.
fn operator(space: &Space, listen: &str) -> Process {
    let log = |name: &str| std::fs::File::create(space.dir().join(name)).unwrap();
    let mut command = Command::new(programs::operator().unwrap());
    command
        .args(["run", "--namespace", space.name(), "--lease-namespace", space.name(), "--listen", listen])
        .args(["--pod-name", "operator", "--pod-namespace", space.name()])
        .env_clear()
        .env("KUBECONFIG", space.plane().kubeconfig())
        .stdout(log("operator-out.log"))
        .stderr(log("operator.log"));
    Process::start(&mut command).unwrap()
}

fn asked(set: Option<&StatefulSet>) -> i32 {
    set.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or(0)
}

fn ready(set: Option<&StatefulSet>) -> i32 {
    set.and_then(|set| set.status.as_ref()?.ready_replicas).unwrap_or(0)
}

/// A client that sends batches to one pod after the other; stops when told, and adds what was acknowledged.
fn client(kubelet: &Kubelet, busy: &AtomicBool, stop: &AtomicBool, acknowledged: &AtomicUsize) {
    let line = |n: usize| format!("{{\"type\":\"load\",\"timestamp\":{},\"n\":{n}}}\n", 1_769_860_800 + n);
    let body: String = (0..200).map(line).collect();
    let authorization = format!("Bearer {API_KEY}");
    let headers = [("content-type", "application/x-ndjson"), ("authorization", &authorization[..])];
    let sent =
        Request { method: "POST", path: "/v1/ledger/events", headers: &headers, body: body.as_bytes() };
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if !busy.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(300));
        }
        let pods = kubelet.pods();
        let address = pods.get(turn % pods.len().max(1)).and_then(|pod| kubelet.api_of(pod));
        let Some(address) = address else { continue };
        match Client::new(Duration::from_secs(30)).send(address, &sent) {
            // Spooled is a promise, too.
            Exchange::Reply(reply) if matches!(reply.status, 201 | 202) => {
                acknowledged.fetch_add(200, Ordering::Relaxed);
            }
            // A pod that starts or drains says so, and others take the load.
            Exchange::Reply(reply) => assert_eq!(reply.status, 503, "{}", reply.problem()),
            Exchange::NotSent => {}
            Exchange::Lost => panic!("{address} broke off a request that it had begun to read"),
        }
    }
}

#[test]
fn a_surge_gets_pods_at_once_and_they_leave_in_order_without_a_loss() {
    let _alone = crate::alone();
    let space = Space::with_definitions("scaling").unwrap();
    let data = space.dir().join("postgres");
    let mut postgres = Postgres::start(&data, space.dir(), &[], &[]).unwrap();
    Guard::get().unwrap().note(postgres.process_id()).unwrap();
    let url = postgres.url_through(postgres.address(), "postgres");
    space.put_secret("database", &[("url", &url), ("api", API_KEY)]).unwrap();
    let programs = [("certeus-dataplane", programs::dataplane().unwrap())];
    let kubelet = Kubelet::start(&space, &programs, false).unwrap();
    let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let _operator = operator(&space, &listen.to_string());
    space.apply(CLUSTER).unwrap();
    space.wait("the first pod to be ready", "demo", SOON, |set| ready(set) == 1).unwrap();

    let (busy, stop, acknowledged) = (AtomicBool::new(true), AtomicBool::new(false), AtomicUsize::new(0));
    let (busy, stop, acknowledged) = (Arc::new(busy), Arc::new(stop), Arc::new(acknowledged));
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..4).map(|_| scope.spawn(|| client(&kubelet, &busy, &stop, &acknowledged))).collect();
        // Whatever fails here, the clients end with it.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = Stop(&stop);
        let begun = Instant::now();
        space.wait("more pods to be asked for", "demo", SOON, |set| asked(set) > 1).unwrap();
        eprintln!("from load to the scale write: {:.2} s", begun.elapsed().as_secs_f64());
        space.wait("all pods to be ready", "demo", SOON, |set| asked(set) == 3 && ready(set) == 3).unwrap();
        busy.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        space.wait("one pod to be left", "demo", SOON, |set| asked(set) == 1).unwrap();
        eprintln!("from rest to one pod: {:.2} s", begun.elapsed().as_secs_f64());
        let one =
            |set: Option<&StatefulSet>| set.and_then(|set| set.status.as_ref()?.replicas.into()) == Some(1);
        space.wait("the others to be gone", "demo", SOON, one).unwrap();
        drop(stop);
        for client in clients {
            client.join().unwrap();
        }
    });

    let page = request(listen, "GET", "/metrics").unwrap();
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let drained = "certeus_operator_drains_total{result=\"drained\"} 2";
    assert!(page.contains(drained), "{page}");
    let change = |cluster: Option<&LedgerCluster>| {
        let status = cluster.and_then(|cluster| cluster.status.as_ref());
        status.and_then(|status| Some(status.last_decision.as_ref()?.reason == "ScaleDown")) == Some(true)
            && status.is_some_and(|status| status.draining.is_empty())
    };
    space.wait("the status to tell", "demo", SOON, change).unwrap();
    let sql = postgres.connect("postgres").unwrap();
    let stored: i64 = sql.query("SELECT count(*) FROM certeus.events", &[]).unwrap()[0].get(0);
    assert_eq!(usize::try_from(stored).unwrap(), acknowledged.load(Ordering::Relaxed));

    // Stopped: all go, in order, and the volumes stay.
    space.patch::<LedgerCluster>("demo", &json!({ "spec": { "stopped": true } })).unwrap();
    let none =
        |set: Option<&StatefulSet>| set.and_then(|set| set.status.as_ref()?.replicas.into()) == Some(0);
    space.wait("the cluster to be stopped", "demo", SOON, none).unwrap();
    drop(kubelet);
    postgres.stop().unwrap();
}

//! The process kubelet itself, with the real data plane and a real PostgreSQL: what the tests of the operator stand on.

use std::time::{Duration, Instant};

use certeus_e2e::cluster::guard::Guard;
use certeus_e2e::cluster::kubelet::Kubelet;
use certeus_e2e::cluster::space::Space;
use certeus_e2e::http::{Client, Exchange, Request};
use certeus_e2e::postgres::Postgres;
use certeus_e2e::programs;
use certeus_tlog::note::{Algorithm, SignerKey};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const PODS: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data:
  config.yaml: |
    api: {listen: '0.0.0.0:8000'}
    admin: {listen: '0.0.0.0:9090'}
    log: {level: info, anchor: 'file:///var/lib/certeus/spool/log-anchor'}
    spool: {persistent: true}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ledger}
spec:
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: ledger}}
  template:
    metadata: {labels: {app: ledger}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 20
      containers:
      - name: dataplane
        image: certeus/dataplane:test
        command: [certeus-dataplane]
        args: [--config, /etc/certeus/config.yaml, --spool=/var/lib/certeus/spool]
        env:
        - name: CERTEUS_DB_URL
          valueFrom: {secretKeyRef: {name: database, key: url}}
        - name: CERTEUS_API_KEY
          valueFrom: {secretKeyRef: {name: database, key: api}}
        - name: CERTEUS_SIGNING_KEY
          valueFrom: {secretKeyRef: {name: database, key: signing}}
        ports: [{name: api, containerPort: 8000}, {name: admin, containerPort: 9090}]
        readinessProbe: {httpGet: {path: /health/ready, port: admin}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /health/live, port: admin}, periodSeconds: 1, failureThreshold: 3}
        lifecycle: {preStop: {sleep: {seconds: 1}}}
        volumeMounts:
        - {name: config, mountPath: /etc/certeus}
        - {name: spool, mountPath: /var/lib/certeus/spool}
        - {name: tmp, mountPath: /tmp}
      volumes:
      - {name: config, configMap: {name: config}}
      - {name: tmp, emptyDir: {}}
  volumeClaimTemplates:
  - metadata: {name: spool}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";
const API_KEY: &str = "0123456789abcdef0123456789abcdef";

fn ready(set: Option<&StatefulSet>) -> i32 {
    set.and_then(|set| set.status.as_ref()?.ready_replicas).unwrap_or(0)
}

/// Appends events to a pod; gives how many were acknowledged.
fn append(kubelet: &Kubelet, pod: &str, count: usize) -> usize {
    let line = |n| format!("{{\"type\":\"kubelet.test\",\"timestamp\":{},\"n\":{n}}}\n", 1_769_860_800 + n);
    let body: String = (0..count).map(line).collect();
    let authorization = format!("Bearer {API_KEY}");
    let headers = [("content-type", "application/x-ndjson"), ("authorization", &authorization[..])];
    let sent =
        Request { method: "POST", path: "/v1/ledger/events", headers: &headers, body: body.as_bytes() };
    match Client::new(Duration::from_secs(30)).send(kubelet.api_of(pod).unwrap(), &sent) {
        Exchange::Reply(reply) => {
            assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
            count
        }
        Exchange::NotSent | Exchange::Lost => panic!("{pod} did not answer"),
    }
}

#[test]
fn a_plain_stateful_set_of_the_data_plane_lives_as_on_a_node() {
    let _turn = crate::beside();
    let space = Space::new("kubelet").unwrap();
    let data = space.dir().join("postgres");
    let mut postgres = Postgres::start(&data, space.dir(), &[], &[]).unwrap();
    Guard::get().unwrap().note(postgres.process_id()).unwrap();
    let url = postgres.url_through(postgres.address(), "postgres");
    let programs = [("certeus-dataplane", programs::dataplane().unwrap())];
    let kubelet = Kubelet::start(&space, &programs, false).unwrap();
    space.apply(PODS).unwrap();

    // A pod that lacks its Secret says so and waits.
    let waits = |pod: Option<&Pod>| format!("{pod:?}").contains("there is no key url of Secret database");
    space.wait("a pod to miss its Secret", "ledger-0", SOON, waits).unwrap();
    let key = SignerKey::from_seed("certeus.example/kubelet", Algorithm::Ed25519, [3; 32]).unwrap();
    let key = key.to_secret_text();
    space.put_secret("database", &[("url", &url), ("api", API_KEY), ("signing", &key)]).unwrap();
    space.wait("both pods to be ready", "ledger", SOON, |set| ready(set) == 2).unwrap();
    let mut sent = append(&kubelet, "ledger-0", 100) + append(&kubelet, "ledger-1", 50);
    assert_ne!(kubelet.api_of("ledger-0"), kubelet.api_of("ledger-1"));

    // One that crashes is started again; one that hangs fails its liveness probe, and is, too.
    let restarts = |pod: Option<&Pod>| {
        let status = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref()?.first());
        status.map_or((0, false), |status| (status.restart_count, status.ready))
    };
    kubelet.kill("ledger-0").unwrap();
    space.wait("a killed pod to be back", "ledger-0", SOON, |pod| restarts(pod) == (1, true)).unwrap();
    kubelet.freeze("ledger-1").unwrap();
    space.wait("a frozen pod to be unready", "ledger-1", SOON, |pod| !restarts(pod).1).unwrap();
    space.wait("a frozen pod to be back", "ledger-1", SOON, |pod| restarts(pod) == (1, true)).unwrap();
    sent += append(&kubelet, "ledger-1", 10);

    // Out and in. The highest ordinal goes, after its preStop and in good order; its claim stays.
    space.patch::<StatefulSet>("ledger", &json!({ "spec": { "replicas": 3 } })).unwrap();
    space.wait("three pods to be ready", "ledger", SOON, |set| ready(set) == 3).unwrap();
    sent += append(&kubelet, "ledger-2", 20);
    space.patch::<StatefulSet>("ledger", &json!({ "spec": { "replicas": 1 } })).unwrap();
    let begun = Instant::now();
    space.wait("the last pod to go", "ledger-2", SOON, |pod: Option<&Pod>| pod.is_none()).unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1), "preStop was not waited for");
    space.wait("the last pod but one to go", "ledger-1", SOON, |pod: Option<&Pod>| pod.is_none()).unwrap();
    assert!(space.get::<PersistentVolumeClaim>("spool-ledger-2").unwrap().is_some());
    assert_eq!(kubelet.pods(), ["ledger-0"]);
    sent += append(&kubelet, "ledger-0", 5);

    let sql = postgres.connect("postgres").unwrap();
    let stored: i64 = sql.query("SELECT count(*) FROM certeus.events", &[]).unwrap()[0].get(0);
    assert_eq!(usize::try_from(stored).unwrap(), sent);
    drop(kubelet);
    postgres.stop().unwrap();
}

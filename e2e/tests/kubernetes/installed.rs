//! A namespace with all that a ledger needs: definitions, the operator's rights, a PostgreSQL, and a kubelet for the pods.

use std::net::SocketAddr;
use std::time::Duration;

use certeus_crds::LedgerCluster;
use certeus_e2e::cluster::guard::Guard;
use certeus_e2e::cluster::kubelet::Kubelet;
use certeus_e2e::cluster::operator::{Operator, install};
use certeus_e2e::cluster::space::Space;
use certeus_e2e::http::{Client, Exchange, Reply, Request};
use certeus_e2e::postgres::{Postgres, Sql};
use certeus_e2e::programs;
use certeus_e2e::recorder::Habits;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

/// For what takes some reconciles and no pods.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For what needs pods to start or drain, on a machine that does much else.
pub(crate) const IN_TIME: Duration = Duration::from_secs(120);

/// For twenty pods.
const CONNECTIONS: &[(&str, &str)] = &[("max_connections", "120")];

pub(crate) struct Installed {
    // Described, when a test fails, before the pods are gone.
    pub(crate) space: Space,
    pub(crate) kubelet: Kubelet,
    pub(crate) postgres: Postgres,
    token: String,
}

impl Installed {
    /// With fronts before the pods' admin ports when `fronted`.
    pub(crate) fn new(prefix: &str, fronted: bool) -> Self {
        let space = Space::with_definitions(prefix).unwrap();
        let token = install(&space).unwrap();
        let postgres = Postgres::start(&space.dir().join("postgres"), space.dir(), CONNECTIONS, &[]).unwrap();
        Guard::get().unwrap().note(postgres.process_id()).unwrap();
        let programs = [("certeus-dataplane", programs::dataplane().unwrap())];
        let kubelet = Kubelet::start(&space, &programs, fronted).unwrap();
        Self { space, kubelet, postgres, token }
    }

    pub(crate) fn database_url(&self, name: &str) -> String {
        self.postgres.url_through(self.postgres.address(), name)
    }

    pub(crate) fn sql(&self, name: &str) -> Sql {
        self.postgres.connect(name).unwrap()
    }

    /// Makes a cluster's database and the Secret with its URL.
    pub(crate) fn prepare(&self, name: &str) {
        self.prepare_through(name, self.postgres.address());
    }

    /// The same with a URL that leads there by another address.
    pub(crate) fn prepare_through(&self, name: &str, address: SocketAddr) {
        self.sql("postgres").batch(&format!("CREATE DATABASE {name}")).unwrap();
        let url = self.postgres.url_through(address, name);
        self.space.put_secret(&secret_of(name), &[("url", &url)]).unwrap();
    }

    /// What operators say who they are with.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn operator(&self) -> Operator {
        Operator::start(&self.space, &programs::operator().unwrap(), &self.token).unwrap()
    }

    /// One that watches these namespaces, too, where it has no rights.
    pub(crate) fn operator_beside(&self, others: &[&str]) -> Operator {
        Operator::start_beside(&self.space, &programs::operator().unwrap(), &self.token, others).unwrap()
    }

    /// Makes a LedgerCluster on a database of its own, with further lines of its `spec`.
    pub(crate) fn create(&self, name: &str, more: &str) {
        self.prepare(name);
        self.apply(name, more);
    }

    /// Changes its `spec` to this.
    pub(crate) fn apply(&self, name: &str, more: &str) {
        self.space.apply(&manifest(name, more)).unwrap();
    }

    /// As a script of a user would wait.
    pub(crate) fn wait_until_ready(&self, name: &str) {
        let cluster = format!("lc/{name}");
        self.space.kubectl(&["wait", "--for=condition=Ready", &cluster, "--timeout=120s"]).unwrap();
    }

    /// Waits until so many pods are ready, and no others are there.
    pub(crate) fn wait_for_pods(&self, name: &str, count: usize) {
        let labels = pods_of(name);
        let settled = || {
            let pods = self.space.list::<Pod>(&labels).unwrap();
            pods.len() == count && pods.iter().all(is_ready)
        };
        self.wait(&format!("{count} ready pods"), IN_TIME, settled);
    }

    /// Waits until something is so.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + limit;
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "{what} took longer than {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for a condition of a cluster; gives its reason and message.
    pub(crate) fn wait_for_condition(&self, name: &str, kind: &str, status: &str) -> (String, String) {
        let found = self.find_condition(name, kind, status, |_| true);
        (found.reason, found.message)
    }

    /// Waits until a condition has this reason; gives its message.
    pub(crate) fn wait_for_reason(&self, name: &str, kind: &str, status: &str, reason: &str) -> String {
        self.find_condition(name, kind, status, |found| found.reason == reason).message
    }

    fn find_condition(
        &self,
        name: &str,
        kind: &str,
        status: &str,
        is_it: impl Fn(&Condition) -> bool,
    ) -> Condition {
        let find = |cluster: &LedgerCluster| {
            let mut conditions = cluster.status.as_ref()?.conditions.iter();
            let found =
                conditions.find(|found| found.type_ == kind && found.status == status && is_it(found));
            found.cloned()
        };
        let what = format!("{kind}={status} of {name}");
        let is_so = |cluster: Option<&LedgerCluster>| cluster.and_then(find).is_some();
        let cluster = self.space.wait(&what, name, IN_TIME, is_so).unwrap();
        cluster.as_ref().and_then(find).unwrap()
    }

    /// A condition as it is now: status and reason.
    pub(crate) fn condition(&self, name: &str, kind: &str) -> (String, String) {
        let status =
            self.space.get::<LedgerCluster>(name).unwrap().and_then(|cluster| cluster.status).unwrap();
        let found = status.conditions.into_iter().find(|found| found.type_ == kind).unwrap();
        (found.status, found.reason)
    }

    /// What Events tell of a cluster: type, reason and text of each, in no order.
    pub(crate) fn events(&self, name: &str) -> Vec<(String, String, String)> {
        let events = self.space.list::<Event>("").unwrap().into_iter();
        let of_it = events.filter(|event| {
            let regarding = event.regarding.as_ref();
            regarding.is_some_and(|about| {
                about.kind.as_deref() == Some("LedgerCluster") && about.name.as_deref() == Some(name)
            })
        });
        let text = Option::<String>::unwrap_or_default;
        of_it.map(|event| (text(event.type_), text(event.reason), text(event.note))).collect()
    }

    /// A request to a pod of a cluster, with the generated key; `None` without a reply.
    pub(crate) fn send(&self, pod: &str, method: &str, path: &str, body: &str) -> Option<Reply> {
        let (cluster, _ordinal) = pod.rsplit_once('-')?;
        let authorization = format!("Bearer {}", self.api_key(cluster));
        let headers = [("content-type", "application/json"), ("authorization", &authorization[..])];
        let request = Request { method, path, headers: &headers, body: body.as_bytes() };
        match Client::new(SOON).send(self.kubelet.api_of(pod)?, &request) {
            Exchange::Reply(reply) => Some(reply),
            Exchange::NotSent | Exchange::Lost => None,
        }
    }

    /// Name and unique id of each pod.
    pub(crate) fn pods(&self, name: &str) -> Vec<(String, String)> {
        let pods = self.space.list::<Pod>(&pods_of(name)).unwrap();
        pods.iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect()
    }

    /// The API key that the operator made for a cluster.
    pub(crate) fn api_key(&self, name: &str) -> String {
        let secret: Secret = self.space.get(&format!("{name}-api-key")).unwrap().expect("a generated key");
        String::from_utf8(secret.data.unwrap()["api-key"].0.clone()).unwrap()
    }

    /// As most clients: pods may answer that they keep a request until PostgreSQL is there.
    pub(crate) fn habits(&self, name: &str) -> Habits {
        Habits { spool: true, api_key: Some(self.api_key(name)), ..Habits::default() }
    }

    /// Somebody changes a label of one of the operator's objects; waits until it is as it was.
    pub(crate) fn drift(&self, object: &str) {
        let name = r"jsonpath={.metadata.labels.app\.kubernetes\.io/name}";
        let label = || self.space.kubectl(&["get", object, "-o", name]);
        let right = label().unwrap();
        self.space.kubectl(&["label", "--overwrite", object, "app.kubernetes.io/name=drifted"]).unwrap();
        let is_right = || label().is_ok_and(|now| now == right);
        self.wait(&format!("{object} to be put right"), SOON, is_right);
    }

    /// Somebody sets a field of one of the operator's objects, `from` what is asserted; waits until it is as it was.
    pub(crate) fn drift_field(&self, object: &str, path: &[&str], to: &serde_json::Value) {
        let shown = format!("jsonpath={{.{}}}", path.join("."));
        let value = || self.space.kubectl(&["get", object, "-o", &shown]);
        let right = value().unwrap();
        let patch = path.iter().rev().fold(to.clone(), |inner, name| serde_json::json!({ *name: inner }));
        let patched =
            self.space.kubectl(&["patch", object, "--type=merge", "-p", &patch.to_string(), "-o", &shown]);
        assert_ne!(patched.unwrap(), right, "{object} did not drift");
        self.wait(&format!("{shown} of {object} to be put right"), SOON, || {
            value().is_ok_and(|now| now == right)
        });
    }

    /// Somebody deletes one of the operator's objects; waits until it is made again.
    pub(crate) fn lose(&self, object: &str) {
        let id = || self.space.kubectl(&["get", object, "-o", "jsonpath={.metadata.uid}"]);
        let before = id().unwrap();
        // Pods of a workload live on; they need not be waited for.
        self.space.kubectl(&["delete", object, "--wait=false", "--cascade=orphan"]).unwrap();
        self.wait(&format!("{object} to be made again"), SOON, || id().is_ok_and(|now| now != before));
    }

    /// Everything that the operator has made, as `kind/name`.
    pub(crate) fn owned(&self) -> Vec<String> {
        let kinds =
            "statefulsets,configmaps,services,poddisruptionbudgets,networkpolicies,serviceaccounts,secrets";
        let mine = ["-l", "app.kubernetes.io/managed-by=certeus-operator", "-o", "name"];
        let text = self.space.kubectl(&[&["get", kinds][..], &mine].concat()).unwrap();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

pub(crate) fn manifest(name: &str, more: &str) -> String {
    format!(
        "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{name: {name}}}\nspec:\n  \
         database: {{secretRef: {{name: {}, key: url}}, connectionBudget: 80}}\n{more}",
        secret_of(name)
    )
}

pub(crate) fn secret_of(name: &str) -> String {
    format!("postgres-{name}")
}

/// So many pods, whatever the load.
pub(crate) fn fixed(replicas: u32) -> String {
    format!("  autoscaling: {{enabled: false}}\n  replicas: {replicas}\n")
}

pub(crate) fn pods_of(name: &str) -> String {
    format!("app.kubernetes.io/name=certeus-dataplane,app.kubernetes.io/instance={name}")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How often an operator has asked for this.
pub(crate) fn asked(operator: &Operator, path_end: &str) -> usize {
    operator.front().seen().iter().filter(|seen| seen.path.ends_with(path_end)).count()
}

/// What an operator wrote, leases and Events excepted: those are signs of life.
pub(crate) fn writes(operator: &Operator) -> Vec<String> {
    let seen = operator.front().seen().into_iter();
    let of_objects = seen
        .filter(|seen| seen.is_write() && !seen.path.contains("/leases") && !seen.path.contains("/events"));
    of_objects.map(|seen| format!("{} {}", seen.method, seen.path)).collect()
}

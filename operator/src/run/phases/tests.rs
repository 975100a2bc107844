mod secrets;
mod size;
mod trouble;

use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::*;
use crate::run::error::Class;
use crate::run::owned::Seen;
use crate::run::watch::{ClusterSeen, checked};

const CLUSTER: &str = "/apis/certeus.io/v1alpha1/namespaces/ns/ledgerclusters/demo/status";
const SERVICE: &str = "/api/v1/namespaces/ns/services/demo-pods";
const CONFIG_MAP: &str = "/api/v1/namespaces/ns/configmaps/demo-config";
const WORKLOAD: &str = "/apis/apps/v1/namespaces/ns/statefulsets/demo";
const SIGNING_KEY: &str = "/api/v1/namespaces/ns/secrets/demo-signing-key";

/// One cluster on an API server in memory, and what the operator remembers of it.
struct World {
    api: FakeApi,
    context: Context,
    record: Record,
    spec: Value,
    generation: i64,
    autoscaler: Option<String>,
    pods: Vec<PodSeen>,
    /// What the watch shows of the objects while it is behind.
    behind: Option<BTreeMap<OwnedKey, Seen>>,
}

impl World {
    fn new() -> Self {
        let api = FakeApi::default();
        let context = Context::on(api.client());
        let spec = json!({
            "database": { "secretRef": { "name": "db", "key": "url" } },
            "replicas": 3, "autoscaling": { "enabled": false }
        });
        let world = Self {
            api,
            context,
            record: Record::default(),
            spec,
            generation: 1,
            autoscaler: None,
            pods: Vec::new(),
            behind: None,
        };
        world.secret("postgres://one");
        world
    }

    fn secret(&self, url: &str) {
        self.api.edit("/api/v1/namespaces/ns/secrets/db", |secret| {
            *secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "db" },
                "data": { "url": k8s_openapi::ByteString(url.as_bytes().to_vec()) } });
        });
    }

    /// One reconcile, with what a watch would show by now.
    async fn reconcile(&mut self) -> Result<(), Error> {
        let object = json!({
            "apiVersion": "certeus.io/v1alpha1", "kind": "LedgerCluster", "spec": self.spec,
            "metadata": { "name": "demo", "namespace": "ns", "uid": "u", "generation": self.generation }
        });
        let stored = self.api.get(CLUSTER);
        let version = stored.as_ref().map(|stored| stored["metadata"]["resourceVersion"].to_string());
        let cluster = ClusterSeen {
            uid: "u".to_owned(),
            generation: Some(self.generation),
            resource_version: version.unwrap_or_default(),
            deleted: false,
            cluster: checked(object),
            status: stored.and_then(|stored| serde_json::from_value(stored["status"].clone()).ok()),
        };
        let snapshot = Snapshot {
            cluster: Arc::new(cluster),
            pods: self.pods.clone(),
            owned: self.behind.clone().unwrap_or_else(|| self.api.owned()),
            autoscaler: self.autoscaler.clone(),
            service_monitors: false,
        };
        let key = ObjectKey::new("ns", "demo");
        reconcile(&self.context, &key, &mut self.record, snapshot, Arc::new(|| {})).await
    }

    fn edit_spec(&mut self, edit: impl FnOnce(&mut Value)) {
        edit(&mut self.spec);
        self.generation += 1;
    }

    fn repairs(&self, kind: &str) -> u64 {
        self.context.metrics.drift_repairs.with_label_values(&[kind]).get()
    }

    fn condition(&self, type_: &str) -> (String, String, String) {
        let stored = self.api.get(CLUSTER).unwrap();
        let conditions = stored["status"]["conditions"].as_array().unwrap();
        let condition = conditions.iter().find(|condition| condition["type"] == type_).unwrap();
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }
}

/// A world in which all is as it should be.
async fn settled() -> World {
    let mut world = World::new();
    world.reconcile().await.unwrap();
    // The workload and its status are known now.
    world.reconcile().await.unwrap();
    world.api.writes();
    world.api.reads();
    world
}

#[tokio::test]
async fn a_first_reconcile_writes_everything_with_the_workload_last() {
    let mut world = World::new();
    world.reconcile().await.unwrap();
    let writes = world.api.writes();
    assert_eq!(writes.first().unwrap(), "POST ns/secrets", "{writes:?}");
    let applied: Vec<&str> = writes.iter().filter_map(|write| write.strip_prefix("PATCH ")).collect();
    let (workload, rest) = applied.split_last().and_then(|(_status, rest)| rest.split_last()).unwrap();
    assert_eq!(*workload, "statefulsets/demo", "{writes:?}");
    for object in ["configmaps/demo-config", "services/demo-pods", "services/demo", "networkpolicies/demo"] {
        assert!(rest.iter().any(|applied| applied.starts_with(object)), "{object}: {writes:?}");
    }
    assert_eq!(applied.last(), Some(&"demo/status"), "{writes:?}");
}

#[tokio::test]
async fn a_second_reconcile_asks_for_nothing_and_writes_nothing() {
    let mut world = settled().await;
    for _ in 0..3 {
        world.reconcile().await.unwrap();
    }
    assert_eq!((world.api.writes(), world.api.reads()), (Vec::<String>::new(), 0));
}

#[tokio::test]
async fn a_new_operator_reads_and_writes_nothing_either() {
    let mut world = settled().await;
    world.record = Record::default();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), Vec::<String>::new());
    assert!(world.api.reads() > 5);
    world.reconcile().await.unwrap();
    assert_eq!(world.api.reads(), 0, "it remembers");
}

#[tokio::test]
async fn what_others_change_or_delete_is_put_right_and_counted() {
    let mut world = settled().await;
    world.api.edit(SERVICE, |service| service["spec"]["clusterIP"] = json!("1.2.3.4"));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH services/demo-pods"]);
    world.api.remove(CONFIG_MAP);
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH configmaps/demo-config"]);
    // While no operator was there.
    world.record = Record::default();
    let grace = |world: &World| {
        world.api.get(WORKLOAD).unwrap()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].clone()
    };
    let before = grace(&world);
    world
        .api
        .edit(WORKLOAD, |set| set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(0));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH statefulsets/demo"]);
    assert_eq!(grace(&world), before);
    let repairs = ["Service", "ConfigMap", "StatefulSet"].map(|kind| world.repairs(kind));
    assert_eq!(repairs, [1, 1, 1]);
}

#[tokio::test]
async fn what_others_add_to_a_list_is_replaced() {
    let mut world = settled().await;
    // An entry under another key, which an apply leaves alone.
    world.api.keep_lists();
    world
        .api
        .edit(SERVICE, |service| service["spec"]["ports"].as_array_mut().unwrap().push(json!({ "port": 1 })));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH services/demo-pods", "MERGE services/demo-pods"]);
    assert_eq!(world.api.get(SERVICE).unwrap()["spec"]["ports"].as_array().unwrap().len(), 2);
    world.reconcile().await.unwrap();
    assert_eq!((world.api.writes(), world.repairs("Service")), (Vec::<String>::new(), 1));
}

#[tokio::test]
async fn what_others_add_to_a_selector_goes() {
    let mut world = settled().await;
    let paths = [
        (SERVICE, "/spec/selector"),
        ("/api/v1/namespaces/ns/services/demo", "/spec/selector"),
        ("/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies/demo", "/spec/podSelector/matchLabels"),
        ("/apis/policy/v1/namespaces/ns/poddisruptionbudgets/demo", "/spec/selector/matchLabels"),
    ];
    for (path, selector) in paths {
        let right = world.api.get(path).unwrap()["spec"].clone();
        world.api.edit(path, |object| object.pointer_mut(selector).unwrap()["their"] = json!("entry"));
        world.reconcile().await.unwrap();
        assert_eq!(world.api.writes().len(), 1, "{path}");
        assert_eq!(world.api.get(path).unwrap()["spec"], right);
    }
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), Vec::<String>::new());
    let repairs = ["Service", "NetworkPolicy", "PodDisruptionBudget"].map(|kind| world.repairs(kind));
    assert_eq!(repairs, [2, 1, 1]);
}

#[tokio::test]
async fn what_others_add_is_theirs() {
    let mut world = settled().await;
    world.api.edit(SERVICE, |service| service["metadata"]["annotations"]["their"] = json!("note"));
    world.reconcile().await.unwrap();
    assert_eq!((world.api.writes(), world.api.reads()), (Vec::<String>::new(), 1));
    assert_eq!(world.repairs("Service"), 0);
}

#[tokio::test]
async fn an_edit_writes_what_it_changes_and_is_no_repair() {
    let mut world = settled().await;
    world.edit_spec(|spec| spec["monitoring"] = json!({ "dashboard": true }));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH configmaps/demo-dashboard", "PATCH demo/status"]);
    world.edit_spec(|spec| {
        spec["monitoring"] = json!({ "dashboard": false });
        spec["resources"] = json!({ "requests": { "cpu": "2" } });
    });
    world.reconcile().await.unwrap();
    let expected = ["DELETE configmaps/demo-dashboard", "PATCH statefulsets/demo", "PATCH demo/status"];
    assert_eq!(world.api.writes(), expected, "the workload after what is removed");
    assert_eq!(world.repairs("StatefulSet") + world.repairs("ConfigMap"), 0);
    assert_eq!(world.context.metrics.orphans_removed.with_label_values(&["ConfigMap"]).get(), 1);
}

#[tokio::test]
async fn a_failing_object_does_not_keep_the_others_back() {
    for (code, class) in
        [(409, Class::Conflict), (429, Class::Transient), (500, Class::Transient), (403, Class::Forbidden)]
    {
        let mut world = World::new();
        world.api.fail(vec![(Method::PATCH, "networkpolicies", code)]);
        let error = world.reconcile().await.unwrap_err();
        assert_eq!(error.class(), class);
        assert!(world.api.get(WORKLOAD).is_some(), "{code}");
        let (degraded, reason, _) = world.condition("Degraded");
        let expected = if code == 409 { ("False", "AsExpected") } else { ("True", error.reason()) };
        assert_eq!((degraded.as_str(), reason.as_str()), expected);
        world.api.fail(Vec::new());
        world.reconcile().await.unwrap();
        assert_eq!(world.condition("Degraded").0, "False");
    }
}

#[tokio::test]
async fn pods_do_not_come_without_their_configuration() {
    let mut world = World::new();
    world.api.fail(vec![(Method::PATCH, "configmaps", 500)]);
    world.reconcile().await.unwrap_err();
    assert!(world.api.get(WORKLOAD).is_none());
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone() {
    let mut world = World::new();
    world.api.edit(SERVICE, |service| {
        *service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "demo-pods" }, "spec": {} });
    });
    let error = world.reconcile().await.unwrap_err();
    assert_eq!(error.reason(), "NameTaken");
    assert_eq!(world.api.get(SERVICE).unwrap()["spec"], json!({}));
}

#[tokio::test]
async fn a_paused_cluster_is_not_touched_and_a_dry_run_says_what_it_would_do() {
    let mut world = settled().await;
    world.edit_spec(|spec| {
        spec["paused"] = json!(true);
        spec["replicas"] = json!(9);
    });
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH demo/status"]);
    assert_eq!(world.condition("Progressing").1, "Paused");

    world.edit_spec(|spec| {
        spec["paused"] = json!(false);
        spec["dryRun"] = json!(true);
    });
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["PATCH demo/status"]);
    let (_, reason, message) = world.condition("DryRun");
    assert_eq!(reason, "WouldChange");
    assert!(message.contains("scale from 3 to 9 pods"), "{message}");
    world.edit_spec(|spec| spec["ledger"] = json!({ "batchSize": 77 }));
    world.reconcile().await.unwrap();
    assert!(
        world.condition("DryRun").2.contains("change StatefulSet demo"),
        "{:?}",
        world.condition("DryRun")
    );
    world.api.writes();

    world.edit_spec(|spec| spec["dryRun"] = json!(false));
    world.reconcile().await.unwrap();
    assert_eq!(world.api.get(WORKLOAD).unwrap()["spec"]["replicas"], 9);
}

#[tokio::test]
async fn an_object_that_cannot_be_carried_out_says_why_and_waits_for_its_user() {
    let mut world = settled().await;
    world.edit_spec(|spec| spec["database"] = json!({ "embedded": false }));
    let error = world.reconcile().await.unwrap_err();
    assert_eq!((error.class(), error.class().retry(1, 0.5)), (Class::Invalid, None));
    let (status, reason, message) = world.condition("Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Invalid"));
    assert!(message.contains("spec.database"), "{message}");
    assert_eq!(world.condition("Ready").1, "PodsNotReady", "what runs is still told");
    world.api.writes();
    world.reconcile().await.unwrap_err();
    assert_eq!(world.api.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_volume_that_cannot_change_keeps_nothing_else_from_changing() {
    let mut world = settled().await;
    world.edit_spec(|spec| {
        spec["spool"] = json!({ "size": "2Gi" });
        spec["replicas"] = json!(4);
    });
    for _ in 0..2 {
        let error = world.reconcile().await.unwrap_err();
        assert_eq!((error.class(), error.reason()), (Class::Invalid, "ImmutableField"));
        assert!(error.message().contains("--cascade=orphan"), "{}", error.message());
    }
    let workload = world.api.get(WORKLOAD).unwrap();
    assert_eq!(workload["spec"]["replicas"], 4);
    assert!(!workload["spec"]["volumeClaimTemplates"].to_string().contains("2Gi"));
    world.api.writes();
    world.reconcile().await.unwrap_err();
    assert_eq!(world.api.writes(), Vec::<String>::new(), "no endless writing");
}

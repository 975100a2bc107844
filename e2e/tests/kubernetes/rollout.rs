//! Pods are replaced when they must be and only then; operators come and go meanwhile.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use certeus_crds::LedgerCluster;
use certeus_e2e::cluster::front::{Fault, Rule};
use certeus_e2e::cluster::guard::Guard;
use certeus_e2e::http::{Client, Exchange, Request};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::ResourceExt;
use serde_json::json;

use crate::installed::{IN_TIME, Installed, SOON, asked, fixed, manifest, pods_of, secret_of, writes};

/// A lease's duration and some time to look.
const TAKE_OVER: Duration = Duration::from_secs(40);

#[test]
fn a_change_of_the_database_secret_replaces_every_pod_once() {
    let _turn = crate::beside();
    let world = Installed::new("rotate", false);
    let operator = world.operator();
    // As CloudNativePG makes it for a cluster `pg`.
    world.sql("postgres").batch("CREATE DATABASE trades").unwrap();
    let put = |user: &str, password: &str| {
        let (host, port) =
            (world.postgres.address().ip().to_string(), world.postgres.address().port().to_string());
        let uri = format!("postgresql://{user}:{password}@{host}:{port}/trades");
        let jdbc = format!("jdbc:postgresql://{host}:{port}/trades?password={password}&user={user}");
        let pgpass = format!("{host}:{port}:trades:{user}:{password}\n");
        let keys = [
            ("username", user),
            ("user", user),
            ("password", password),
            ("host", &host),
            ("port", &port),
            ("dbname", "trades"),
            ("uri", &uri),
            ("fqdn-uri", &uri),
            ("jdbc-uri", &jdbc),
            ("fqdn-jdbc-uri", &jdbc),
            ("pgpass", &pgpass),
        ];
        world.space.put_secret("pg-app", &keys).unwrap();
    };
    world.sql("trades").batch("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'old'").unwrap();
    put("app", "old");
    let apply = || {
        let spec = format!("{}  security: {{objectStoreSecretRef: {{name: store}}}}\n", fixed(2));
        let spec = manifest("trades", &spec);
        let ours = format!("secretRef: {{name: {}, key: url}}", secret_of("trades"));
        assert!(spec.contains(&ours), "{spec}");
        world.space.apply(&spec.replace(&ours, "secretRef: {name: pg-app, key: uri}")).unwrap();
    };
    let store = |region: &str| {
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"), ("AWS_REGION", region)];
        world.space.put_secret("store", &keys).unwrap();
    };
    store("one");
    apply();
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    let before = world.pods("trades");
    let revision = || {
        let set = world.space.get::<StatefulSet>("trades").unwrap().unwrap();
        set.status.unwrap().update_revision.unwrap()
    };
    let revisions = || world.space.list::<ControllerRevision>(&pods_of("trades")).unwrap().len();
    let (old, count) = (revision(), revisions());
    assert_eq!(count, 1);
    let connections = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'rotated'";
        world.sql("trades").query(sql, &[]).unwrap()[0].get::<_, i64>(0)
    };
    assert_eq!(connections(), 0);
    // The Secrets that the operator made are changes, too, with which others would be gathered: until they are read again. At first
    // they were asked for in vain.
    world.wait("the generated Secrets to be read again", SOON, || {
        asked(&operator, "/secrets/trades-signing-key") >= 2
    });
    // Not by kubectl, which may take longer than changes are gathered.
    let look = |value: &str| {
        let looked = json!({ "metadata": { "annotations": { "looked": value } } });
        world.space.patch::<Service>("trades", &looked).unwrap();
    };
    world.sql("trades").batch("CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'new'").unwrap();
    put("rotated", "new");
    // Another Secret soon after, and between them something that has the cluster looked at.
    std::thread::sleep(Duration::from_millis(300));
    look("once");
    store("two");
    world.wait("new pods", IN_TIME, || {
        let now = world.pods("trades");
        now.len() == 2 && now.iter().all(|pod| !before.contains(pod))
    });
    world.wait_for_pods("trades", 2);
    world.wait("connections with the new password", SOON, || connections() > 0);
    let (after, new) = (world.pods("trades"), revision());
    assert_ne!(old, new);
    // Once: nothing follows.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((world.pods("trades"), revision(), revisions()), (after, new.clone(), count + 1));
    // A Secret and the specification together.
    store("three");
    let spec = json!({ "spec": { "ledger": { "batchSize": 777 } } });
    world.space.patch::<LedgerCluster>("trades", &spec).unwrap();
    world.wait("another revision", SOON, || revision() != new);
    let new = revision();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((revision(), revisions()), (new.clone(), count + 2));
    // One alone, and before its time the cluster is looked at for another reason.
    store("four");
    std::thread::sleep(Duration::from_millis(300));
    look("again");
    world.wait("a revision for one Secret", SOON, || revision() != new);
    operator.stop().unwrap();
}

/// The folder of a pod's volume.
fn volume(world: &Installed, pod: &str) -> PathBuf {
    let name = format!("spool-{pod}");
    let claim = world.space.get::<PersistentVolumeClaim>(&name).unwrap().expect("a claim");
    world.space.dir().join("claims").join(format!("{name}-{}", claim.uid().unwrap()))
}

/// A Secret of the same database that is not the same.
fn rotate(world: &Installed, turn: u32) {
    let url = format!("{}?application_name=turn{turn}", world.database_url("trades"));
    world.space.put_secret(&secret_of("trades"), &[("url", &url)]).unwrap();
}

#[test]
fn a_rollout_passes_a_pod_that_does_not_drain_and_waits_for_one_that_does_not_run() {
    let _turn = crate::beside();
    let mut world = Installed::new("victims", true);
    let operator = world.operator();
    world.create("trades", &fixed(2));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    let uid = |pod: &str| world.space.get::<Pod>(pod).unwrap().and_then(|pod| pod.uid());
    let first = uid("trades-0").unwrap();

    // It begins to drain, and nobody hears that it is done.
    let front = world.kubelet.front("trades-1").unwrap();
    front.inject(Rule::new("GET", "/admin/drain", Fault::Refuse(503)));
    world.apply("trades", &fixed(1));
    world.wait("a drain", IN_TIME, || {
        front.seen().iter().any(|seen| seen.path == "/admin/drain" && seen.broken)
    });
    rotate(&world, 1);
    world.wait("the other one to be replaced", IN_TIME, || uid("trades-0").is_some_and(|now| now != first));

    // One that holds an event and cannot be started.
    world.apply("trades", &fixed(2));
    world.wait_for_pods("trades", 2);
    let key = world.api_key("trades");
    world.postgres.stop().unwrap();
    let headers = [("content-type", "application/json"), ("x-api-key", &key[..])];
    let event = b"{\"type\":\"rollout.test\",\"timestamp\":1769860800}";
    let request = Request { method: "POST", path: "/v1/ledger/events", headers: &headers, body: event };
    world.wait("a pod that keeps an event", IN_TIME, || {
        let address = world.kubelet.api_of("trades-1").unwrap();
        let exchange = Client::new(Duration::from_secs(30)).send(address, &request);
        matches!(exchange, Exchange::Reply(reply) if reply.status == 202)
    });
    world.apply("trades", &fixed(1));
    let said = ["get", "lc/trades", "-o", "jsonpath={.status.draining[*].message}"];
    let said = || world.space.kubectl(&said).unwrap();
    world.wait("what it holds to be known", IN_TIME, || said().starts_with("holds spooled requests"));
    let (folder, aside) = (volume(&world, "trades-1"), world.space.dir().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "").unwrap();
    world.kubelet.kill("trades-1").unwrap();
    world.wait("it to be down", IN_TIME, || said().starts_with("does not run"));
    world.postgres.restart().unwrap();
    Guard::get().unwrap().note(world.postgres.process_id()).unwrap();

    // Kubernetes waits for it before it replaces the one below: that is told, and what to do about it.
    let uid = |pod: &str| world.space.get::<Pod>(pod).unwrap().and_then(|pod| pod.uid());
    let [first, second] = ["trades-0", "trades-1"].map(|pod| uid(pod).unwrap());
    rotate(&world, 2);
    world.wait("the pod that is down to be replaced", IN_TIME, || {
        uid("trades-1").is_some_and(|now| now != second)
    });
    let degraded = || world.wait_for_condition("trades", "Degraded", "True");
    world.wait("the rollout that waits to be told", IN_TIME, || {
        degraded().1.contains("1 pod with an older template")
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(uid("trades-0").as_ref(), Some(&first), "Kubernetes does not wait: then nobody need be told");
    world.space.kubectl(&["delete", "pod", "trades-0", "--grace-period=1"]).unwrap();
    world.wait("the rollout to be over", IN_TIME, || !degraded().1.contains("an older template"));
    assert_ne!(uid("trades-0").as_ref(), Some(&first));

    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    let stored = || {
        let sql = "SELECT count(*) FROM certeus.events";
        world.sql("trades").query(sql, &[]).unwrap()[0].get::<_, i64>(0)
    };
    world.wait("what it held", IN_TIME, || stored() == 1);
    operator.stop().unwrap();
}

#[test]
fn another_operator_goes_on_where_a_killed_one_stopped_and_restarts_no_pod_without_reason() {
    let _turn = crate::beside();
    let world = Installed::new("leader", false);
    let first = world.operator();
    world.create("trades", &fixed(2));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    assert!(first.leads(&world.space).unwrap());
    let second = world.operator();
    world.wait("the second one to stand by", IN_TIME, || second.health("/readyz").is_ok());
    assert!(!second.leads(&world.space).unwrap());
    assert_eq!(writes(&second), [""; 0], "written without the lease");

    // Killed in the middle of a rollout: one pod is new, the other one is not.
    let before = world.pods("trades");
    world.apply("trades", &format!("{}  ledger: {{batchSize: 777}}\n", fixed(2)));
    world.wait("the first pod to be replaced", IN_TIME, || {
        world.pods("trades").iter().any(|pod| !before.contains(pod))
    });
    first.kill();
    // What only the next one can do.
    world.apply("trades", &format!("{}  ledger: {{batchSize: 778}}\n", fixed(3)));
    world.wait("the lease to change hands", TAKE_OVER, || second.leads(&world.space).unwrap());
    world.wait_for_pods("trades", 3);
    let settled = |set: Option<&StatefulSet>| {
        let status = set.and_then(|set| set.status.as_ref());
        status.is_some_and(|status| {
            status.updated_replicas == Some(3) && status.current_revision == status.update_revision
        })
    };
    world.space.wait("the rollout to end", "trades", IN_TIME, settled).unwrap();
    world.wait_until_ready("trades");

    // A new operator in the place of the old one, in good order: at once, and no pod notices.
    world.wait_for_condition("trades", "Progressing", "False");
    let before = world.pods("trades");
    let third = world.operator();
    world.wait("the third one to stand by", IN_TIME, || third.health("/readyz").is_ok());
    let begun = Instant::now();
    second.stop().unwrap();
    world.wait("the lease to be handed over", TAKE_OVER, || third.leads(&world.space).unwrap());
    assert!(begun.elapsed() < Duration::from_secs(10), "handed over after {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_secs(5));
    let touched: Vec<String> =
        writes(&third).into_iter().filter(|write| !write.ends_with("/status")).collect();
    assert_eq!(touched, [""; 0], "the new operator changed objects");
    assert_eq!(world.pods("trades"), before);
    let restarted = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.map(|status| status.restart_count).sum::<i32>() > 0
    };
    assert!(!world.space.list::<Pod>(&crate::installed::pods_of("trades")).unwrap().iter().any(restarted));
    third.stop().unwrap();
}

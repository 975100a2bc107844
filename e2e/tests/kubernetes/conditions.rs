//! What is wrong with a cluster is told as what it is, with what to do, costs nothing that runs, and is over when it is put right.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use certeus_e2e::cluster::front::{Fault, Rule};
use certeus_e2e::proxy::{Cut, Proxy};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use serde_json::json;

use crate::installed::{IN_TIME, Installed, SOON, fixed, pods_of, secret_of};

/// Where nobody listens.
pub(crate) const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

/// Identity and restarts of each pod, and the version of what they are made from: all that changes when one is replaced.
fn generations(world: &Installed, name: &str) -> (Vec<(String, i32)>, Option<i64>) {
    let pods = world.space.list::<Pod>(&pods_of(name)).unwrap();
    let pods = pods.iter().map(|pod| (pod.uid().unwrap(), restarts(pod))).collect();
    (pods, world.space.get::<StatefulSet>(name).unwrap().and_then(|set| set.metadata.generation))
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).sum()
}

/// How often an Event of this type and reason with this text was made for a cluster, and that of its end.
fn told(world: &Installed, name: &str, reason: &str, text: &str) -> (usize, usize) {
    let events = world.events(name);
    let count = |event: [&str; 3]| events.iter().filter(|(a, b, c)| [&a[..], b, c] == event).count();
    let over = format!("{reason} is over");
    (count(["Warning", reason, text]), count(["Normal", "Recovered", &over]))
}

fn wait_until_told(world: &Installed, name: &str, reason: &str, text: &str, expected: (usize, usize)) {
    let what = format!("Events of {reason} of {name}");
    world.wait(&what, SOON, || told(world, name, reason, text) == expected);
}

/// Appends an event that may be spooled.
pub(crate) fn append(world: &Installed, pod: &str) -> Option<u16> {
    const EVENT: &str = r#"{"type":"conditions.test","timestamp":1769860800}"#;
    world.send(pod, "POST", "/v1/ledger/events", EVENT).map(|reply| reply.status)
}

/// How many events are committed.
pub(crate) fn stored(world: &Installed, name: &str) -> i64 {
    world.sql(name).query("SELECT count(*) FROM certeus.events", &[]).unwrap()[0].get(0)
}

/// Where the volume of a cluster's spool is.
pub(crate) fn volume(world: &Installed, pod: &str) -> PathBuf {
    let name = format!("spool-{pod}");
    let claim = world.space.get::<PersistentVolumeClaim>(&name).unwrap().expect("a claim");
    world.space.dir().join("claims").join(format!("{name}-{}", claim.uid().unwrap()))
}

#[test]
fn a_secret_that_pods_would_refuse_is_told_and_no_pod_pays_for_it() {
    const BROKEN: &str = "postgres//ledger:hunter2@db:5432/trades";
    const SHORT: &str = "hunter3";
    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const KEYS: &str = "callers";
    const TELLING: Duration = Duration::from_secs(1);
    let _turn = crate::beside();
    let world = Installed::new("secret", false);
    let operator = world.operator();
    let put_url = |url: &str| world.space.put_secret(&secret_of("trades"), &[("url", url)]).unwrap();
    let put_key = |key: &str| world.space.put_secret(KEYS, &[("api", key)]).unwrap();
    let wait_for_refusal = |key: &str, secret: &str, needed: &str| {
        let begin =
            format!("key {key:?} of Secret {secret} cannot be used by the pods: it must hold {needed}");
        let mut message = String::new();
        world.wait(&format!("the refusal of {secret}"), SOON, || {
            message = world.wait_for_reason("trades", "Degraded", "True", "SecretInvalid");
            message.starts_with(&begin)
        });
        message
    };
    let (url, api_key) = ("a PostgreSQL URL such as postgres://", "an API key of at least 16 characters");

    // From the beginning: nothing is made that could only crash. One is mended while its refusal is still being told.
    world.prepare("trades");
    put_url(BROKEN);
    put_key(SHORT);
    let front = operator.front();
    front.inject(Rule::new("POST", "/events", Fault::Delay(TELLING)).times(1));
    let spec = format!("{}  security: {{apiKeySecretRef: {{name: {KEYS}, key: api}}}}\n", fixed(2));
    world.apply("trades", &spec);
    world.wait("the first refusal", SOON, || front.seen().iter().any(|seen| seen.broken));
    put_url(&world.database_url("trades"));
    let message = wait_for_refusal("api", KEYS, api_key);
    assert_eq!(world.wait_for_reason("trades", "Ready", "False", "SecretInvalid"), message);
    world.wait_for_reason("trades", "Progressing", "False", "Blocked");
    wait_until_told(&world, "trades", "SecretInvalid", &message, (1, 0));
    let of_url = world.events("trades").into_iter().filter(|event| event.2.contains(url));
    assert_eq!(of_url.count(), 1);
    assert_eq!(generations(&world, "trades"), (Vec::new(), None));
    put_key(KEY);
    world.wait_until_ready("trades");
    wait_until_told(&world, "trades", "SecretInvalid", &message, (1, 1));
    world.wait_for_pods("trades", 2);
    world.wait_for_reason("trades", "Degraded", "False", "AsExpected");
    world.wait_for_reason("trades", "DatabaseReachable", "True", "Reachable");

    // Broken while pods run: they go on with what they have, and are measured with it, too.
    let before = generations(&world, "trades");
    put_key(SHORT);
    wait_for_refusal("api", KEYS, api_key);
    assert_eq!(world.condition("trades", "Ready"), ("True".to_owned(), "PodsReady".to_owned()));
    put_url(BROKEN);
    put_key(KEY);
    wait_for_refusal("url", &secret_of("trades"), url);
    let well = ("True".to_owned(), "Reachable".to_owned());
    assert_eq!(world.condition("trades", "DatabaseReachable"), well);
    put_url(&world.database_url("trades"));
    world.wait_for_reason("trades", "Degraded", "False", "AsExpected");
    world.wait_for_reason("trades", "Progressing", "False", "Stable");
    assert_eq!(generations(&world, "trades"), before, "what never was usable replaced a pod");
    let refused = operator.metric("certeus_operator_scrapes_total", &["\"refused\""]).unwrap();
    assert_eq!(refused, Some(0.0), "pods were asked with a key that they do not have");

    let shown = world.space.kubectl(&["get", "lc,events", "-o", "json"]).unwrap();
    for (place, text) in [("shown", shown), ("logged", operator.log())] {
        assert!(!text.contains("hunter"), "a value is {place}:\n{text}");
    }
    operator.stop().unwrap();
}

/// Each cluster with trouble of its own, side by side: much of this is waiting.
#[test]
fn trouble_of_pods_is_told_as_what_it_is_until_it_is_over() {
    let _turn = crate::beside();
    let world = Installed::new("trouble", false);
    let operator = world.operator();
    thread::scope(|scope| {
        for case in [pods_that_crash, a_database_that_is_not_there_yet, an_anchor_that_cannot_be_read] {
            let world = &world;
            scope.spawn(move || case(world));
        }
    });
    operator.stop().unwrap();
}

/// The operator cannot know what an object store's library makes of its settings.
fn pods_that_crash(world: &Installed) {
    let put = |allow_http: &str| {
        let settings = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"].map(|name| (name, "x"));
        let settings = [&settings[..], &[("AWS_ALLOW_HTTP", allow_http)]].concat();
        world.space.put_secret("bucket", &settings).unwrap();
    };
    put("perhaps");
    let archive =
        "  retention: {archive: 's3://bucket/ledger'}\n  security: {objectStoreSecretRef: {name: bucket}}\n";
    world.create("crashing", &format!("{}{archive}", fixed(1)));
    let message = world.wait_for_reason("crashing", "Degraded", "True", "PodsCrashing");
    let begin = "pod crashing-0 is restarted again and again, ended last with exit code 1";
    assert!(message.starts_with(begin), "{message}");
    // Its own last words.
    assert!(message.contains("perhaps"), "{message}");
    world.wait_for_reason("crashing", "Ready", "False", "PodsNotReady");
    // Between two waits it runs for a moment, which is no recovery.
    let again = |pod: Option<&Pod>| pod.is_some_and(|pod| restarts(pod) >= 4);
    world.space.wait("some more restarts", "crashing-0", IN_TIME, again).unwrap();
    wait_until_told(world, "crashing", "PodsCrashing", &message, (1, 0));

    put("true");
    world.wait_until_ready("crashing");
    world.wait_for_reason("crashing", "Degraded", "False", "AsExpected");
    wait_until_told(world, "crashing", "PodsCrashing", &message, (1, 1));
}

/// Spools bridge an outage, but a cluster whose database was never there is not ready.
fn a_database_that_is_not_there_yet(world: &Installed) {
    let name = "unreached";
    let way = Proxy::start(NOWHERE).unwrap();
    world.prepare_through(name, way.address());
    world.apply(name, &fixed(1));
    let message = world.wait_for_reason(name, "Ready", "False", "DatabaseNeverReached");
    assert!(message.contains("none has been able to commit"), "{message}");
    let message = world.wait_for_reason(name, "DatabaseReachable", "False", "DatabaseNeverReached");
    assert_eq!(message, "no pod has been able to commit yet");
    let message = world.wait_for_reason(name, "Degraded", "True", "DatabaseUnavailable");
    assert_eq!(message, "1 of 1 pods cannot reach the database");
    assert_eq!(append(world, "unreached-0"), Some(202));

    way.set_upstream(world.postgres.address());
    world.wait_until_ready(name);
    world.wait_for_reason(name, "DatabaseReachable", "True", "Reachable");
    world.wait_for_reason(name, "Degraded", "False", "AsExpected");
    world.wait("what was spooled", SOON, || stored(world, name) == 1);

    // From now on it is an outage.
    way.set_upstream(NOWHERE);
    way.cut_all(Cut::Both);
    world.wait_for_reason(name, "DatabaseReachable", "False", "Unreachable");
    world.wait_for_reason(name, "Degraded", "True", "DatabaseUnavailable");
    assert_eq!(world.condition(name, "Ready"), ("True".to_owned(), "PodsReady".to_owned()));
}

/// PostgreSQL is there, and events must wait all the same.
fn an_anchor_that_cannot_be_read(world: &Installed) {
    let name = "unchecked";
    // The StatefulSet takes a claim that is there already for its first pod.
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "spool-unchecked-0" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "10Gi" } } },
    });
    world.space.apply(&claim.to_string()).unwrap();
    let anchor = volume(world, "unchecked-0").join("log-anchor");
    fs::create_dir_all(&anchor).unwrap();
    world.create(name, &fixed(1));
    let message = world.wait_for_reason(name, "Degraded", "True", "LogUnchecked");
    assert!(message.starts_with("1 of 1 pods reach the database and commit nothing"), "{message}");
    assert!(message.ends_with("they cannot read the anchor (spec.log.anchor)"), "{message}");
    let of_database = world.wait_for_reason(name, "DatabaseReachable", "False", "DatabaseNeverReached");
    assert_eq!(of_database, message);
    world.wait_for_reason(name, "Ready", "False", "DatabaseNeverReached");
    assert_eq!(append(world, "unchecked-0"), Some(202));
    fs::remove_dir(&anchor).unwrap();
    world.wait_until_ready(name);
    world.wait_for_reason(name, "DatabaseReachable", "True", "Reachable");
    world.wait_for_reason(name, "Degraded", "False", "AsExpected");
    world.wait("what was spooled", SOON, || stored(world, name) == 1);
    // The second line of a checkpoint is the size of the log.
    let anchored = || fs::read_to_string(&anchor).is_ok_and(|text| text.lines().nth(1) == Some("1"));
    world.wait("the anchor of the event", SOON, anchored);

    // Once there was a log, a pod that is started anew must see its anchor before it commits.
    let kept = anchor.with_extension("kept");
    fs::rename(&anchor, &kept).unwrap();
    fs::create_dir(&anchor).unwrap();
    world.kubelet.kill("unchecked-0").unwrap();
    world.wait_for_reason(name, "DatabaseReachable", "False", "LogUnchecked");
    world.wait_for_reason(name, "Degraded", "True", "LogUnchecked");
    world.wait_for_reason(name, "Ready", "True", "PodsReady");
    world.wait("a spooled event", SOON, || append(world, "unchecked-0") == Some(202));
    assert_eq!(stored(world, name), 1);
    fs::remove_dir(&anchor).unwrap();
    fs::rename(&kept, &anchor).unwrap();
    world.wait_for_reason(name, "DatabaseReachable", "True", "Reachable");
    world.wait_for_reason(name, "Degraded", "False", "AsExpected");
    world.wait("what was spooled", SOON, || stored(world, name) == 2);
}

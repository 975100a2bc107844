//! `certeus-operator local`, `status` and `down` as processes, with a stand-in for the pods and a real PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a failed test says where")]

mod instance;

use std::time::Duration;

use instance::{Instance, Site, alive, http, until};
use rustix::process::Signal;
use serde_json::Value;

fn pods(status: &Value) -> &[Value] {
    status["pods"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn ready_pods(status: &Value) -> usize {
    pods(status).iter().filter(|pod| pod["ready"] == true).count()
}

fn admin(status: &Value, pod: usize) -> String {
    status["pods"][pod]["adminAddress"].as_str().unwrap().to_owned()
}

fn pids(status: &Value) -> Vec<u32> {
    let pods = pods(status).iter().map(|pod| &pod["pid"]);
    let all = pods.chain([&status["postgresPid"]]).filter_map(Value::as_u64);
    all.map(|pid| u32::try_from(pid).unwrap()).collect()
}

#[test]
fn a_cluster_serves_survives_a_crash_follows_edits_and_leaves_nothing_behind() {
    let site = Site::new("batchSize: 7");
    let mut instance = Instance::start(&site);
    let first = instance.wait_for("one ready pod", |status| ready_pods(status) == 1);
    let api = first["apiAddress"].as_str().unwrap().to_owned();
    assert!(http(&api, "GET /").unwrap().contains("batchSize: 7"));
    let url = std::fs::read_to_string(first["databaseUrlFile"].as_str().unwrap()).unwrap();
    assert!(url.starts_with("postgres://") && url.ends_with("/certeus"), "{url}");

    // A pod that crashes comes back; a client that calls meanwhile waits in the socket's queue and is served.
    assert!(http(&admin(&first, 0), "POST /fake/crash").is_err());
    assert!(http(&api, "GET /").unwrap().contains("batchSize: 7"));
    let restarted = instance
        .wait_for("a restart", |status| ready_pods(status) == 1 && status["pods"][0]["restarts"] == 1);
    assert_ne!(restarted["pods"][0]["pid"], first["pods"][0]["pid"]);
    instance.wait_for_line("exit status 3");

    // A bad edit changes nothing but what is told; a good one replaces the pod.
    site.write_cluster("batchSizes: 9");
    let refused = instance.wait_for("a refused edit", |status| status["manifestsError"].is_string());
    assert!(refused["manifestsError"].as_str().unwrap().contains("spec.ledger.batchSizes"), "{refused}");
    assert_eq!(refused["pods"][0]["pid"], restarted["pods"][0]["pid"]);
    site.write_cluster("batchSize: 8");
    let edited = instance.wait_for("the edited pod", |status| {
        ready_pods(status) == 1 && status["pods"][0]["pid"] != restarted["pods"][0]["pid"]
    });
    assert!(edited["manifestsError"].is_null());
    assert!(http(&api, "GET /").unwrap().contains("batchSize: 8"));
    assert_eq!(edited["pods"][0]["restarts"], 0, "a replaced pod did not crash");

    // Paused, nothing changes until it no longer is.
    site.write_cluster_with("batchSize: 9", "  paused: true\n");
    let paused = instance.wait_for("the pause", |status| status["ledgerCluster"]["spec"]["paused"] == true);
    assert_eq!(paused["pods"][0]["pid"], edited["pods"][0]["pid"]);
    assert!(http(&api, "GET /").unwrap().contains("batchSize: 8"));
    site.write_cluster("batchSize: 9");
    let edited = instance.wait_for("the end of the pause", |status| {
        ready_pods(status) == 1 && status["pods"][0]["pid"] != edited["pods"][0]["pid"]
    });
    assert!(http(&api, "GET /").unwrap().contains("batchSize: 9"));

    let table = site.run(&["status"]);
    assert!(table.text.starts_with("NAME"), "{table:?}");
    assert!(table.text.contains("demo-0   1/1     Running"), "{table:?}");

    instance.signal(Signal::INT);
    assert_eq!(instance.wait_exit(), Some(0));
    for pid in pids(&edited) {
        assert!(!alive(pid), "process {pid} survived");
    }
    assert_eq!(site.run(&["status"]).code, Some(6));
}

#[test]
fn load_adds_pods_and_their_leaving_loses_no_connection() {
    let site = Site::new("writers: 1");
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: { name: keys }\nstringData: { api: open-sesame }\n";
    site.write_file("secret.yaml", secret);
    site.write_cluster_with("writers: 1", "  security: { apiKeySecretRef: { name: keys, key: api } }\n");
    let mut instance = Instance::start(&site);
    let idle = instance.wait_for("one ready pod", |status| ready_pods(status) == 1);
    let api = idle["apiAddress"].as_str().unwrap().to_owned();

    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let client = std::thread::spawn(move || {
        let mut served = 0_u32;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            http(&api, "GET /").unwrap();
            served += 1;
        }
        served
    });
    http(&admin(&idle, 0), "POST /fake/queue/1000").unwrap();
    let busy = instance.wait_for("more pods", |status| ready_pods(status) >= 2);
    assert!(!busy.to_string().contains("open-sesame"));
    let decision = &busy["ledgerCluster"]["status"]["lastDecision"];
    assert_eq!(decision["from"], 1, "{decision}");

    http(&admin(&idle, 0), "POST /fake/queue/0").unwrap();
    let calm = instance.wait_for("one pod again", |status| pods(status).len() == 1);
    assert_eq!(calm["pods"][0]["pid"], idle["pods"][0]["pid"], "the highest ordinals leave");
    instance.wait_for_line("demo-1 drains: fewer pods are wanted");
    stop.send(()).unwrap();
    assert!(client.join().unwrap() > 0);

    let down = site.run(&["down"]);
    assert_eq!((down.code, instance.wait_exit()), (Some(0), Some(0)), "{down:?}");
}

#[test]
fn what_a_killed_instance_left_is_ended_by_the_next_one_or_by_down() {
    let site = Site::new("writers: 1");
    let mut killed = Instance::start(&site);
    let left = killed.wait_for("one ready pod", |status| ready_pods(status) == 1);
    killed.signal(Signal::KILL);
    killed.wait_exit();
    assert!(pids(&left).into_iter().all(alive), "nobody stops them yet");

    let mut second = Instance::start(&site);
    let found = second.wait_for("a ready pod of its own", |status| {
        ready_pods(status) == 1 && status["operatorPid"] != left["operatorPid"]
    });
    assert!(!pids(&left).into_iter().any(alive));

    let refused = site.run(&[
        "local",
        "-f",
        site.manifests(),
        "--api-listen",
        "127.0.0.1:0",
        "--dataplane",
        site.pod(),
    ]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(refused.errors.contains(&format!("process {}", found["operatorPid"])), "{refused:?}");

    second.signal(Signal::KILL);
    second.wait_exit();
    let down = site.run(&["down", "--purge"]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert!(!pids(&found).into_iter().any(alive));
    assert!(!site.state().exists());
    assert_eq!(site.run(&["down"]).code, Some(0), "nothing to stop is no failure");
}

#[test]
fn a_second_interrupt_stops_at_once_and_a_dead_database_comes_back() {
    let site = Site::new("writers: 1");
    let mut instance = Instance::start(&site);
    let ready = instance.wait_for("one ready pod", |status| ready_pods(status) == 1);
    let url = std::fs::read_to_string(ready["databaseUrlFile"].as_str().unwrap()).unwrap();
    let postgres = ready["postgresPid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(postgres).unwrap(), Signal::KILL).unwrap();
    let back = instance.wait_for("another server", |status| {
        status["postgresPid"].is_u64() && status["postgresPid"] != postgres
    });
    let answer = std::process::Command::new("psql").args([&url, "-Atc", "select 7"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "7", "{answer:?}");

    http(&admin(&back, 0), "POST /fake/stubborn").unwrap();
    instance.signal(Signal::INT);
    instance.wait_for_line("demo-0 drains");
    instance.signal(Signal::INT);
    instance.signal_until_line(Signal::INT, "stopping at once");
    assert_eq!(instance.wait_exit_within(Duration::from_secs(15)), Some(0));
    until("no process left", || pids(&back).into_iter().all(|pid| !alive(pid)));
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let site = Site::new("writers: 1");
    let local = |listen: &str, pod: &str, code: i32, text: &str| {
        let ran = site.run(&["local", "-f", site.manifests(), "--api-listen", listen, "--dataplane", pod]);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.errors.contains(text) && ran.errors.trim_end().lines().count() == 1, "{ran:?}");
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    local(&address, site.pod(), 5, &format!("address {address} is in use"));
    local("127.0.0.1:0", "/nowhere/certeus-dataplane", 4, "/nowhere/certeus-dataplane does not exist");
    let port = taken.local_addr().unwrap().port().to_string();
    let ran = site.run(&[
        "local",
        "-f",
        site.manifests(),
        "--api-listen",
        "127.0.0.1:0",
        "--dataplane",
        site.pod(),
        "--admin-port",
        &port,
    ]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(ran.errors.contains("choose another --admin-port"), "{ran:?}");
    local("0.0.0.0:0", site.pod(), 3, "spec.security.apiKeySecretRef");
    site.write_cluster("queueEvents: many");
    local("127.0.0.1:0", site.pod(), 3, "spec.ledger.queueEvents");
    site.write_file("cluster.yaml", "kind: [");
    local("127.0.0.1:0", site.pod(), 3, "not valid YAML");
}

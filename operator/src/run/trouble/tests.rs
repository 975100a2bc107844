use serde_json::{Value, json};

use super::*;
use crate::run::pods::PodSeen;

const NOW: Duration = Duration::from_secs(1_000_000);

/// A pod of one container in this state, with these conditions.
fn pod(restarts: i32, state: &Value, last: &Value, conditions: &Value) -> Pod {
    let pod = json!({ "metadata": { "name": "demo-3" }, "status": {
        "phase": "Running", "startTime": "1970-01-01T00:01:00Z",
        "containerStatuses": [{ "name": "dataplane", "image": "", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last }],
        "conditions": conditions } });
    serde_json::from_value(pod).unwrap()
}

fn waiting(reason: &str, message: &str) -> Pod {
    pod(0, &json!({ "waiting": { "reason": reason, "message": message } }), &json!({}), &json!([]))
}

/// What is wrong with a pod, at a time.
fn read(pod: &Pod, at: Duration) -> Option<Trouble> {
    Trouble::read(pod, PodSeen::read(pod).unwrap().phase, at)
}

#[track_caller]
fn check(pod: &Pod, expected: Option<(Kind, &str)>) {
    let found = read(pod, NOW);
    let found = found.as_ref().map(|found| (found.kind, &*found.text, found.from));
    assert_eq!(found, expected.map(|(kind, text)| (kind, text, Duration::ZERO)));
}

#[test]
fn a_container_that_is_restarted_again_and_again_crashes_until_it_is_ready() {
    let last = json!({ "terminated": { "exitCode": 2, "reason": "Error", "message": "bad value\n",
        "startedAt": "1970-01-01T00:01:50Z", "finishedAt": "1970-01-01T00:02:00Z" } });
    let crash = |restarts: i32, state: &Value, ready_since: &str, expected| {
        let ready =
            if ready_since.is_empty() { ("False", "1970-01-01T00:01:59Z") } else { ("True", ready_since) };
        let ready = json!([{ "type": "Ready", "status": ready.0, "lastTransitionTime": ready.1 }]);
        check(&pod(restarts, state, &last, &ready), expected);
    };
    let waits = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    let runs = json!({ "running": { "startedAt": "1970-01-01T00:02:10Z" } });
    let expected = Some((Kind::Crash { exit_code: Some(2) }, "bad value"));
    crash(1, &waits, "", expected);
    crash(1, &runs, "", None);
    crash(2, &runs, "", expected);
    crash(9, &runs, "1970-01-01T00:02:20Z", None);
    crash(9, &json!({ "waiting": { "reason": "ContainerCreating" } }), "", expected);
    let killed = |from: &str| {
        json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled", "startedAt": from,
            "finishedAt": "1970-01-01T02:00:00Z" } })
    };
    let expected = Some((Kind::Crash { exit_code: Some(137) }, "OOMKilled"));
    crash(3, &killed("1970-01-01T01:59:00Z"), "", expected);
    crash(1, &killed("1970-01-01T01:59:00Z"), "", None);
    crash(3, &killed("1970-01-01T01:00:00Z"), "", None);
    let pod = json!({ "metadata": { "name": "demo-3", "deletionTimestamp": "1970-01-01T00:03:00Z" }, "status": {
        "containerStatuses": [{ "name": "dataplane", "image": "", "imageID": "", "ready": false,
            "restartCount": 9, "state": waits }] } });
    check(&serde_json::from_value(pod).unwrap(), None);
}

#[test]
fn a_container_that_cannot_be_started_is_told_in_kubernetes_words() {
    for ordinary in ["ContainerCreating", "PodInitializing", "SomethingNew"] {
        check(&waiting(ordinary, "x"), None);
    }
    check(&waiting("InvalidImageName", ""), Some((Kind::Image, "InvalidImageName")));
    let missing = "CreateContainerConfigError: secret \"s\" not found";
    check(&waiting("CreateContainerConfigError", "secret \"s\"\n\tnot found"), Some((Kind::Start, missing)));
    let long = read(&waiting("ErrImagePull", &"é".repeat(3000)), NOW).unwrap();
    assert_eq!(long.text.chars().count(), 300);
    // Of a container that somebody injected.
    let injected = json!({ "metadata": { "name": "demo-3" }, "status": { "initContainerStatuses": [{ "name": "proxy",
        "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ErrImageNeverPull", "message": "not here" } } }] } });
    let expected = Some((Kind::Image, "ErrImageNeverPull: not here"));
    check(&serde_json::from_value(injected).unwrap(), expected);
}

#[test]
fn a_program_that_cannot_be_run_crashes_from_its_second_attempt_on() {
    let message = "exec: certeus-dataplane: not found";
    let runs_not = json!({ "waiting": { "reason": "RunContainerError", "message": message } });
    let ended = json!({ "terminated": { "exitCode": 128, "reason": "StartError", "message": message,
        "startedAt": "1970-01-01T00:00:00Z", "finishedAt": "1970-01-01T00:02:00Z" } });
    let expected = "RunContainerError: exec: certeus-dataplane: not found";
    check(&pod(0, &runs_not, &json!({}), &json!([])), Some((Kind::Start, expected)));
    let crash = Some((Kind::Crash { exit_code: Some(128) }, message));
    let waits = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    for state in [&waits, &runs_not] {
        check(&pod(1, state, &ended, &json!([])), crash);
    }
    check(&pod(2, &ended, &json!({}), &json!([])), crash);
}

#[test]
fn an_image_that_is_tried_again_and_again_is_one_trouble() {
    let cause = "failed to pull: dial tcp 10.0.0.1:443: i/o timeout";
    let tries = |cause: &str| waiting("ErrImagePull", cause);
    let backs_off =
        waiting("ImagePullBackOff", &format!("Back-off pulling image \"x\": ErrImagePull: {cause}"));
    let older = waiting("ImagePullBackOff", "Back-off pulling image \"x\"");
    let mut told = read(&tries(cause), NOW).unwrap();
    assert_eq!(told.text, format!("ErrImagePull: {cause}"));
    let first = told.clone();
    let mut settle = |pod: &Pod, seconds: u64| {
        let mut trouble = read(pod, NOW + Duration::from_secs(seconds)).unwrap();
        trouble.settle(&told);
        told = trouble.clone();
        trouble
    };
    let other = "failed to pull: 401 Unauthorized";
    for (pod, seconds) in [
        (backs_off, 10),
        (tries("failed to pull: dial tcp 10.0.0.2:443: i/o timeout"), 20),
        (older.clone(), 30),
        (tries(other), 599),
        // Long after, numbers and pauses are no news.
        (tries("failed to pull: dial tcp 10.0.0.9:443: i/o timeout"), 9000),
        (older.clone(), 9010),
    ] {
        assert_eq!(settle(&pod, seconds), first, "after {seconds} s");
    }
    assert_eq!(settle(&tries(other), 9300).text, format!("ErrImagePull: {other}"));
    assert_eq!(settle(&tries(cause), 9310).text, format!("ErrImagePull: {other}"), "so soon after");
    assert_eq!(settle(&waiting("CreateContainerError", ""), 9320).kind, Kind::Start, "another trouble");
    // What says nothing of the cause gives way to what does.
    settle(&older, 9330);
    assert_eq!(settle(&tries(cause), 9331).text, format!("ErrImagePull: {cause}"));
}

#[test]
fn a_pod_without_node_volume_or_network_is_in_trouble_when_that_lasts() {
    let found = |conditions: &Value| {
        let pod = json!({ "metadata": { "name": "demo-3" }, "status": { "phase": "Pending", "conditions": conditions } });
        let found = read(&serde_json::from_value(pod).unwrap(), NOW)?;
        Some((found.kind, found.text, found.from.as_secs()))
    };
    let condition = |type_: &str, status: &str| {
        json!({ "type": type_, "status": status, "lastTransitionTime": "1970-01-01T00:02:00Z",
            "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory." })
    };
    let scheduled = condition("PodScheduled", "True");
    let text = "Unschedulable: 0/3 nodes are available: 3 Insufficient memory.".to_owned();
    assert_eq!(found(&json!([condition("PodScheduled", "False")])), Some((Kind::Schedule, text, 300)));
    assert_eq!(found(&json!([scheduled])), None);
    let unprepared = found(&json!([scheduled, condition("PodReadyToStartContainers", "False")])).unwrap();
    assert_eq!((unprepared.0, unprepared.2), (Kind::Prepare, 300));
    assert_eq!(found(&json!([scheduled, condition("PodReadyToStartContainers", "True")])), None);

    // Before it is told, the latest text is the one to tell.
    let unscheduled = |text: &str, from: u64, at: u64| {
        Trouble::new(Kind::Schedule, text, Duration::from_secs(from), Duration::from_secs(at))
    };
    let mut later = unscheduled("Insufficient memory", 300, 200);
    later.settle(&unscheduled("unbound volume", 300, 120));
    assert_eq!(later.text, "Insufficient memory");
    let mut told = unscheduled("Insufficient cpu", 300, 301);
    told.settle(&later);
    assert_eq!(told.text, "Insufficient memory");
    // It had a node meanwhile.
    let mut again = unscheduled("Insufficient memory", 900, 720);
    again.settle(&told);
    assert_eq!(again.from.as_secs(), 900);
}

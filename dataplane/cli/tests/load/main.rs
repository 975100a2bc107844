//! `certeus load` as its users run it, against a stand-in for the ledger.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use server::{Act, Server};

fn command(arguments: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certeus"));
    command.arg("load").args(arguments).current_dir(dir).env_remove("CERTEUS_API_KEY");
    command
}

/// A finished run.
struct Run {
    status: Option<i32>,
    stderr: String,
    result: Value,
    /// First sequence number, count, first index, first id.
    acks: Vec<(usize, usize, usize, String)>,
}

fn finished(output: &Output, dir: &Path) -> Run {
    let acks = fs::read_to_string(dir.join("acks.tsv")).unwrap();
    let ack = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [first_seq, count, first_index, first_id] = fields[..] else { panic!("{line}") };
        let number = |text: &str| text.parse().unwrap();
        (number(first_seq), number(count), number(first_index), first_id.to_owned())
    };
    Run {
        status: output.status.code(),
        stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        result: serde_json::from_slice(&fs::read(dir.join("result.json")).unwrap()).unwrap(),
        acks: acks.lines().map(ack).collect(),
    }
}

/// Runs to the end, with result and acknowledgements written.
fn run(server: &Server, arguments: &[&str]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let url = server.url();
    let always = ["--url", &url, "--output", "result.json", "--acks", "acks.tsv"];
    let output = command(&[&always[..], arguments].concat(), dir.path()).output().unwrap();
    finished(&output, dir.path())
}

fn seq(line: &str) -> usize {
    let event: Value = serde_json::from_str(line).unwrap();
    event["seq"].as_u64().unwrap().try_into().unwrap()
}

/// Every acknowledgement names events that the server has, at the places it names.
fn check_acks(run: &Run, server: &Server) {
    let seen = server.seen();
    for (first_seq, count, first_index, first_id) in &run.acks {
        let lines = &seen.committed[*first_index..first_index + count];
        let found: Vec<usize> = lines.iter().map(|line| seq(line)).collect();
        assert_eq!(found, (*first_seq..first_seq + count).collect::<Vec<_>>());
        assert_eq!(*first_id, format!("id-{first_index}"));
    }
}

const TROUBLE: [Act; 11] = [
    Act::Overloaded,
    Act::Commit,
    Act::Unavailable,
    Act::Overloaded,
    Act::Commit,
    Act::Break,
    Act::Commit,
    Act::OutcomeUnknown,
    Act::CommitAndClose,
    Act::CommitAndBreak,
    Act::CommitAfter(Duration::from_millis(5)),
];

#[test]
fn with_keys_every_event_is_acknowledged_and_stored_once() {
    let server = Server::start(&[&TROUBLE[..], &[Act::Spooled]].concat());
    let run = run(&server, &["--workers", "1", "--batch", "10", "--events", "95", "--run-id", "r"]);

    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert_eq!(run.result["acknowledged"], json!({"requests": 10, "events": 95}));
    let faults = json!({
        "refused_429": 2, "refused_503": 1, "outcome_unknown": 1, "connection_lost": 2, "spooled_202": 1
    });
    assert_eq!(run.result["faults"], faults);
    check_acks(&run, &server);
    let seen = server.seen();
    let committed: Vec<usize> = seen.committed.iter().map(|line| seq(line)).collect();
    assert_eq!(committed, (0..95).collect::<Vec<_>>());
    assert_eq!(seen.headers[0]["idempotency-key"], "\"r-0\"");
    assert_eq!(seen.headers.last().unwrap()["idempotency-key"], "\"r-90\"");
}

#[test]
fn without_keys_every_event_ends_once_whatever_the_server_does() {
    let server = Server::start(&TROUBLE);
    // Ten requests; the last has five events. The fourth, fifth and ninth act cost a request each.
    let run =
        run(&server, &["--workers", "1", "--batch", "10", "--events", "95", "--idempotency-keys", "false"]);

    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert_eq!(run.result["acknowledged"], json!({"requests": 7, "events": 65}));
    assert_eq!(run.result["unknown"], json!({"requests": 3, "events": 30}));
    assert_eq!(run.result["abandoned"], json!({"requests": 0, "events": 0}));
    let faults = json!({"refused_429": 2, "refused_503": 1, "outcome_unknown": 1, "connection_lost": 2});
    assert_eq!(run.result["faults"], faults);
    assert_eq!(
        run.acks.iter().map(|(first_seq, ..)| *first_seq).collect::<Vec<_>>(),
        [0, 10, 30, 50, 70, 80, 90]
    );
    check_acks(&run, &server);

    let seen = server.seen();
    let mut committed: Vec<usize> = seen.committed.iter().map(|line| seq(line)).collect();
    committed.dedup();
    assert_eq!(committed, (0..20).chain(30..40).chain(50..95).collect::<Vec<_>>());
    // The first, and one after each broken or closed connection.
    assert_eq!((seen.connections, seen.requests), (4, 13));
}

#[test]
fn many_workers_send_every_event_once_in_every_encoding() {
    for encoding in ["none", "gzip", "zstd"] {
        let server = Server::start(&[]);
        let arguments =
            ["--workers", "5", "--batch", "7", "--events", "1000", "--encoding", encoding, "--run-id", "r-7"];
        let run = run(&server, &arguments);

        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert_eq!(run.result["acknowledged"], json!({"requests": 143, "events": 1000}));
        assert_eq!(run.result["ending"], "completed");
        check_acks(&run, &server);
        let seen = server.seen();
        let mut seqs: Vec<usize> = seen.committed.iter().map(|line| seq(line)).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, (0..1000).collect::<Vec<_>>());
        assert!(seen.committed.iter().all(|line| line.len() == 300 && line.contains(r#""run":"r-7""#)));
        assert_eq!(seen.connections, 5);
    }
}

#[test]
fn a_late_request_counts_its_delay() {
    let server = Server::start(&[Act::CommitAfter(Duration::from_millis(300))]);
    // Due every 10 ms; the first reply holds the only connection for 300 ms.
    let arguments = ["--target-throughput", "100", "--workers", "1", "--batch", "1", "--events", "10"];
    let run = run(&server, &arguments);

    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert_eq!(run.result["acknowledged"]["requests"], 10);
    let p50 = |name: &str| run.result[name]["p50"].as_f64().unwrap();
    assert!(p50("latency_ms") > 200.0, "{}", run.result);
    assert!(p50("schedule_lag_ms") > 200.0, "{}", run.result);
}

#[test]
fn a_run_ends_with_its_duration() {
    let server = Server::start(&[]);
    for target in ["max", "2000"] {
        let arguments =
            ["--duration", "250ms", "--ramp-up", "50ms", "--target-throughput", target, "--batch", "10"];
        let run = run(&server, &arguments);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        if target == "2000" {
            // 200 requests per second, for 250 ms less half the ramp.
            assert_eq!(run.result["acknowledged"]["requests"], 45);
        }
        let elapsed = run.result["elapsed_s"].as_f64().unwrap();
        assert!((0.2..5.0).contains(&elapsed), "{elapsed}");
    }
}

#[test]
fn events_refused_for_good_end_the_run_with_the_reason() {
    let server = Server::start(&[Act::Commit, Act::Reject]);
    let run = run(&server, &["--workers", "1", "--batch", "10", "--events", "1000"]);
    assert_eq!(run.status, Some(3));
    assert!(run.stderr.contains("the server answered 400: Problem: event 3 has no 'type'"), "{}", run.stderr);
    assert_eq!(run.result["acknowledged"]["events"], 10);
    assert_eq!(run.result["abandoned"]["events"], 10);
    assert_eq!(server.seen().requests, 2);
}

#[test]
fn refused_until_the_end_is_abandoned() {
    let server = Server::start(&[Act::OverloadedForGood]);
    let run = run(&server, &["--workers", "1", "--batch", "10", "--duration", "50ms"]);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert_eq!(run.result["acknowledged"]["events"], 0);
    assert_eq!(run.result["abandoned"], json!({"requests": 1, "events": 10}));
    assert_eq!(run.result["latency_ms"], Value::Null);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // Port 1 of this machine: below 1024 and unassigned for decades.
    let arguments = ["--url", "http://127.0.0.1:1", "--duration", "100ms", "--workers", "2"];
    let output = command(&arguments, dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("error: no connection to http://127.0.0.1:1: Connection refused"), "{stderr}");
}

#[test]
fn an_interrupted_run_waits_for_its_replies_and_reports() {
    let server = Server::start(&[Act::Commit, Act::CommitWhenReleased]);
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--workers", "1", "--batch", "10", "--output", "result.json", "--acks", "acks.tsv"];
    let mut child = command(&arguments, dir.path())
        .args(["--url", &server.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    server.waiting.recv_timeout(Duration::from_secs(20)).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // The reply may only come once the signal has been taken.
    let mut said = String::new();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    while !said.contains("interrupted") {
        assert_ne!(std::io::BufRead::read_line(&mut stderr, &mut said).unwrap(), 0, "{said}");
    }
    server.release.send(true).unwrap();
    let output = child.wait_with_output().unwrap();

    let run = finished(&output, dir.path());
    assert_eq!(run.status, Some(130));
    assert_eq!(run.result["ending"], "interrupted");
    assert_eq!(run.result["acknowledged"], json!({"requests": 2, "events": 20}));
    assert_eq!(run.result["unknown"]["requests"], 0);
    check_acks(&run, &server);
    let summary = String::from_utf8(output.stdout).unwrap();
    assert!(summary.contains("acknowledged  20 events in 2 requests"), "{summary}");
}

#[test]
fn a_file_is_sent_once_in_order_and_unchanged() {
    let server = Server::start(&[Act::Commit, Act::Overloaded]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.ndjson");
    let lines: Vec<String> =
        (0..25).map(|n| format!(r#"{{"type": "log",  "timestamp":{n}, "text":"ä {n}"}}"#)).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let run = run(&server, &["--file", file.to_str().unwrap(), "--batch", "8"]);

    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert_eq!(run.result["acknowledged"], json!({"requests": 4, "events": 25}));
    assert_eq!(
        run.acks.iter().map(|ack| (ack.0, ack.1)).collect::<Vec<_>>(),
        [(0, 8), (8, 8), (16, 8), (24, 1)]
    );
    assert_eq!(server.seen().committed, lines);
}

#[test]
fn the_api_key_comes_from_the_environment_alone() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&["--url", &server.url(), "--events", "1"], dir.path());
    assert_eq!(command.env("CERTEUS_API_KEY", "secret").status().unwrap().code(), Some(0));
    assert_eq!(server.seen().headers[0]["authorization"], "Bearer secret");
}

#[test]
fn a_configuration_file_is_obeyed_and_its_mistakes_are_named() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let config = format!("url: {}\nevents: 30\nbatch: 10\nworkers: 1\n", server.url());
    fs::write(dir.path().join("load.yaml"), &config).unwrap();
    let status = command(&["--config", "load.yaml", "--batch", "15"], dir.path()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(server.seen().requests, 2);

    fs::write(dir.path().join("load.yaml"), config + "event-sise: 200\n").unwrap();
    let output = command(&["--config", "load.yaml"], dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("load.yaml") && stderr.contains("event-sise"), "{stderr}");
}

#[test]
fn a_result_is_published_with_its_event_as_evidence() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{}/", server.url());
    let output = command(&["--url", &url, "--events", "30", "--publish"], dir.path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.ends_with(&format!("published     {}/v1/pco/public/r\n", server.url())), "{said}");
    let seen = server.seen();
    let event: Value = serde_json::from_str(&seen.committed[30]).unwrap();
    assert_eq!(
        (&event["type"], &event["result"]["acknowledged"]["events"]),
        (&json!("load.result"), &json!(30))
    );
    let paths: Vec<&str> = seen.publishing.iter().map(|(path, _)| &**path).collect();
    assert_eq!(paths, ["/v1/pco/bundle", "/v1/pco/bundle", "/v1/proofgate/publish"]);
    let claim = &seen.publishing[1].1["claims"]["load"];
    assert_eq!((&claim["evidence"], &claim["result"]), (&json!(["id-30"]), &event["result"]));
    assert_eq!(
        (&seen.publishing[1].1["entries"], &seen.publishing[2].1["bundle"]),
        (&json!(["id-30"]), &json!("a.b.c"))
    );
}

#[test]
fn a_result_that_is_not_published_is_a_failure() {
    let server = Server::start(&[Act::Commit, Act::Reject]);
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--url", &server.url(), "--events", "30", "--workers", "1", "--publish"];
    let output = command(&arguments, dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("the result was not published: ") && stderr.contains("event 3 has no 'type'"),
        "{stderr}"
    );
}

//! `certeus audit` as its users run it, against a real PostgreSQL. What it finds is tested with the audit itself; here are
//! its output, its exit status, and the file of a saved audit.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{ArchiveConfig, Availability, Config, Database, Ledger, QueueConfig};
use certeus_localpg::LocalPg;
use certeus_tlog::note::{Algorithm, SignerKey};
use serde_json::Value;
use tokio_postgres::NoTls;

/// Fills a ledger. With an archive, all of it is archived then.
async fn fill(url: &str, archive: Option<&Path>) {
    let location = |path: &Path| format!("file://{}", path.display()).parse().unwrap();
    let config = Config {
        name: "default".to_owned(),
        database: Database::from_url(url).unwrap(),
        writers: 1,
        read_connections: 1,
        queue: QueueConfig {
            queue_events_max: 1000,
            queue_bytes_max: 1 << 20,
            batch_events: 1000,
            batch_bytes: 1 << 20,
            batch_timeout: Duration::from_millis(1),
        },
        encryption: None,
        log: None,
        archive: archive.map(|path| ArchiveConfig { location: location(path), keep: None }),
        spool: None,
    };
    let (ledger, tasks) = Ledger::start(config, &prometheus::Registry::new()).unwrap();
    let mut changes = ledger.watch_availability();
    let available = changes.wait_for(|now| *now == Availability::Available);
    tokio::time::timeout(Duration::from_secs(30), available).await.expect("available in time").unwrap();
    let body = Bytes::from("{\"type\":\"a\",\"timestamp\":5}\n".repeat(300));
    let limits = Limits { request_events_max: 1000, event_bytes_max: 1000, encrypted_fields: None };
    let parsed = Submission::parse(body, Format::Ndjson, &limits, OnBadEvent::RefuseAll).unwrap();
    ledger.append(parsed.submission.unwrap()).await.unwrap();
    if archive.is_some() {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap() + Duration::from_secs(3 * 86_400);
        let now = u64::try_from(now.as_millis()).unwrap();
        assert_eq!(ledger.retain(Duration::ZERO, now).await.unwrap().events, 300);
    }
    ledger.close();
    tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("drains in time");
}

fn audit(dir: &Path, url: &str, arguments: &[&str]) -> Output {
    audit_trusting(dir, url, None, arguments)
}

fn audit_trusting(dir: &Path, url: &str, certificates: Option<&str>, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_certeus"))
        .arg("audit")
        .args(arguments)
        .current_dir(dir)
        .env("CERTEUS_DB_URL", url)
        .envs(certificates.map(|pem| ("CERTEUS_DB_CA", pem)))
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_and_the_report_say_what_was_found() {
    let pg = LocalPg::start(&certeus_localpg::Options::default()).unwrap();
    let url = pg.url();
    fill(&url, None).await;
    let dir = tempfile::tempdir().unwrap();
    let key = SignerKey::from_seed("log.example/default", Algorithm::Ed25519, [1; 32]).unwrap();
    let vkey = key.verifier().to_string();

    let clean = audit(dir.path(), &url, &["--key", &vkey, "--state", "state", "--json"]);
    let report: Value = serde_json::from_slice(&clean.stdout).unwrap();
    assert_eq!(clean.status.code(), Some(0), "{report}");
    assert_eq!(
        (&report["clean"], &report["rehashed"], &report["confirmed"]),
        (&true.into(), &300.into(), &0.into())
    );
    assert!(!dir.path().join("state").exists(), "what is finished needs no going on");

    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let alter = "UPDATE certeus.events SET payload = payload || ' ' WHERE id = \
         (SELECT id FROM certeus.event_log WHERE index = 7) RETURNING id::text";
    let id: String = client.query_one(alter, &[]).await.unwrap().get(0);
    let altered = audit(dir.path(), &url, &["--key", &vkey]);
    let text = String::from_utf8(altered.stdout).unwrap();
    assert_eq!(altered.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("event-altered: event 7 ({id})")), "{text}");
    assert!(text.contains("not signed    300 events"), "{text}");

    let code = |arguments: &[&str]| audit(dir.path(), &url, arguments).status.code();
    std::fs::write(dir.path().join("state"), "{}").unwrap();
    assert_eq!(code(&["--key", &vkey, "--state", "state"]), Some(2), "not a saved audit");
    assert_eq!(code(&["--key", "nothing"]), Some(2));
    assert_eq!(code(&["--key", &vkey, "--checkpoint", "missing"]), Some(2));
    assert_eq!(code(&["--key", &vkey, "--ledger", "other"]), Some(2));
    assert_eq!(code(&["--key", &vkey, "--jobs", "0"]), Some(2));
    let away = audit(dir.path(), "postgres://u:hidden@127.0.0.1:1/db", &["--key", &vkey]);
    assert_eq!(away.status.code(), Some(3));
    assert!(!String::from_utf8(away.stderr).unwrap().contains("hidden"));
    // Certificates to trust are never passed over: this server has no TLS.
    let authority = include_str!("../../server/tests/ca.crt");
    for (certificates, status, told) in
        [(authority, 3, "does not support TLS"), ("hidden", 2, "CERTEUS_DB_CA")]
    {
        let refused = audit_trusting(dir.path(), &url, Some(certificates), &["--key", &vkey]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(status), "{said}");
        assert!(said.contains(told) && !said.contains("hidden"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_events_are_audited_wherever_they_are_and_what_is_left_out_is_said() {
    let pg = LocalPg::start(&certeus_localpg::Options::default()).unwrap();
    let url = pg.url();
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    fill(&url, Some(&here)).await;
    let key = SignerKey::from_seed("log.example/default", Algorithm::Ed25519, [1; 32]).unwrap();
    let vkey = key.verifier().to_string();
    let run = |arguments: &[&str]| {
        let output = audit(dir.path(), &url, &[&["--key", &vkey], arguments].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();

    let (status, out, _) = run(&["--json"]);
    let report = json(&out);
    assert_eq!(
        (status, &report["rehashed"], &report["archived_rehashed"]),
        (0, &0.into(), &300.into()),
        "{out}"
    );
    assert_eq!((&report["complete"], &report["archived_not_rehashed"]), (&true.into(), &0.into()));
    let (_, out, _) = run(&[]);
    assert!(out.contains("archived      300 events, re-hashed from their files"), "{out}");

    let (status, out, said) = run(&["--without-archive"]);
    assert_eq!(status, 0, "{out}");
    assert!(
        out.contains("300 events, NOT re-hashed") && said.contains("300 archived events were left out"),
        "{out}{said}"
    );
    let report = json(&run(&["--without-archive", "--json"]).1);
    assert_eq!((&report["complete"], &report["archived_not_rehashed"]), (&false.into(), &300.into()));

    std::fs::rename(&here, &there).unwrap();
    let (status, out, said) = run(&["--state", "state"]);
    assert_eq!((status, &out[..]), (3, ""), "neither a success nor a finding");
    assert!(said.contains("--archive URL") && said.contains("--without-archive"), "{said}");
    let moved = format!("file://{}", there.display());
    let (status, out, _) = run(&["--archive", &moved]);
    assert_eq!(status, 0, "{out}");

    let day = std::fs::read_dir(there.join("default")).unwrap().next().unwrap().unwrap();
    let file = std::fs::read_dir(day.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (status, out, _) = run(&["--archive", &moved]);
    assert_eq!(status, 1, "{out}");
    assert!(out.contains("archive-altered: events 0 to 299"), "{out}");

    assert_eq!(run(&["--archive", "there"]).0, 2, "not a location");
    assert_eq!(run(&["--archive", &moved, "--without-archive"]).0, 2);
}
